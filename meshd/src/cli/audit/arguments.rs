//! The subcommands of `meshd audit` and their flags.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::cli::arguments::{chosen, output_argument};

/// The subcommands of `meshd audit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subcommand {
    Verify,
    Show,
    Export,
    Report,
}

impl Subcommand {
    /// In the order of help.
    const ALL: [Self; 4] = [Self::Verify, Self::Show, Self::Export, Self::Report];

    const fn name(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Show => "show",
            Self::Export => "export",
            Self::Report => "report",
        }
    }

    fn command(self) -> Command {
        let command = Command::new(self.name());
        match self {
            Self::Verify => command
                .about("Check that a trail is complete, and that it agrees with what other nodes recorded about it")
                .arg(trail())
                .arg(
                    Arg::new("witness")
                        .long("witness")
                        .value_name("PATH")
                        .action(ArgAction::Append)
                        .value_parser(value_parser!(PathBuf))
                        .help("Trail of another node; may be repeated"),
                )
                .arg(output_argument())
                .after_help(
                    "Example:\n  meshd audit verify --trail n1/audit --witness n2/audit --witness n3/audit",
                ),
            Self::Show => filtered(command.about("Show events"))
                .arg(output_argument())
                .after_help("Example:\n  meshd audit show --node n2 --since 24h"),
            Self::Export => filtered(command.about("Print events in a format for other tools"))
                .arg(
                    Arg::new("format")
                        .long("format")
                        .value_name("FORMAT")
                        .value_parser(PossibleValuesParser::new(["jsonl", "csv", "ocsf", "trail"]))
                        .default_value("jsonl")
                        .help("JSON Lines, comma-separated values, Open Cybersecurity Schema Framework, or the trail as it is, for verify elsewhere: all of its lines, whatever other flags say"),
                )
                .after_help("Example:\n  meshd audit export --format ocsf --since 24h"),
            Self::Report => command
                .about(
                    "One page for an auditor: which keys were in use when, and whether old ones were destroyed",
                )
                .arg(trail().action(ArgAction::Append).help(
                    "Directory of a trail; may be repeated. One node's trail also records all its peers",
                ))
                .arg(
                    Arg::new("max-age")
                        .long("max-age")
                        .value_name("TIME")
                        .value_parser(crate::config::time)
                        .default_value("48h")
                        .help("Age above which a key is reported as too old"),
                )
                .arg(output_argument())
                .after_help("Example:\n  meshd audit report --trail n1/audit --trail n2/audit --max-age 30d"),
        }
    }
}

/// `meshd audit` with its own subcommands.
pub(in crate::cli) fn command(command: Command) -> Command {
    command
        .about("Read the audit trail of keys; needs no daemon")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(Subcommand::ALL.map(Subcommand::command))
}

/// The subcommand of a parsed command line, with its arguments.
pub(super) fn subcommand(matches: &ArgMatches) -> Option<(Subcommand, &ArgMatches)> {
    chosen(matches, Subcommand::ALL, Subcommand::name)
}

fn trail() -> Arg {
    Arg::new("trail")
        .long("trail")
        .value_name("PATH")
        .default_value("/var/lib/meshd/audit")
        .value_parser(value_parser!(PathBuf))
        .help("Directory of a trail, or one of its files")
}

fn filtered(command: Command) -> Command {
    command
        .arg(trail())
        .arg(Arg::new("node").long("node").value_name("NAME").help("Only events about this node"))
        .arg(Arg::new("key").long("key").value_name("FINGERPRINT").help("Only events about this key"))
        .arg(
            Arg::new("since")
                .long("since")
                .value_name("TIME")
                .value_parser(crate::config::time)
                .help("Only events of this last period, such as 90s, 24h or 30d"),
        )
}
