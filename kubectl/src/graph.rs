//! `kubectl meshd graph`: the mesh as a picture, or as text that others make pictures of.

use ::status::mesh::Verdict;
use ::status::mesh::graph::Graph;
use clap::ArgMatches;

use crate::CommandError;
use crate::ask::{Peers, answers};
use crate::cluster::Cluster;
use crate::output::{self, Format};

/// More nodes are no picture any more: their lines cover everything.
const MOST: usize = 100;

/// Prints the graph.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let nodes = cluster.nodes().await?;
    let zones = nodes.iter().map(|(node, listed)| (node.clone(), listed.zone.clone())).collect();
    let graph = Graph::new(&answers(&cluster, nodes, Peers::All).await);
    let graph = if matches.contains_id("by") { graph.grouped(&zones) } else { graph };
    let form = matches.get_one::<String>("format").map(String::as_str);
    let text = match (Format::of(matches), form) {
        (Format::Table, Some("dot")) => graph.dot(),
        (Format::Table, Some("mermaid")) => graph.mermaid(),
        (Format::Table, _) if graph.nodes.len() > MOST => {
            return Err(CommandError::TooManyNodes { found: graph.nodes.len(), most: MOST });
        }
        (Format::Table, _) => graph.svg(),
        (format, _) => format.render(&graph, String::new)?,
    };
    output::print(&text)?;
    Ok(Verdict::Good)
}
