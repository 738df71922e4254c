//! A plain UDP forwarder for nodes that cannot reach each other directly.
//!
//! The relay leases one pair of ports to each pair of nodes and slot of their tunnel. What one node sends to its port goes
//! out of the other's port to where that node is. The datagrams are WireGuard's, encrypted from end to end; the relay has
//! none of the keys and reads only the header's clear fields. The crate knows nodes by an opaque name, and leases,
//! addresses and datagrams; not the mesh, the API server, or who may be a relay.
//!
//! [`Relay`] is the table: pure, with time as an argument. [`Forwarder`] is the shell: sockets and a thread.

mod bucket;
mod forwarder;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod header;
mod leg;
mod table;

pub use forwarder::{Counters, Forwarder, ForwarderError};
pub use table::{Dropped, Forward, Grant, LIFE, Limits, MAX_LEASES, REFRESH, Refusal, Relay, SavedLease};
