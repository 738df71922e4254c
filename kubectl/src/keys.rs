//! `kubectl meshd keys`: fingerprint, age and state of the keys of all nodes.

use ::status::mesh::Verdict;
use ::status::mesh::keys::MeshKeys;
use clap::{Arg, ArgMatches, Command};

use crate::CommandError;
use crate::ask::{Peers, answers};
use crate::cluster::{Cluster, only};
use crate::output::{self, Format};

/// The subcommand.
pub(crate) fn command(command: Command) -> Command {
    command
        .about("Show fingerprint, age and state of the keys of all nodes; never a secret")
        .arg(
            Arg::new("node")
                .value_name("NODE")
                .help("The node whose keys to show; without it those of all nodes"),
        )
        .after_help(
            "Example:\n  kubectl meshd keys\n  kubectl meshd keys -o json | jq '.nodes[].keys[].age_seconds'",
        )
}

/// Prints the keys.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let mut nodes = cluster.nodes().await?;
    if let Some(node) = matches.get_one::<String>("node") {
        nodes = only(nodes, node)?;
    }
    let keys = MeshKeys::new(&answers(&cluster, nodes, Peers::Unwell).await);
    output::print(&Format::of(matches).render(&keys, || keys.text())?)?;
    Ok(keys.verdict())
}
