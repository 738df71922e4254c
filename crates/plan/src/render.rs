//! A plan as text for people: one line a step, `+` for what is added, `-` for what goes, `*` for a change.

use std::fmt;

use crate::network::{MeshInput, Route, Rule, Via};
use crate::op::Op;

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetGuard(guard) => write!(
                f,
                "* guard    cluster {}; pods here {}; not masqueraded {}; closed {}",
                list(&guard.cluster),
                list(&guard.local_pods),
                list(&guard.no_masquerade),
                list(&guard.closed)
            ),
            Self::SetAccepts(accepts) => {
                let (links, cluster) = (list(&accepts.mesh_links), list(&accepts.cluster));
                write!(f, "* accept   pods and {links} in iptables' FORWARD and INPUT; cluster {cluster}")?;
                match accepts.input {
                    MeshInput::Everything => Ok(()),
                    MeshInput::Control(port) => write!(f, "; in INPUT UDP {port} and ICMP alone"),
                }
            }
            Self::SetSysctl { name, value } => write!(f, "* sysctl   {name} = {value}"),
            Self::CreateDevice { slot, link, mtu } => write!(f, "+ device   {slot}: {link}, MTU {mtu}"),
            Self::RemoveDevice { slot, link } => write!(f, "- device   {slot}: {link}"),
            Self::SetKey { slot, key } => write!(f, "* key      {slot}: {}", key.fingerprint()),
            Self::SetPort { slot, port } => write!(f, "* port     {slot}: {port}"),
            Self::SetMtu { link, mtu } => write!(f, "* mtu      {link}: {mtu}"),
            Self::AddAddress { link, address } => write!(f, "+ address  {link}: {address}"),
            Self::RemoveAddress { link, address } => write!(f, "- address  {link}: {address}"),
            Self::SetUp { link } => write!(f, "* up       {link}"),
            Self::AddPeer { slot, key, peer } => {
                write!(f, "+ peer     {slot}: {} ", key.fingerprint())?;
                match peer.endpoint {
                    Some(endpoint) => write!(f, "at {endpoint}")?,
                    None => f.write_str("at an unknown endpoint")?,
                }
                write!(f, ", allowed {}", list(&peer.allowed_ips))?;
                if peer.roaming {
                    f.write_str(", roaming")?;
                }
                peer.keepalive.map_or(Ok(()), |seconds| write!(f, ", keepalive {seconds} s"))?;
                peer.preshared.map_or(Ok(()), |id| write!(f, ", preshared key {id}"))
            }
            Self::UpdatePeer { slot, key, change } => {
                write!(f, "* peer     {slot}: {}{}", key.fingerprint(), change)
            }
            Self::RemovePeer { slot, key } => write!(f, "- peer     {slot}: {}", key.fingerprint()),
            Self::SetRoute(route) => write!(f, "+ route    {route}"),
            Self::RemoveRoute(route) => write!(f, "- route    {route}"),
            Self::AddRule(rule) => write!(f, "+ rule     {rule}"),
            Self::RemoveRule(rule) => write!(f, "- rule     {rule}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} table {} metric {}", self.destination, self.table, self.metric)?;
        match &self.via {
            Via::Unreachable => f.write_str(" unreachable"),
            Via::Link { link, source, mtu } => {
                write!(f, " dev {link}")?;
                source.map_or(Ok(()), |source| write!(f, " src {source}"))?;
                mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        for (word, prefix) in [("from", self.from), ("to", self.to)] {
            if prefix.prefix() > 0 {
                write!(f, " {word} {prefix}")?;
            }
        }
        write!(f, " lookup {}", self.table)
    }
}

fn list<T: fmt::Display>(items: &std::collections::BTreeSet<T>) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
