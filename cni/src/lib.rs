//! The CNI plugin of the mesh: attaches pods to their node and allocates their addresses from its podCIDRs.
//!
//! It runs for milliseconds, once for each pod that is created or deleted. What it needs to know about the mesh is in
//! one file that the daemon writes ([`node_file`]); it contacts nothing else.
//!
//! ```text
//!   runtime ──environment, JSON──▶ call ──▶ command ──▶ store (one file a pod, under a lock)
//!   runtime ◀──────result, error────────────────┘  ├──▶ linux::veth (links, addresses, routes)
//!                                                  └──▶ linux::host_ports (one nft table)
//! ```
//!
//! The protocol is that of the CNI specification, versions 0.4.0, 1.0.0 and 1.1.0.

mod attachment;
mod call;
mod child;
mod command;
mod conf;
pub mod conflist;
mod error;
mod former_portmap;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod host_ports;
mod ipam;
pub mod loopback;
pub mod node_file;
pub mod pod_routes;
mod ports;
pub mod probe;
mod result;
mod store;
mod version;

use std::io::Read;
use std::path::Path;

pub use conf::STATE_DIR;
pub use error::CniError;
pub use version::SpecVersion;

use call::{Call, CommandName};

/// Longest configuration that is read, in bytes. Earlier results and lists of attachments are part of it.
const MAX_INPUT: u64 = 4 << 20;

/// Removes the plugin's own state; returns whether there was any. Fails while pods are attached: their addresses would
/// be allocated again.
pub fn forget(state_dir: &Path) -> Result<bool, CniError> {
    store::forget(state_dir)
}

/// Performs one call, with the runtime's environment variables and standard input. Returns what is to be printed on
/// standard output, for a failure the error object.
pub fn run(environment: impl Fn(&str) -> Option<String>, input: impl Read) -> Result<String, String> {
    let mut text = Vec::new();
    let outcome = read(input, &mut text)
        .and_then(|()| Call::new(&environment, &text))
        .and_then(|call| command::run(&call));
    outcome.map_err(|error| {
        let command = environment("CNI_COMMAND").and_then(|name| CommandName::parse(&name));
        error.render(&text, command == Some(CommandName::Status))
    })
}

fn read(input: impl Read, text: &mut Vec<u8>) -> Result<(), CniError> {
    input.take(MAX_INPUT + 1).read_to_end(text)?;
    if text.len() as u64 > MAX_INPUT {
        return Err(CniError::InputTooLong { limit: MAX_INPUT });
    }
    Ok(())
}
