//! The rotation of one node step by step, and of several over every order of events that chance comes up with.

// Lints that spare tests know them by this attribute.
#[cfg(test)]
mod explore;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod world;
