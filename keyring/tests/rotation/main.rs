//! The rotation among several nodes, over every order of events that chance comes up with.

// Lints that spare tests know them by this attribute.
#[cfg(test)]
mod explore;
#[cfg(test)]
mod world;
