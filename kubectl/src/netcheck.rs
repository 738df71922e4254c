//! `kubectl meshd netcheck`: how each node is connected.

use ::status::mesh::Verdict;
use ::status::mesh::netcheck::MeshNetCheck;
use clap::{Arg, ArgMatches, Command};
use plan::annotation::names;

use crate::CommandError;
use crate::arguments::flag;
use crate::ask::{Peers, answers};
use crate::cluster::{Cluster, only};
use crate::output::{self, Format};

/// The subcommand.
pub(crate) fn command(command: Command) -> Command {
    command
        .about("Show how each node is connected: addresses, NAT, families, relay, host checks")
        .long_about(
            "Show how each node is connected: the addresses that it publishes, where peers see it, how a NAT maps it, families, paths \
             to its peers, whether it is a relay, and what the checks of its host found. Exits with 1 if a node has published no \
             address, and with 2 if a node did not answer.",
        )
        .arg(Arg::new("node").value_name("NODE").help("The node to show; without it all nodes"))
        .arg(flag("strict", "Let findings of host checks count as problems"))
        .after_help("Example:\n  kubectl meshd netcheck n1\n  kubectl meshd netcheck -o json | jq '.nodes[] | {node, nat}'")
}

/// Prints it.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let mut nodes = cluster.nodes().await?;
    if let Some(node) = matches.get_one::<String>("node") {
        nodes = only(nodes, node)?;
    }
    let published =
        cluster.node_objects().await?.into_iter().filter_map(|node| {
            Some((node.metadata.name?, node.metadata.annotations?.remove(names::ENDPOINTS)?))
        });
    let published = published.collect();
    let check = MeshNetCheck::new(&answers(&cluster, nodes, Peers::All).await, &published);
    output::print(&Format::of(matches).render(&check, || check.text())?)?;
    Ok(check.verdict(matches.get_flag("strict")))
}
