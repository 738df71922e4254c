//! One NAT router: a host with a link `wan` to where its packets go, and a bridge `lan` for its nodes.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::rules::{self, Mapping};
use super::{Site, conntrack, next, nth, six};
use crate::error::Error;
use crate::host::Host;

/// A site's router.
#[derive(Debug)]
pub struct Router {
    host: Host,
    site: Site,
    /// The router that its own is connected to, by its place in the list; none for the backbone.
    upper: Option<usize>,
    /// The link at the upper end.
    link: String,
    translation: Mutex<Translation>,
}

#[derive(Debug)]
struct Translation {
    external: Ipv4Addr,
    mappings: Vec<Mapping>,
}

impl Router {
    pub(super) fn new(
        host: Host,
        site: Site,
        upper: Option<usize>,
        link: String,
        external: Ipv4Addr,
    ) -> Self {
        let translation = Mutex::new(Translation { external, mappings: Vec::new() });
        Self { host, site, upper, link, translation }
    }

    /// The site that it belongs to.
    pub const fn site(&self) -> &Site {
        &self.site
    }

    /// Its address on `wan`, which is a public one unless it is behind another router.
    pub fn external(&self) -> IpAddr {
        self.lock().external.into()
    }

    /// The address of a node of this site that packets from outside may be sent to; none unless the NAT is 1:1.
    pub fn external_of(&self, node: &Host) -> Option<IpAddr> {
        let translation = self.lock();
        let mapping = translation.mappings.iter().find(|mapping| mapping.number == node.number());
        mapping.map(|mapping| mapping.external.into())
    }

    /// Forgets all mappings and connections, as a router that restarts does.
    pub fn flush(&self) -> Result<(), Error> {
        self.apply(&self.lock())
    }

    pub(super) const fn upper(&self) -> Option<usize> {
        self.upper
    }

    pub(super) fn link(&self) -> &str {
        &self.link
    }

    /// The address of its end of the site's LAN; none where there is IPv6 alone.
    pub(super) fn gateway(&self) -> Option<Ipv4Addr> {
        self.site.lan.map(|lan| nth(lan, 1))
    }

    /// Replaces its own address outside; returns the former and the new one. Routes to them are the caller's affair.
    pub(super) fn renumber(&self) -> Result<(Ipv4Addr, Ipv4Addr), Error> {
        let mut translation = self.lock();
        let (former, new) = (translation.external, next(translation.external, 1));
        self.host.ip(&format!("addr add {new}/32 dev wan\naddr del {former}/32 dev wan\n"))?;
        translation.external = new;
        self.apply(&translation)?;
        Ok((former, new))
    }

    /// Gives a node's mapping other addresses; without the node, a mapping is added.
    pub(super) fn map(&self, mapping: Mapping) -> Result<(), Error> {
        let mut translation = self.lock();
        let former = translation.mappings.iter().find(|known| known.number == mapping.number).copied();
        let is_new = former.is_none_or(|former| former.external != mapping.external);
        if is_new {
            self.host.ip(&format!("addr add {}/32 dev wan\n", mapping.external))?;
            if let Some(former) = former {
                self.host.ip(&format!("addr del {}/32 dev wan\n", former.external))?;
            }
        }
        translation.mappings.retain(|known| known.number != mapping.number);
        translation.mappings.push(mapping);
        self.apply(&translation)
    }

    fn apply(&self, translation: &Translation) -> Result<(), Error> {
        let rules = rules::render(&self.site.nat, translation.external, &translation.mappings);
        let six = self.site.six.map(|_| six::rules(&self.site.nat)).unwrap_or_default();
        self.host.command("nft").args(["-f", "-"]).input(rules + &six).run()?;
        let failed = |source| Error::Socket {
            action: "forget the connections",
            host: self.host.name().to_owned(),
            source,
        };
        self.host.net().run(conntrack::flush)?.map_err(failed)
    }

    fn lock(&self) -> MutexGuard<'_, Translation> {
        self.translation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Router {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}
