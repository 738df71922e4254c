//! Looks up the names that stand for endpoints, by tasks whose answers come back to the loop.
//!
//! The daemon is a static program in an image without a C library, so it asks the DNS servers of `/etc/resolv.conf` itself. The
//! file is read before each lookup: it changes when a node gets another address. Names are fully qualified, since search
//! domains differ between nodes.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::NetError;
use plan::names::HostName;
use tokio::time::timeout;

/// How long a lookup may take: longer than the resolver's two tries of each server, in most cases.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why a name can't be resolved.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    /// There is no DNS server to ask.
    #[error("read the DNS servers from /etc/resolv.conf: expected at least one line `nameserver ADDRESS`")]
    Configuration(#[source] NetError),
    /// The servers did not answer, or with an error.
    #[error("look up the addresses of {name}")]
    Lookup {
        /// The name.
        name: HostName,
        /// The cause.
        source: NetError,
    },
    /// The servers did not answer in time.
    #[error("look up the addresses of {name}: no answer within {} s", TIMEOUT.as_secs())]
    Silent {
        /// The name.
        name: HostName,
    },
}

/// The addresses that a name stands for now, of both families.
pub(super) async fn look_up(name: &HostName) -> Result<Vec<IpAddr>, LookupError> {
    let mut builder = TokioResolver::builder_tokio().map_err(LookupError::Configuration)?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let failed = |source| LookupError::Lookup { name: name.clone(), source };
    let resolver = builder.build().map_err(failed)?;
    // The dot makes it fully qualified.
    match timeout(TIMEOUT, resolver.lookup_ip(format!("{name}."))).await {
        Ok(answer) => Ok(answer.map_err(failed)?.iter().collect()),
        Err(_) => Err(LookupError::Silent { name: name.clone() }),
    }
}
