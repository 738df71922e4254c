//! Nodes, pods, an underlay, captures and API servers in network namespaces: a cluster's machines in one process.
//!
//! ```text
//!                 switch (bridge)
//!      ┌────────┬───────┴┬─────────┬──────────┐
//!    eth0     eth0     eth0      eth0       eth0
//!   ┌─n1─┐   ┌─n2─┐   ┌─n3─┐   ┌─api──┐   ┌outside┐ default gateway of all, "the internet" behind it
//!   │pods│   │pods│   │pods│   │Nodes │   └───────┘
//!   └────┘   └────┘   └────┘   └──────┘
//! ```
//!
//! With [`Builder::sites`] the nodes are in networks of their own behind NAT routers instead; see [`nat`].
//!
//! Every host has network, mount, host-name and process namespaces of its own, so that daemons run there with their
//! default paths and ports, several labs run at once, and nothing is left when a lab is dropped, or when the process
//! that created it is killed.
//!
//! ```no_run
//! use lab::{Family, Flow, IpVersion, Lab, Protocol};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lab = Lab::builder().nodes(2).family(Family::Dual).build()?;
//! let capture = lab.capture()?;
//! let meshd: Vec<_> = lab
//!     .nodes()
//!     .iter()
//!     .map(|node| node.command(lab::bin("meshd")?).arg("run").daemon("meshd"))
//!     .collect::<Result<_, _>>()?;
//! let (a, b) = (lab.node("n1")?.pod("a")?, lab.node("n2")?.pod("b")?);
//! let seen = Flow::new(&a.end(), &b.end(), IpVersion::V4, Protocol::Tcp).must_pass();
//! assert_eq!(seen, a.address(IpVersion::V4)?);
//! capture.report().assert_sealed();
//! # Ok(())
//! # }
//! ```

pub mod address;
mod bin_path;
pub mod capture;
pub mod classify;
pub mod cluster;
pub mod cni;
mod command;
mod daemon;
mod error;
pub mod flow;
pub mod frame;
mod host;
pub mod inventory;
pub mod kube;
mod lab;
pub mod mesh;
mod metrics;
mod mounts;
pub mod nat;
pub mod needle;
pub mod netlink;
mod node;
mod nodeapi;
mod packet_socket;
pub mod ping;
mod plain;
pub mod require;
pub mod sandbox;
mod space;
pub mod stream;
pub mod threads;
mod underlay;

pub use address::{Family, IpVersion};
pub use bin_path::{bin, target_dir};
pub use capture::Capture;
pub use command::Command;
pub use daemon::Daemon;
pub use error::{Error, chain};
pub use flow::{Flow, ProbeResult, Protocol};
pub use host::{End, Host};
pub use inventory::Inventory;
pub use kube::{ApiKind, ApiServer};
pub use lab::{Builder, Lab};
pub use metrics::metrics;
pub use mounts::PRIVATE;
pub use node::{KUBECONFIG, Node, Pod};
pub use rustix::process::Signal;
pub use space::NetNs;
pub use stream::{Connection, Sink, Stream};
