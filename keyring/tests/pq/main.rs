//! Two nodes that agree on preshared keys over a network that loses, duplicates, reorders and replays
//! messages.

// Lints that exempt tests recognize them by this attribute.
#[cfg(test)]
mod epochs;
#[cfg(test)]
mod explore;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod world;
