//! The table of a relay with two genuine ends, and with everybody else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod forgery;
mod leases;
mod world;
