//! The machine that finds paths, run for both ends of a pair in a model of networks, NATs and WireGuard: with losses,
//! delays, restarts, moves and outages, until the world rests. Then the pair must have the best path that there is, both
//! ends must keep it, and nothing may have been tried on the slot that carried packets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::struct_excessive_bools, reason = "each is a switch of the model")]

// Lints that exempt tests recognize them by this attribute.
#[cfg(test)]
mod explore;
#[cfg(test)]
mod network;
#[cfg(test)]
mod node;
#[cfg(test)]
mod observers;
#[cfg(test)]
mod runs;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod world;
