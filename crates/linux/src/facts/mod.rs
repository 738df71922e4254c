//! Reads what the node is like beside the mesh: its own network, other programs' routes, rules, filters and files. Nothing
//! here changes anything.

mod legacy;
mod links;
mod own_network;
mod routing;
mod system;

use std::collections::BTreeSet;
use std::path::Path;

use plan::host::{DroppingChain, Facts};
use plan::network::LinkName;

use crate::error::HostError;
use crate::{FilterState, Handle, LastAnswer, POD_LINK_PREFIX, guard, sysctl};

/// Where facts are read, apart from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct FactSources<'a> {
    /// Interfaces of the mesh.
    pub mesh_links: [&'a LinkName; 2],
    /// The cluster's pod ranges.
    pub cluster: &'a [ipnetwork::IpNetwork],
    /// The container runtime's directory of network configurations.
    pub cni_conf_dir: &'a Path,
    /// The container runtime's directory of plugins.
    pub cni_bin_dir: &'a Path,
}

impl Handle {
    /// Reads the node. What can't be read for want of a file or of permission to see it counts as not there. Chains that
    /// drop are not read again while nothing in nftables has changed.
    pub async fn facts(
        &self,
        sources: FactSources<'_>,
        (filters, last_chains): (FilterState, &mut LastAnswer<(), Vec<DroppingChain>>),
    ) -> Result<Facts, HostError> {
        let found_links = self.link_messages().await?;
        let routing = self.routing(sources, &links::names(&found_links)).await?;
        let links: Vec<&str> =
            sources.mesh_links.iter().map(|link| link.as_str()).chain([POD_LINK_PREFIX]).collect();
        let mut chains = last_chains.get(filters, &(), || guard::dropping_chains(&links))?;
        chains.extend(legacy::dropping_chains(&links));
        let mut facts = Facts {
            chains,
            routes: routing.routes,
            veths: links::foreign_veths(&found_links, sources.mesh_links),
            default_links: routing.default_links,
            rules: self.foreign_rules().await?,
            cni_files: system::cni_files(sources.cni_conf_dir),
            closed_directories: [sources.cni_conf_dir, sources.cni_bin_dir]
                .into_iter()
                .filter_map(system::closed_to_this_process)
                .collect(),
            tun: Path::new("/dev/net/tun").exists(),
            unix_seconds: system::unix_seconds(),
            managers: system::managers(Path::new("/"), &sources.mesh_links),
            selinux: system::selinux_context(),
            ..Facts::default()
        };
        let filters = sources.mesh_links.iter().map(|link| link.as_str());
        let filters = filters.chain(facts.default_links.iter().map(String::as_str)).chain(["all"]);
        let names = filters.map(|link| format!("net/ipv4/conf/{link}/rp_filter"));
        let names: BTreeSet<String> =
            names.chain(["net/ipv6/conf/default/disable_ipv6".to_owned()]).collect();
        for name in names {
            if let Some(value) = sysctl::read(&name)? {
                facts.sysctls.insert(name, value);
            }
        }
        for link in routing.router_links {
            let taken_by_kernel = sysctl::read(&format!("net/ipv6/conf/{link}/accept_ra"))?;
            if taken_by_kernel.is_some_and(|value| value != "0") {
                facts.router_links.insert(link);
            }
        }
        Ok(facts)
    }
}
