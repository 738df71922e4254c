//! The wire between the hosts: one switch that all of them are plugged into, with the addresses and routes of each, or
//! sites behind routers (see [`nat`](crate::nat)).

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::address::{self, API, Family, IpVersion, OUTSIDE, mac_text};
use crate::error::Error;
use crate::host::Host;
use crate::mounts::OUTER_PROC;
use crate::nat::Backbone;
use crate::space::Space;

/// What the hosts of a lab are plugged into.
#[derive(Debug)]
pub(crate) enum Underlay {
    /// All into one switch.
    Switch(Switch),
    /// Nodes into the networks of their sites, the others into the backbone.
    Backbone(Backbone),
}

impl Underlay {
    /// Creates a host and connects it.
    pub(crate) fn plug(&self, name: &str, number: u8, mtu: u32, logs: &Path) -> Result<Host, Error> {
        match self {
            Self::Switch(switch) => switch.plug(name, number, number, mtu, logs),
            Self::Backbone(backbone) if [OUTSIDE, API].contains(&number) => {
                backbone.plug_public(name, number, logs)
            }
            Self::Backbone(backbone) => backbone.plug_node(name, number, mtu, logs),
        }
    }

    /// Takes a host's cable out; the other end goes too.
    pub(crate) fn unplug(&self, host: &Host) -> Result<(), Error> {
        let (space, port) = self.port(host);
        space.ip_batch(&format!("link del {port}\n"))
    }

    /// Stops or restores all traffic of one host, as a broken cable does.
    pub(crate) fn set_cable(&self, host: &Host, up: bool) -> Result<(), Error> {
        let (space, port) = self.port(host);
        space.ip_batch(&format!("link set {port} {}\n", if up { "up" } else { "down" }))?;
        match self {
            Self::Switch(_) if up => wait_forwarding(space, &port, host),
            Self::Backbone(_) if up => wait_up(space, &port),
            _ => Ok(()),
        }
    }

    /// The namespaces in which a host's link ends, and the name that the link has there.
    fn port(&self, host: &Host) -> (&Space, String) {
        match self {
            Self::Switch(switch) => (&switch.space, format!("port{}", host.number())),
            Self::Backbone(backbone) => {
                let (router, port) = backbone.port(host);
                (router.space(), port)
            }
        }
    }
}

/// The switch: a bridge in a namespace of its own.
#[derive(Debug)]
pub(crate) struct Switch {
    space: Space,
    family: Family,
    private: Vec<&'static str>,
}

impl Switch {
    /// A switch that nothing is plugged into. Its hosts have these private directories besides [`PRIVATE`](crate::PRIVATE).
    pub(crate) fn create(family: Family, private: Vec<&'static str>) -> Result<Self, Error> {
        let space = Space::create("switch")?;
        // A switch sends nothing of its own; without this the bridge takes part in IPv6 discovery.
        let silent = || std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        space.run(silent)?.map_err(|source| Error::File {
            action: "write",
            path: "/proc/sys/net/ipv6/conf/default/disable_ipv6".into(),
            source,
        })?;
        space.ip_batch("link add br0 type bridge mcast_snooping 0\nlink set br0 up\n")?;
        Ok(Self { space, family, private })
    }

    /// Creates a host and connects it: addresses that end in `last`, default routes via the outside host.
    pub(crate) fn plug(
        &self,
        name: &str,
        number: u8,
        last: u8,
        mtu: u32,
        logs: &Path,
    ) -> Result<Host, Error> {
        let space = Space::create_with(name, &self.private)?;
        let versions = self.family.versions();
        let addresses = versions.iter().map(|&version| address::underlay(last, version)).collect();
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
        host.ip(&eth0_lines(last, versions))?;
        wait_forwarding(&self.space, &format!("port{number}"), &host)?;
        Ok(host)
    }
}

impl Switch {
    /// Gives a host that is plugged in addresses that end in `last` instead of its own.
    pub(crate) fn renumber(&self, host: &Host, last: u8) -> Result<(), Error> {
        let versions = self.family.versions();
        let new: Vec<_> = versions.iter().map(|&version| address::underlay(last, version)).collect();
        let mut lines = String::new();
        for old in host.networks() {
            let _infallible = writeln!(lines, "addr del {old} dev eth0");
        }
        host.ip(&(lines + &address_lines(last, versions)))?;
        host.set_addresses(new);
        Ok(())
    }
}

/// Waits until frames pass in both directions between a host and a bridge: the kernel notices a carrier some time after the
/// link is up, and until then it silently drops what is sent.
pub(crate) fn wait_forwarding(bridge: &Space, port: &str, host: &Host) -> Result<(), Error> {
    wait_shown(bridge, port, &[" state UP ", "bridge_slave state forwarding"])?;
    wait_up(host.space(), "eth0")
}

/// Waits until a link has a carrier.
pub(crate) fn wait_up(space: &Space, link: &str) -> Result<(), Error> {
    wait_shown(space, link, &[" state UP "])
}

fn wait_shown(space: &Space, link: &str, wanted: &[&str]) -> Result<(), Error> {
    let (since, within) = (Instant::now(), Duration::from_secs(10));
    while since.elapsed() < within {
        let mut show = Command::new("ip");
        show.args(["-d", "-o", "link", "show", link]);
        let failed =
            |source| Error::Run { program: "ip link show".into(), host: space.name().to_owned(), source };
        let output = space.run(|| show.output())?.map_err(failed)?;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        if wanted.iter().all(|text| shown.contains(text)) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err(Error::Timeout { what: format!("the carrier of {link} of {}", space.name()), within })
}

fn eth0_lines(last: u8, versions: &[IpVersion]) -> String {
    format!("link set eth0 up\n{}", address_lines(last, versions))
}

/// Addresses of `eth0` that end in `last`, and default routes.
fn address_lines(last: u8, versions: &[IpVersion]) -> String {
    let mut lines = String::new();
    for &version in versions {
        let nodad = if version == IpVersion::V6 { "nodad" } else { "" };
        let _infallible = writeln!(lines, "addr add {} dev eth0 {nodad}", address::underlay(last, version));
        if last != OUTSIDE {
            let gateway = address::underlay(OUTSIDE, version).ip();
            // Removing an address takes a default route with it in IPv4 alone.
            let _infallible = writeln!(lines, "route replace default via {gateway}");
        }
    }
    lines
}
