//! `meshd ping`: has a peer echo packets inside the tunnel, through this node's daemon.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use keyring::Slot;
use status::Status;
use status::ping::{Echo, MeshPing, SIZES};

use super::arguments::{flag, output_argument, path, socket_argument, wants_json};
use super::{CommandError, output};
use crate::control::{self, Ping, Request};

/// Time from one echo to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// The subcommand.
pub(super) fn command(command: Command) -> Command {
    command
        .about("Have another node's daemon echo packets inside the tunnel")
        .long_about(
            "Have another node's daemon echo packets inside the tunnel, and say how long that took over which slot, and whether \
             datagrams go directly or over a relay. Exits with 1 if no echo came back, and with 2 if none could be sent.",
        )
        .arg(Arg::new("node").value_name("NODE").required(true).help("The node that echoes"))
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
                .help("How many, one a second"),
        )
        .arg(flag("until-direct", "End with the first echo over a direct path, and exit with 1 if there is none"))
        .arg(output_argument())
        .arg(socket_argument())
        .after_help("Example:\n  meshd ping n2\n  meshd ping n2 --slot b --size 1420 --count 1")
}

/// Sends them one by one, and prints each.
pub(super) fn ping(matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    let socket = path(matches, "socket");
    let short: Status = control::parse(&control::ask(&socket, &Request::ShortStatus)?)?;
    let node = matches.get_one::<String>("node").cloned().unwrap_or_default();
    let slot = matches.get_one::<String>("slot").map(|slot| if slot == "a" { Slot::A } else { Slot::B });
    let size = matches.get_one::<u32>("size").copied();
    let until_direct = matches.get_flag("until-direct");
    let mut pinged = MeshPing::new(&short.node, &node, size);
    for number in 0..matches.get_one::<u32>("count").copied().unwrap_or(1) {
        if number > 0 {
            std::thread::sleep(INTERVAL);
        }
        let request = Request::Ping(Ping { node: node.clone(), slot, size });
        let echo: Echo = control::parse(&control::ask(&socket, &request)?)?;
        let over = echo.slot.is_none() || (until_direct && echo.is_direct());
        pinged.echoes.push(echo);
        if !wants_json(matches) {
            output::print(&(pinged.line() + "\n"))?;
        }
        if over {
            break;
        }
    }
    if wants_json(matches) {
        output::json(&pinged)?;
    } else {
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "{}", pinged.summary());
    }
    Ok(ExitCode::from(pinged.verdict(until_direct).exit_code()))
}
