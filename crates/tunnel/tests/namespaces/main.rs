//! Interfaces with real TUN devices and sockets, in network namespaces of their own. Needs root, and the programs
//! `ip`, `ping`, `wg` and `wireguard-go`.

mod bare;
mod interface;
mod interop;
mod lab;
