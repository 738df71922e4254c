//! What a test needs from the machine, said at its start: what is missing fails the test with what to do about it.
//!
//! Only kernel WireGuard may be missing without failing; such a skip is printed and written down for the report.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::bin_path;
use crate::kube::assets::Assets;
use crate::sandbox;
use crate::space::Space;

/// Something that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Network, mount, host-name and process namespaces with the right to make links in them.
    Namespaces,
    /// `/dev/net/tun`.
    Tun,
    /// nftables in the kernel, and the `nft` command.
    Nftables,
    /// The `wg` command.
    WireGuardTools,
    /// `kube-apiserver` and `etcd`.
    KubeApiserver,
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

/// Whether the kernel has WireGuard. If not, says loudly that `test` is skipped, and notes it in
/// `target/test/skips.jsonl` for the report.
pub fn kernel_wireguard(test: &str) -> bool {
    let probe = || {
        let space = Space::create("probe").ok()?;
        space.ip_batch("link add probe type wireguard\n").ok()
    };
    let there = probe().is_some();
    if !there {
        let reason = "this kernel has no WireGuard";
        eprintln!("SKIPPED {test}: {reason}");
        if let Err(error) = note_skip(test, reason) {
            eprintln!("the skip could not be noted in {}: {error}", skips_path().display());
        }
    }
    there
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "namespaces",
            Self::Tun => "tunnel devices",
            Self::Nftables => "nftables",
            Self::WireGuardTools => "wireguard-tools",
            Self::KubeApiserver => "kube-apiserver and etcd",
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

fn skips_path() -> PathBuf {
    bin_path::target_dir().unwrap_or_else(|_no_exe| "target".into()).join("test/skips.jsonl")
}

fn note_skip(test: &str, reason: &str) -> std::io::Result<()> {
    let path = skips_path();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // One write call a line, so that tests that run at once don't mix theirs.
    let line = format!("{}\n", json!({"test": test, "reason": reason}));
    OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}
