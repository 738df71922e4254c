//! The wire between the hosts: one switch that all of them are plugged into, and the addresses and routes of each.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::address::{self, Family, IpVersion, OUTSIDE};
use crate::error::Error;
use crate::host::Host;
use crate::mounts::OUTER_PROC;
use crate::space::Space;

/// The switch: a bridge in a namespace of its own.
#[derive(Debug)]
pub(crate) struct Switch {
    space: Space,
    family: Family,
}

impl Switch {
    /// A switch that nothing is plugged into.
    pub(crate) fn create(family: Family) -> Result<Self, Error> {
        let space = Space::create("switch")?;
        // A switch sends nothing of its own; without this the bridge takes part in IPv6 discovery.
        let silent = || std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        space.run(silent)?.map_err(|source| Error::File {
            action: "write",
            path: "/proc/sys/net/ipv6/conf/default/disable_ipv6".into(),
            source,
        })?;
        space.ip_batch("link add br0 type bridge mcast_snooping 0\nlink set br0 up\n")?;
        Ok(Self { space, family })
    }

    /// Creates a host and connects it: addresses by its number, default routes via the outside host.
    pub(crate) fn plug(&self, name: &str, number: u8, mtu: u32, logs: &Path) -> Result<Host, Error> {
        let space = Space::create(name)?;
        let versions = self.family.versions();
        let addresses = versions.iter().map(|&version| address::underlay(number, version)).collect();
        let host = Host::new(number, space, addresses, logs);
        // No duplicate address detection: no other host can have them.
        host.sysctl("net/ipv6/conf/all/accept_ra", "0")?;
        host.sysctl("net/ipv6/conf/default/accept_ra", "0")?;
        host.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        self.space.ip_batch(&format!(
            "link add port{number} mtu {mtu} type veth peer name eth0 mtu {mtu} address {} netns {OUTER_PROC}/{}/ns/net\n\
             link set port{number} master br0\nlink set port{number} up\n",
            mac_text(host.mac()),
            host.pid()
        ))?;
        host.ip(&eth0_lines(number, versions))?;
        self.wait_carrier(&host)?;
        Ok(host)
    }

    /// Waits until frames pass in both directions: the kernel notices a carrier some time after the link is up, and
    /// until then it silently drops what is sent.
    fn wait_carrier(&self, host: &Host) -> Result<(), Error> {
        let (since, within) = (Instant::now(), Duration::from_secs(10));
        let port = format!("port{}", host.number());
        let shown = |space: &Space, link: &str| -> Result<String, Error> {
            let mut show = Command::new("ip");
            show.args(["-d", "-o", "link", "show", link]);
            let failed =
                |source| Error::Run { program: "ip link show".into(), host: space.name().to_owned(), source };
            let output = space.run(|| show.output())?.map_err(failed)?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        while since.elapsed() < within {
            let port = shown(&self.space, &port)?;
            let forwards = port.contains(" state UP ") && port.contains("bridge_slave state forwarding");
            if forwards && shown(host.space(), "eth0")?.contains(" state UP ") {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Err(Error::Timeout { what: format!("the carrier of {}", host.name()), within })
    }

    /// Takes a host's cable out; the other end goes too.
    pub(crate) fn unplug(&self, host: &Host) -> Result<(), Error> {
        self.space.ip_batch(&format!("link del port{}\n", host.number()))
    }

    /// Stops or restores all traffic of one host, as a broken cable does.
    pub(crate) fn set_cable(&self, host: &Host, up: bool) -> Result<(), Error> {
        self.space.ip_batch(&format!(
            "link set port{} {}\n",
            host.number(),
            if up { "up" } else { "down" }
        ))?;
        if up { self.wait_carrier(host) } else { Ok(()) }
    }
}

fn eth0_lines(number: u8, versions: &[IpVersion]) -> String {
    let mut lines = String::from("link set eth0 up\n");
    for &version in versions {
        let nodad = if version == IpVersion::V6 { "nodad" } else { "" };
        let _infallible = writeln!(lines, "addr add {} dev eth0 {nodad}", address::underlay(number, version));
        if number != OUTSIDE {
            let gateway = address::underlay(OUTSIDE, version).ip();
            let _infallible = writeln!(lines, "route add default via {gateway}");
        }
    }
    lines
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
