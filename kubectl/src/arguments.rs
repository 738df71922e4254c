//! Flags and subcommands.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::{audit, bundle, doctor, install, keys, netcheck, peers, ping, rotate, shell, verify};

/// The subcommands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subcommand {
    /// The whole mesh.
    Status,
    /// The paths between all nodes.
    Graph,
    /// Each pair of nodes.
    Peers,
    /// The keys of all nodes.
    Keys,
    /// Replaces keys.
    Rotate,
    /// The audit trails of all nodes.
    Audit,
    /// An echo from one node to another.
    Ping,
    /// How each node is connected.
    NetCheck,
    /// A file for bug reports.
    Bundle,
    /// Installs.
    Install,
    /// Upgrades.
    Upgrade,
    /// Checks before an installation.
    Check,
    /// Completions for shells.
    Completions,
    /// Manual pages.
    Man,
    /// Completions for kubectl.
    Complete,
    /// Whether the mesh is proven encrypted.
    Verify,
    /// What is wrong, by its causes.
    Doctor,
}

impl Subcommand {
    /// In the order of help.
    const ALL: [Self; 17] = [
        Self::Status,
        Self::Verify,
        Self::Doctor,
        Self::Peers,
        Self::Ping,
        Self::NetCheck,
        Self::Graph,
        Self::Keys,
        Self::Rotate,
        Self::Audit,
        Self::Bundle,
        Self::Check,
        Self::Install,
        Self::Upgrade,
        Self::Completions,
        Self::Man,
        Self::Complete,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Graph => "graph",
            Self::Peers => "peers",
            Self::Keys => "keys",
            Self::Rotate => "rotate",
            Self::Audit => "audit",
            Self::Ping => "ping",
            Self::NetCheck => "netcheck",
            Self::Bundle => "bundle",
            Self::Install => "install",
            Self::Upgrade => "upgrade",
            Self::Check => "check",
            Self::Completions => "completions",
            Self::Man => "man",
            Self::Complete => "__complete",
            Self::Verify => verify::NAME,
            Self::Doctor => doctor::NAME,
        }
    }

    fn command(self) -> Command {
        let command = Command::new(self.name());
        match self {
            Self::Peers => peers::command(command),
            Self::Keys => keys::command(command),
            Self::Rotate => rotate::command(command),
            Self::Audit => audit::command(command),
            Self::Ping => ping::command(command),
            Self::NetCheck => netcheck::command(command),
            Self::Bundle => bundle::command(command),
            Self::Install => install::install(command),
            Self::Upgrade => install::upgrade(command),
            Self::Check => install::check(command),
            Self::Completions => shell::completions(command),
            Self::Man => shell::man(command),
            Self::Complete => shell::complete(command),
            Self::Verify => verify::command(command),
            Self::Doctor => doctor::command(command),
            Self::Status => command
                .about("Show the whole mesh: nodes, pairs, guard, keys, and what is wrong")
                .long_about(
                    "Show the whole mesh: nodes, pairs, guard, keys, and what is wrong. Asks the daemon of every node, by `kubectl \
                     exec` as it were. Exits with 0 if all is well, 1 if something is wrong, 2 if that could not be found out.",
                )
                .arg(Arg::new("node").long("node").value_name("NAME").help("Show this node alone"))
                .arg(flag("all", "Show all nodes and all problems; without it a mesh of more than 25 nodes is summed up"))
                .arg(flag("problems", "Show problems alone").conflicts_with("all"))
                .arg(flag("strict", "Let warnings count as problems"))
                .arg(flag("wait", "Wait until all is well, and show progress"))
                .arg(
                    Arg::new("timeout")
                        .long("timeout")
                        .value_name("TIME")
                        .value_parser(time)
                        .default_value("5m")
                        .help("How long --wait waits"),
                )
                .arg(flag("watch", "Show it again every two seconds").short('w').conflicts_with("wait"))
                .after_help(
                    "Example:\n  kubectl meshd status\n  kubectl meshd status --wait --timeout 10m\n  kubectl meshd status -o json | jq .totals",
                ),
            Self::Graph => command
                .about("Draw the mesh: which nodes reach each other, directly or over a relay")
                .arg(
                    Arg::new("format")
                        .long("format")
                        .value_name("FORMAT")
                        .value_parser(PossibleValuesParser::new(["svg", "dot", "mermaid"]))
                        .default_value("svg")
                        .help("A picture, or text for Graphviz or Mermaid; -o json has the data"),
                )
                .arg(
                    Arg::new("by")
                        .long("by")
                        .value_name("GROUP")
                        .value_parser(PossibleValuesParser::new(["zone"]))
                        .help("Draw groups of nodes: zone takes the label topology.kubernetes.io/zone"),
                )
                .after_help("Example:\n  kubectl meshd graph > mesh.svg\n  kubectl meshd graph --format dot | dot -Tpng -Kcirco > mesh.png"),
        }
    }
}

/// The whole command line.
pub(crate) fn command() -> Command {
    // What kubectl calls it.
    Command::new("kubectl-meshd")
        .bin_name("kubectl meshd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The encrypted mesh of a cluster's nodes, from anywhere that kubectl works")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(80)
        .args(everywhere().map(|arg| arg.global(true).help_heading("Options of all commands")))
        .subcommands(Subcommand::ALL.map(Subcommand::command))
}

/// The subcommand of a parsed command line, with its arguments.
pub(crate) fn subcommand(matches: &ArgMatches) -> Option<(Subcommand, &ArgMatches)> {
    let (wanted, matches) = matches.subcommand()?;
    let found = Subcommand::ALL.into_iter().find(|subcommand| subcommand.name() == wanted)?;
    Some((found, matches))
}

fn everywhere() -> [Arg; 6] {
    [
        Arg::new("kubeconfig")
            .long("kubeconfig")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Kubeconfig; without it that of kubectl [env: KUBECONFIG]"),
        Arg::new("context").long("context").value_name("NAME").help("Context of the kubeconfig"),
        Arg::new("namespace")
            .short('n')
            .long("namespace")
            .value_name("NAME")
            .default_value("meshd")
            .help("Namespace of the DaemonSet"),
        Arg::new("as").long("as").value_name("USER").help("User to act as"),
        Arg::new("output")
            .short('o')
            .long("output")
            .value_name("FORMAT")
            .value_parser(PossibleValuesParser::new(["table", "wide", "json", "yaml"]))
            .default_value("table")
            .help("Output format"),
        Arg::new("color")
            .long("color")
            .value_name("WHEN")
            .value_parser(PossibleValuesParser::new(["auto", "always", "never"]))
            .default_value("auto")
            .help("Colours: auto has them on a terminal unless NO_COLOR is set"),
    ]
}

pub(crate) fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// A time as `90s`, `5m`, `1h` or `30d`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?}: expected a number with s, m, h or d, as in 90s");
    let unit = text.chars().last().ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(expected()),
    };
    let number: u32 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| expected())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_each_subcommand_has_an_example() {
        command().debug_assert();
        for subcommand in Subcommand::ALL {
            let help = subcommand.command().render_long_help().to_string();
            assert!(help.contains("Example:\n  kubectl meshd "), "{help}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(time("2h"), Ok(Duration::from_hours(2)));
        for wrong in ["", "5", "m", "-1s", "5 m", "5mm"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
