//! Errors of this crate: operation, subject, and the kernel's own number.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use netlink::NetlinkError;
use plan::network::{LinkName, Route, Rule};

/// What an operation was about.
#[derive(Clone, Debug)]
pub enum Subject {
    /// The guard's table.
    Guard,
    /// Other programs' filters.
    Filters,
    /// The table of host ports.
    HostPorts,
    /// A link.
    Link(LinkName),
    /// All links.
    Links,
    /// An address on a link.
    Address(LinkName, ipnetwork::IpNetwork),
    /// A route.
    Route(Box<Route>),
    /// All routes.
    Routes,
    /// The route to an address.
    RouteTo(IpAddr),
    /// A policy rule.
    Rule(Rule),
    /// All policy rules.
    Rules,
    /// A veth pair.
    Veth(String),
    /// Connections that the kernel tracks.
    Connections,
    /// Changes in the kernel.
    Changes,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guard => f.write_str("table inet meshd"),
            Self::Filters => f.write_str("chains of iptables and nftables"),
            Self::HostPorts => f.write_str("table inet meshd-ports"),
            Self::Link(link) => write!(f, "link {link}"),
            Self::Links => f.write_str("links"),
            Self::Address(link, address) => write!(f, "address {address} on {link}"),
            Self::Route(route) => write!(f, "route {route}"),
            Self::Routes => f.write_str("routes"),
            Self::RouteTo(address) => write!(f, "route to {address}"),
            Self::Rule(rule) => write!(f, "rule {rule}"),
            Self::Rules => f.write_str("rules"),
            Self::Veth(name) => write!(f, "veth {name}"),
            Self::Connections => f.write_str("tracked connections"),
            Self::Changes => f.write_str("changes of links, addresses, routes, rules and nft tables"),
        }
    }
}

/// Why something on the host could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel refused, netlink could not be reached, or its answer could not be read.
    #[error("{operation}: {subject}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// On what.
        subject: Subject,
        /// The cause.
        source: NetlinkError,
    },
    /// The connection to the kernel ended.
    #[error("{operation}: {subject}: the netlink connection has ended")]
    Ended {
        /// What was tried.
        operation: &'static str,
        /// On what.
        subject: Subject,
    },
    /// A link is not there.
    #[error("{operation}: there is no link {link}")]
    NoLink {
        /// What was tried.
        operation: &'static str,
        /// The link.
        link: LinkName,
    },
    /// A guard without a cluster range would guard nothing.
    #[error("put the guard in place: expected at least one cluster range")]
    EmptyGuard,
    /// The guard's table belongs to a socket of another process, so nobody else can change it.
    #[error(
        "put in place: {}: another process owns the table, by the netlink socket with port ID {port}: is a former meshd \
         still running?",
        Subject::Guard
    )]
    GuardOwned {
        /// The port ID of that socket: as a rule the number of its process.
        port: u32,
        /// The cause.
        source: NetlinkError,
    },
    /// A kernel setting could not be read or written.
    #[error("{operation} {}: expected a writable directory of settings (in a container: option sysctl-dir)", path.display())]
    Sysctl {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Threaded NAPI could not be enabled for a link.
    #[error("{operation} {}: expected Linux 5.12 or newer and the node's /sys, writable", path.display())]
    Threads {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A name that is no kernel setting.
    #[error("kernel setting {name:?}: expected a path below /proc/sys/net without dots")]
    SysctlName {
        /// The name.
        name: String,
    },
    /// A network namespace could not be opened or entered.
    #[error("{operation} network namespace {}", path.display())]
    Namespace {
        /// What was tried.
        operation: &'static str,
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl HostError {
    pub(crate) fn netlink(
        operation: &'static str,
        subject: Subject,
        source: impl Into<NetlinkError>,
    ) -> Self {
        Self::Netlink { operation, subject, source: source.into() }
    }

    pub(crate) fn rtnetlink(operation: &'static str, subject: Subject, error: &rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::netlink(operation, subject, message.to_io()),
            _ => Self::Ended { operation, subject },
        }
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } | Self::GuardOwned { source, .. } => source.errno(),
            Self::Sysctl { source, .. } | Self::Namespace { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the kernel refused because the object exists already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(rustix::io::Errno::EXIST.raw_os_error())
    }

    /// Whether the kernel refused because there is no such object.
    pub fn is_missing(&self) -> bool {
        use rustix::io::Errno;
        let missing = [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::ADDRNOTAVAIL];
        self.errno().is_some_and(|errno| missing.iter().any(|known| known.raw_os_error() == errno))
    }
}
