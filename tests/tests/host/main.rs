//! Nodes as they are in the field: each case is a kind of host on which an earlier version said "ready" and nothing worked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod own_network;
