//! The rotation of one node step by step, and of several nodes over random orders of events.

// Lints that exempt tests recognize them by this attribute.
#[cfg(test)]
mod explore;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod world;
