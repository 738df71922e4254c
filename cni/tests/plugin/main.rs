//! The plugin's binary as a runtime calls it, in network namespaces of the test's own.
//!
//! A [`node::Node`] is a network and mount namespace in place of a node, a [`node::Pod`] a network namespace
//! as a runtime makes it. Both live in a process that ends with the test, so tests run in parallel and
//! leave nothing. They need root, `ip`, `nsenter`, `unshare`, `setpriv` and `ping`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on has failed")]

mod add;
mod check;
mod crash;
mod del;
mod errors;
mod former;
mod gone;
mod loopback;
mod node;
mod ports;
mod routes;
