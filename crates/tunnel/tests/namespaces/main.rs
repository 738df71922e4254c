//! Interfaces with real TUN devices and sockets, in network namespaces of their own. Needs root, and the programs
//! `ip`, `ping`, `wg` and `wireguard-go`.
#![expect(clippy::unwrap_used, reason = "in a test, also outside of its functions, a failure is a panic")]

mod bare;
mod bulk;
mod hostile;
mod interface;
mod interop;
mod lab;
