//! The node daemon of a mesh and its command line.
//!
//! It publishes this node's public keys as annotations, watches all Nodes, and keeps the node's network as
//! `plan` wants it. Decisions are made in `plan`, keys are in `keyring`, packets are handled by `tunnel` or the
//! kernel, which is behind `linux` and `kernel-wireguard`; this crate connects them.

pub mod api;
mod cache;
mod chain;
pub mod channel;
pub mod cli;
pub mod config;
mod control;
mod daemon;
pub mod device;
mod document;
mod fault;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod harden;
mod http;
mod logging;
mod metrics;
mod state_file;
mod uninstall;
