//! The ports on which this node listens for the mesh; host ports of pods never take them.

use std::collections::BTreeSet;

use keyring::Slot;
use linux::host_ports::{OwnPorts, Protocol};

use crate::config::Config;

/// The ports. Those of leases are among them while the node is a relay: on other nodes nobody listens there. Health and
/// metrics count where they are served on another address than loopback, which is never led to a pod.
pub(super) fn own_ports(config: &Config, is_relay: bool) -> BTreeSet<OwnPorts> {
    let udp = |first, last| OwnPorts { protocol: Protocol::Udp, first, last };
    let mut own: BTreeSet<OwnPorts> =
        Slot::ALL.into_iter().map(|slot| *config.ports.get(slot)).map(|port| udp(port, port)).collect();
    own.insert(udp(config.control_port, config.control_port));
    if is_relay {
        own.insert(udp(*config.relay_ports.start(), *config.relay_ports.end()));
    }
    if !config.listen.ip().is_loopback() {
        let port = config.listen.port();
        own.insert(OwnPorts { protocol: Protocol::Tcp, first: port, last: port });
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, from_sources};

    fn texts(config: &Config, is_relay: bool) -> Vec<String> {
        let text = |own: &OwnPorts| format!("{} {}-{}", own.protocol, own.first, own.last);
        own_ports(config, is_relay).iter().map(text).collect()
    }

    #[test]
    fn every_listener_is_named() {
        let required =
            [("node-name", "n1"), ("cluster-cidr", "10.244.0.0/16"), ("service-cidr", "10.96.0.0/16")];
        let flags = required.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut config = from_sources(&Sources { flags, ..Sources::default() }).unwrap();
        let always = ["udp 51840-51840", "udp 51841-51841", "udp 51842-51842"];
        assert_eq!(texts(&config, false), always);
        config.listen = "0.0.0.0:9384".parse().unwrap();
        let all = ["tcp 9384-9384", "udp 24000-28095", always[0], always[1], always[2]];
        assert_eq!(texts(&config, true), all);
    }
}
