//! How each fault is made and undone on a running mesh.

use lab::mesh::Mesh;
use lab::{Node, Signal};
use plan::annotation::names::STATE;
use serde_json::json;

use crate::Failure;
use crate::cluster;
use crate::schedule::{Fault, Random};

/// The file with a node's peers.
const PEERS: &str = "/var/lib/meshd/peers.json";
/// A Node that claims what belongs to another one.
const LIAR: &str = "liar";
/// A path that takes less than an Ethernet does.
const NARROW: u32 = 1400;

/// Makes a fault.
pub(crate) fn begin(mesh: &mut Mesh, fault: &Fault, random: &mut Random) -> Result<(), Failure> {
    match fault {
        Fault::DaemonDown { node, kill } => {
            Ok(mesh.stop(&name(*node), if *kill { Signal::KILL } else { Signal::TERM })?)
        }
        Fault::CacheDamaged { node } => {
            mesh.stop(&name(*node), Signal::KILL)?;
            let length = random.below(200);
            shell(mesh.node(&name(*node))?, &format!("test -f {PEERS} && truncate -s {length} {PEERS}"))
        }
        Fault::ApiDown => Ok(mesh.api().stop()?),
        Fault::NodeDeleted { node } => Ok(mesh.unregister(&name(*node))?),
        Fault::AnnotationDamaged { node } => {
            let value = ["", "{\"v\":1", "\u{0}", "[]"][usize::try_from(random.below(4)).unwrap_or_default()];
            let patch = json!({"metadata": {"annotations": {STATE: value}}});
            Ok(mesh.api().patch_node(&name(*node), &patch).map(drop)?)
        }
        Fault::AddressClaimed { node } => claim(mesh, &name(*node)),
        Fault::LinkDeleted { node, slot } => {
            shell(mesh.node(&name(*node))?, &format!("ip link delete mesh-{slot}"))
        }
        Fault::LinkDown { node, slot } => {
            shell(mesh.node(&name(*node))?, &format!("ip link set mesh-{slot} down"))
        }
        Fault::RoutesRemoved { node } => {
            let script = "for family in -4 -6; do for which in 'dev mesh-a' 'dev mesh-b' 'type unreachable'; do \
                          ip $family route flush table all proto 84 $which; done; done";
            shell(mesh.node(&name(*node))?, script)
        }
        Fault::PodRoutesRemoved { node } => {
            let script = "for family in -4 -6; do ip -o link | grep -o 'mveth[0-9a-f]*' | while read -r link; do \
                          ip $family route flush proto 84 dev $link; done; done";
            shell(mesh.node(&name(*node))?, script)
        }
        Fault::RulesRemoved { node } => {
            let script = "for family in -4 -6; do ip $family rule | sed -n 's/^\\(518[0-9]\\):.*/\\1/p' | \
                          while read -r priority; do ip $family rule del priority $priority; done; done";
            shell(mesh.node(&name(*node))?, script)
        }
        Fault::RouteAdded { node, to } => {
            let half = half_of(mesh, *to)?;
            let script = format!("ip route replace {half} $(ip route show default | cut -d' ' -f2-)");
            shell(mesh.node(&name(*node))?, &script)
        }
        Fault::PortBlocked { node, slot } => {
            let port = if *slot == 'a' { 51840 } else { 51841 };
            let rules = format!(
                "table inet blocked {{\n\
                 chain in {{ type filter hook prerouting priority -350; udp dport {port} drop\n}}\n\
                 chain out {{ type filter hook output priority -350; udp sport {port} drop\n}}\n}}\n"
            );
            Ok(mesh.node(&name(*node))?.command("nft").args(["-f", "-"]).input(rules).run().map(drop)?)
        }
        Fault::CableCut { node } => Ok(mesh.set_cable(mesh.node(&name(*node))?, false)?),
        Fault::SitesApart { one, other } => Ok(mesh.backbone().set_blocked(one, other, true)?),
        Fault::SiteRenumbered { site } => cluster::renumber(mesh, site),
        Fault::RouterFlushed { site } => Ok(mesh.backbone().router(site)?.flush()?),
        Fault::PathNarrow { site } => Ok(mesh.backbone().narrow(site, NARROW)?),
        Fault::Rotated { node, emergency } => {
            // A daemon that is down does not answer.
            mesh.request(&name(*node), if *emergency { "rotate-now" } else { "rotate" });
            Ok(())
        }
        Fault::PodsChurn { node } => churn(mesh.node(&name(*node))?, random),
    }
}

