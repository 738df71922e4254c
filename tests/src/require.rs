//! What a test needs from the machine, checked at its start: the test fails with what is missing and what to do about it.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::kube::assets::Assets;
use crate::sandbox;
use crate::space::Space;

/// Something that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Network, mount, host-name and process namespaces with the right to create links in them.
    Namespaces,
    /// `/dev/net/tun`.
    Tun,
    /// nftables in the kernel, and the `nft` command.
    Nftables,
    /// The `wg` command.
    WireGuardTools,
    /// `kube-apiserver` and `etcd`.
    KubeApiserver,
    /// WireGuard in the kernel.
    KernelWireguard,
    /// The reference CNI plugins `ptp` and `host-local` in [`REFERENCE_PLUGINS`].
    ReferencePlugins,
}

/// Where Debian puts the reference CNI plugins.
pub const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

impl Need {
    /// Why the machine does not have it, or nothing if it does.
    fn lack(self) -> Option<String> {
        match self {
            Self::Namespaces => Space::create("probe").err().map(|error| crate::error::chain(&error)),
            Self::Tun => sandbox::check_tun().err().map(|error| crate::error::chain(&error)),
            Self::Nftables => lack_command("nft", "nftables"),
            Self::WireGuardTools => lack_command("wg", "wireguard-tools"),
            Self::KubeApiserver => Assets::find().err().map(|error| crate::error::chain(&error)),
            Self::KernelWireguard => {
                let made = Space::create("probe")
                    .and_then(|space| space.ip_batch("link add probe type wireguard\n"));
                let hint = "run it in a virtual machine: make test-kernel";
                made.err().map(|error| format!("{}; {hint}", crate::error::chain(&error)))
            }
            Self::ReferencePlugins => ["ptp", "host-local"].iter().find_map(|name| {
                let path = Path::new(REFERENCE_PLUGINS).join(name);
                let hint = "install the package containernetworking-plugins, or run scripts/setup.sh test";
                (!path.is_file()).then(|| format!("no {}; {hint}", path.display()))
            }),
        }
    }
}

/// Panics, naming each need that the machine does not meet and what to do about it.
///
/// # Panics
///
/// That is what it is for: a test that can't run has failed.
#[track_caller]
pub fn all(needs: &[Need]) {
    let lacks: Vec<_> =
        needs.iter().filter_map(|need| need.lack().map(|why| format!("{need}: {why}"))).collect();
    assert!(lacks.is_empty(), "this machine lacks what the test needs:\n  {}", lacks.join("\n  "));
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "namespaces",
            Self::Tun => "tunnel devices",
            Self::Nftables => "nftables",
            Self::WireGuardTools => "wireguard-tools",
            Self::KubeApiserver => "kube-apiserver and etcd",
            Self::KernelWireguard => "WireGuard in the kernel",
            Self::ReferencePlugins => "reference CNI plugins",
        })
    }
}

fn lack_command(command: &str, package: &str) -> Option<String> {
    let run = Command::new(command).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    run.err().map(|error| {
        format!("{command}: {error}; install the package {package}, or run scripts/setup.sh test")
    })
}
