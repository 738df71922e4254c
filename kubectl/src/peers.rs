//! `kubectl meshd peers`: each pair of nodes, as both ends see it.

use std::time::Duration;

use ::status::mesh::Verdict;
use ::status::mesh::peers::{Filter, MeshPeers};
use clap::{Arg, ArgMatches, Command};

use crate::CommandError;
use crate::arguments::flag;
use crate::ask::{Peers, answers};
use crate::cluster::{Cluster, only};
use crate::output::{self, Format};

/// In a larger mesh pairs without a problem are only counted, unless a node is named.
const FEW: usize = 25;

/// The subcommand.
pub(crate) fn command(command: Command) -> Command {
    command
        .about("Show each pair of nodes: state, path, round trip, handshake, MTU, PQ, bytes")
        .long_about(
            "Show each pair of nodes as its first one sees it: state, kind of path and endpoint of the slot that packets take, \
             round trip in the tunnel, age of the last handshake, MTU, state of the preshared key, and the bytes of both slots. \
             -o wide has a row for each slot. In a mesh of more than 25 nodes only pairs with a problem are shown unless a node \
             is named. Exits with 1 if a pair that is shown is down, and with 2 if a node did not answer.",
        )
        .arg(Arg::new("node").value_name("NODE").help("The node whose peers to show; without it those of all nodes"))
        .arg(flag("down", "Show pairs that don't reach each other"))
        .arg(
            Arg::new("slow")
                .long("slow")
                .value_name("TIME")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("20ms")
                .value_parser(milliseconds)
                .help("Show pairs whose round trip takes longer; 20ms unless a time is given, as in --slow=5ms"),
        )
        .after_help("Example:\n  kubectl meshd peers n1\n  kubectl meshd peers --down --slow=50ms -o wide")
}

/// Prints the pairs.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let mut nodes = cluster.nodes().await?;
    let filter =
        Filter { down: matches.get_flag("down"), slower_than: matches.get_one::<Duration>("slow").copied() };
    let many = nodes.len() > FEW;
    let node = matches.get_one::<String>("node");
    if let Some(node) = node {
        nodes = only(nodes, node)?;
    }
    let unwell = many && node.is_none() && filter.slower_than.is_none();
    let asked = answers(&cluster, nodes, if unwell { Peers::Unwell } else { Peers::All }).await;
    let peers = MeshPeers::new(&asked, &filter);
    output::print(&Format::of(matches).render(&peers, || peers.text(output::is_wide(matches)))?)?;
    Ok(peers.verdict())
}

/// A time as `5ms` or `1s`.
fn milliseconds(text: &str) -> Result<Duration, String> {
    let number = |unit| text.strip_suffix(unit).and_then(|number| number.parse::<u32>().ok()).map(u64::from);
    let found = number("ms").map(Duration::from_millis).or_else(|| number("s").map(Duration::from_secs));
    found.ok_or_else(|| format!("{text:?}: expected a number with ms or s, as in 20ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_pair_is_one_above_a_time_that_may_be_given() {
        let parsed = |arguments: &[&str]| {
            let command = command(Command::new("peers"));
            let matches = command.try_get_matches_from([&["peers"], arguments].concat()).unwrap();
            (matches.get_one::<Duration>("slow").copied(), matches.get_one::<String>("node").cloned())
        };
        assert_eq!(parsed(&[]), (None, None));
        let n1 = Some("n1".to_owned());
        assert_eq!(parsed(&["--slow", "n1"]), (Some(Duration::from_millis(20)), n1.clone()));
        assert_eq!(parsed(&["--slow=3s", "n1"]), (Some(Duration::from_secs(3)), n1));
        for wrong in ["", "5", "ms", "-1ms", "5 ms", "5m"] {
            assert!(milliseconds(wrong).is_err(), "{wrong}");
        }
    }
}