/// Undoes a fault that lasts.
pub(crate) fn end(mesh: &mut Mesh, fault: &Fault) -> Result<(), Failure> {
    match fault {
        Fault::DaemonDown { node, .. } | Fault::CacheDamaged { node } => cluster::start(mesh, &name(*node)),
        Fault::ApiDown => {
            mesh.api().resume()?;
            // What clouds' controllers could not say meanwhile.
            mesh.nodes().iter().try_for_each(|node| Ok(mesh.report_addresses(node)?))
        }
        Fault::NodeDeleted { node } => cluster::register(mesh, &name(*node)),
        Fault::AddressClaimed { .. } => Ok(mesh.api().delete_node(LIAR)?),
        Fault::RouteAdded { node, to } => {
            let half = half_of(mesh, *to)?;
            shell(mesh.node(&name(*node))?, &format!("ip route delete {half}"))
        }
        Fault::PortBlocked { node, .. } => shell(mesh.node(&name(*node))?, "nft delete table inet blocked"),
        Fault::CableCut { node } => {
            mesh.set_cable(mesh.node(&name(*node))?, true)?;
            Ok(())
        }
        Fault::SitesApart { one, other } => Ok(mesh.backbone().set_blocked(one, other, false)?),
        Fault::PathNarrow { site } => Ok(mesh.backbone().widen(site)?),
        Fault::AnnotationDamaged { .. }
        | Fault::LinkDeleted { .. }
        | Fault::LinkDown { .. }
        | Fault::RoutesRemoved { .. }
        | Fault::PodRoutesRemoved { .. }
        | Fault::RulesRemoved { .. }
        | Fault::SiteRenumbered { .. }
        | Fault::RouterFlushed { .. }
        | Fault::Rotated { .. }
        | Fault::PodsChurn { .. } => Ok(()),
    }
}

/// A Node with another one's addresses and no proof of anything.
fn claim(mesh: &Mesh, victim: &str) -> Result<(), Failure> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": LIAR, "annotations": {STATE: mesh.api().node(victim)?["metadata"]["annotations"][STATE]}},
        "spec": {"podCIDR": "10.244.77.0/24", "podCIDRs": ["10.244.77.0/24"]},
        "status": {"addresses": mesh.node(victim)?.listed_addresses()},
    });
    Ok(mesh.api().create_node(object).map(drop)?)
}

/// Some pods come and go, two of them by a plugin that is killed at some moment, as a runtime does after a timeout.
fn churn(node: &Node, random: &mut Random) -> Result<(), Failure> {
    let config = lab::cni::NetworkConfig::load(node)?;
    for number in 0..2 {
        let pod = format!("killed{number}");
        let (net, attachment) = node.sandbox(&pod)?;
        let plugin = config.plugins.first().ok_or("the CNI configuration has no plugin")?;
        let after = format!("0.{:03}", random.below(60));
        let script = format!("timeout -s KILL {after} {}/mesh-cni", lab::cni::PLUGIN_DIR);
        let path = attachment.netns.clone().unwrap_or_default();
        // Killed or not: DEL cleans up.
        let _killed = node
            .command("sh")
            .args(["-c", &script])
            .env("CNI_COMMAND", "ADD")
            .env("CNI_PATH", lab::cni::PLUGIN_DIR)
            .env("CNI_CONTAINERID", &attachment.container_id)
            .env("CNI_IFNAME", &attachment.ifname)
            .env("CNI_NETNS", path)
            .input(config.stdin(plugin, &[]))
            .output()?;
        config.del(node, &attachment, None)?;
        node.remove_netns(&attachment)?;
        drop(net);
    }
    for number in 0..3 {
        node.pod(&format!("short{number}"))?.delete()?;
    }
    Ok(())
}

/// The lower half of a node's IPv4 podCIDR.
fn half_of(mesh: &Mesh, node: u8) -> Result<String, Failure> {
    let node = mesh.node(&name(node))?;
    let range = node.pod_ranges().first().ok_or("a node has no podCIDR")?;
    // Where its first pods are.
    Ok(format!("{}/{}", range.ip(), range.prefix() + 1))
}

fn shell(node: &Node, script: &str) -> Result<(), Failure> {
    Ok(node.command("sh").args(["-c", script]).run().map(drop)?)
}

pub(crate) fn name(node: u8) -> String {
    format!("n{node}")
}
