//! The node daemon of a mesh and its command line.
//!
//! It publishes this node's public keys as annotations, watches all Nodes, and keeps the node's network as
//! `plan` says it should be. Decisions are made in `plan`, keys live in `keyring`, packets in `tunnel` or the
//! kernel, which is behind `linux` and `kernel-wireguard`; here they are wired together.

pub mod api;
mod cache;
mod chain;
mod channel;
pub mod cli;
pub mod config;
mod control;
mod daemon;
pub mod device;
mod fault;
mod file;
mod harden;
mod http;
mod logging;
mod metrics;
pub mod status;
mod uninstall;
