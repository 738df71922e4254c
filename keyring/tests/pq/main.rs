//! Two nodes that agree on preshared keys over a network that loses, repeats, reorders and replays.

// Lints that spare tests know them by this attribute.
#[cfg(test)]
mod explore;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod world;
