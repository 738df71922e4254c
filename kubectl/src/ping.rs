//! `kubectl meshd ping`: has one node's daemon ask another one for echoes inside the tunnel.

use std::time::Duration;

use ::status::mesh::Verdict;
use ::status::ping::{MeshPing, SIZES};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, value_parser};

use crate::CommandError;
use crate::arguments::flag;
use crate::ask::pod;
use crate::cluster::{AskError, Cluster, Daemon, only};
use crate::output::{self, Format};

/// Time from one echo to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long one may take, with everything in between.
const ANSWER: Duration = Duration::from_secs(8);

/// The subcommand.
pub(crate) fn command(command: Command) -> Command {
    command
        .about("Have one node's daemon echo packets of another one inside the tunnel")
        .long_about(
            "Have one node's daemon echo packets of another one inside the tunnel, and say how long that took over which slot, and \
             whether datagrams go directly or over a relay. Exits with 1 if no echo came back, and with 2 if none could be sent.",
        )
        .arg(Arg::new("from").value_name("FROM").required(true).help("The node that asks"))
        .arg(Arg::new("to").value_name("TO").required(true).help("The node that echoes"))
        .arg(
            Arg::new("slot")
                .long("slot")
                .value_name("SLOT")
                .value_parser(PossibleValuesParser::new(["a", "b"]))
                .help("The slot to send over; without it the one that carries packets to the node"),
        )
        .arg(
            Arg::new("size")
                .long("size")
                .value_name("BYTES")
                .value_parser(value_parser!(u32).range(i64::from(*SIZES.start())..=i64::from(*SIZES.end())))
                .help("Size of the packet in the tunnel; without it the smallest"),
        )
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("NUMBER")
                .value_parser(value_parser!(u32).range(1..=1000))
                .default_value("4")
                .help("How many, about one a second"),
        )
        .arg(flag("until-direct", "End with the first echo over a direct path, and exit with 1 if there is none"))
        .after_help("Example:\n  kubectl meshd ping n1 n2\n  kubectl meshd ping n1 n2 --slot b --size 1420 --count 1")
}

/// Sends them one by one, and prints each.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let (from, to) = (text("from"), text("to"));
    let cluster = Cluster::connect(matches).await?;
    let nodes = cluster.nodes().await?;
    only(nodes.clone(), &to)?;
    let not_asked = |why: String| CommandError::NotAsked { node: from.clone(), why };
    let daemon = only(nodes, &from)?.remove(&from).map_or(Daemon::None, |listed| listed.daemon);
    let pod = pod(daemon).map_err(not_asked)?;
    let size = matches.get_one::<u32>("size").copied();
    let until_direct = matches.get_flag("until-direct");
    let format = Format::of(matches);
    let arguments = asked(matches, &to, size);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut pinged = MeshPing::new(&from, &to, size);
    for number in 0..matches.get_one::<u32>("count").copied().unwrap_or(1) {
        if number > 0 {
            tokio::time::sleep(INTERVAL).await;
        }
        // It exits with 1 if no echo came back, and with 2 if none could be sent, and says so.
        let answer = cluster.ask_within(ANSWER, &pod, &arguments, &[1, 2]).await;
        let answer = answer.map_err(|error| not_asked(error.to_string()))?;
        let said: MeshPing = serde_json::from_str(&answer)
            .map_err(|error| not_asked(AskError::Unreadable(error.to_string()).to_string()))?;
        let Some(echo) = said.echoes.into_iter().next_back() else { break };
        let over = echo.slot.is_none() || (until_direct && echo.is_direct());
        pinged.echoes.push(echo);
        if format == Format::Table {
            output::print(&(pinged.line() + "\n"))?;
        }
        if over {
            break;
        }
    }
    output::print(&format.render(&pinged, || pinged.summary() + "\n")?)?;
    Ok(pinged.verdict(until_direct))
}

/// One echo, as the daemon's own program is asked for it.
fn asked(matches: &ArgMatches, to: &str, size: Option<u32>) -> Vec<String> {
    let mut arguments = ["ping", to, "--count", "1", "-o", "json"].map(str::to_owned).to_vec();
    if let Some(slot) = matches.get_one::<String>("slot") {
        arguments.extend(["--slot".to_owned(), slot.clone()]);
    }
    if let Some(size) = size {
        arguments.extend(["--size".to_owned(), size.to_string()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_s_program_is_asked_for_one_echo_as_the_flags_say() {
        let parsed = |arguments: &[&str]| {
            command(Command::new("ping")).try_get_matches_from([&["ping", "n1"], arguments].concat())
        };
        let arguments = |given: &[&str]| {
            let matches = parsed(given).unwrap();
            asked(&matches, "n2", matches.get_one::<u32>("size").copied()).join(" ")
        };
        assert_eq!(arguments(&["n2"]), "ping n2 --count 1 -o json");
        let all = arguments(&["n2", "--slot", "b", "--size", "1420", "--count", "9"]);
        assert_eq!(all, "ping n2 --count 1 -o json --slot b --size 1420");
        for wrong in [&[][..], &["n2", "--size", "99"], &["n2", "--size", "9029"], &["n2", "--slot", "c"]] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }
}
