//! Flags and subcommands, with those of `meshd run` taken from the table of options.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::audit;
use crate::config::{Config, ConfigError, OPTIONS, Source, Sources, from_sources};

/// The subcommands of `meshd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subcommand {
    Run,
    Status,
    Verify,
    Plan,
    Ping,
    Rotate,
    Keys,
    Audit,
    Uninstall,
    Tunnel,
    Options,
    Completions,
    Man,
}

impl Subcommand {
    /// In the order of help.
    const ALL: [Self; 13] = [
        Self::Run,
        Self::Status,
        Self::Verify,
        Self::Plan,
        Self::Ping,
        Self::Rotate,
        Self::Keys,
        Self::Audit,
        Self::Uninstall,
        Self::Tunnel,
        Self::Options,
        Self::Completions,
        Self::Man,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Status => "status",
            Self::Verify => "verify",
            Self::Plan => "plan",
            Self::Ping => "ping",
            Self::Rotate => "rotate",
            Self::Keys => "keys",
            Self::Audit => "audit",
            Self::Uninstall => "uninstall",
            Self::Tunnel => "tunnel",
            Self::Options => "options",
            Self::Completions => "completions",
            Self::Man => "man",
        }
    }

    fn command(self) -> Command {
        let command = Command::new(self.name());
        match self {
            Self::Run => configured(command.about("Run the node daemon").after_help(
                "Example:\n  meshd run --node-name n1 --cluster-cidr 10.244.0.0/16 --service-cidr 10.96.0.0/12",
            )),
            Self::Status => command
                .about("Show the mesh as seen by this node's daemon")
                .arg(flag("all", "List all peers, also those that are well, and all names; without it a mesh of more than 25 peers is summed up. `-o json` always has all"))
                .arg(flag("problems", "Leave out peers that are well, unless there are few: `-o json` stays small in a large mesh").conflicts_with("all"))
                .arg(output_argument())
                .arg(socket_argument())
                .after_help("Example:\n  meshd status -o json | jq '.peers[] | {node, active}'"),
            Self::Verify => command
                .about("Try whether this node's end of the mesh is encrypted, and give evidence")
                .long_about(
                    "Try whether this node's end of the mesh is encrypted, and give evidence: keys, sessions, echoes and sizes of \
                     each peer, the guard with packets that it has to catch, the API server's answer to forgeries, the audit trail. \
                     Exits with 0 if that is proven, 1 if a check failed, 2 if something is not known. \
                     `kubectl meshd verify` asks all nodes and compares both ends of each pair.",
                )
                .arg(flag("all", "Show all findings; without it no more than five of a kind"))
                .arg(output_argument())
                .arg(socket_argument())
                .after_help("Example:\n  meshd verify\n  meshd verify -o json | jq .guard"),
            Self::Plan => command
                .about("Show what the daemon would change now, without changing anything")
                .arg(output_argument())
                .arg(socket_argument())
                .after_help("Example:\n  meshd plan"),
            Self::Ping => super::ping::command(command),
            Self::Rotate => rotate(command),
            Self::Keys => command
                .about("Show fingerprint, age and state of this node's keys; never a secret")
                .arg(output_argument())
                .arg(socket_argument())
                .after_help("Example:\n  meshd keys -o json | jq '.keys[].age_seconds'"),
            Self::Audit => audit::arguments::command(command),
            Self::Uninstall => uninstall(command),
            Self::Tunnel => tunnel(command),
            Self::Completions => super::shell::completions(command),
            Self::Man => super::shell::man(command),
            Self::Options => command.about("Print the options of `meshd run` as a page of documentation"),
        }
    }
}

/// The whole command line.
pub(super) fn command() -> Command {
    Command::new("meshd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Encrypted pod networking for Kubernetes: a WireGuard mesh between nodes that fails closed")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(Subcommand::ALL.map(Subcommand::command))
}

/// The subcommand of a parsed command line, with its arguments.
pub(super) fn subcommand(matches: &ArgMatches) -> Option<(Subcommand, &ArgMatches)> {
    chosen(matches, Subcommand::ALL, Subcommand::name)
}

/// The one of `all` that a parsed command line names as its subcommand, with its arguments.
pub(super) fn chosen<S: Copy>(
    matches: &ArgMatches,
    all: impl IntoIterator<Item = S>,
    name: impl Fn(S) -> &'static str,
) -> Option<(S, &ArgMatches)> {
    let (wanted, matches) = matches.subcommand()?;
    let found = all.into_iter().find(|subcommand| name(*subcommand) == wanted)?;
    Some((found, matches))
}

fn uninstall(command: Command) -> Command {
    configured(
        command.about("Remove everything that meshd set up on this node but its audit trail, the guard last"),
    )
    .arg(flag("keep-annotations", "Leave the Node's annotations, for when the API server is unreachable"))
    .arg(flag("purge-audit", "Remove the audit trail too; without this flag it is kept as evidence"))
    .after_help("Example:\n  meshd uninstall --config /etc/meshd.yaml")
}

fn tunnel(command: Command) -> Command {
    command
        .about("Run a single userspace WireGuard interface, configured by `wg set`")
        .arg(Arg::new("name").value_name("NAME").required(true).help("Name of the interface"))
        .arg(
            Arg::new("wireguard-dir")
                .long("wireguard-dir")
                .value_name("DIRECTORY")
                .default_value("/var/run/wireguard")
                .value_parser(value_parser!(PathBuf))
                .help("Directory of the control socket"),
        )
        .arg(flag("background", "Return once the interface exists and continue in the background"))
        .after_help(
            "Example:\n  meshd tunnel --background wg0\n  wg set wg0 listen-port 51820 private-key key",
        )
}

fn rotate(command: Command) -> Command {
    command
        .about("Replace keys without losing a packet, and show progress")
        .long_about(
            "Replace keys without losing a packet, and show progress. Without --node and --all, replaces the keys of the \
             node on which it runs, through the local daemon. With them, requests it through the API server, from \
             anywhere.",
        )
        .arg(flag("dry-run", "Show what would be done and what would be waited for"))
        .arg(flag(
            "emergency",
            "Replace both keys at once, if a key may be compromised. Traffic is interrupted until peers know the new ones",
        ))
        .arg(
            Arg::new("node")
                .long("node")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("A node whose keys to replace, through the API server; may be repeated"),
        )
        .arg(flag("all", "Replace the keys of every node that runs meshd, through the API server").conflicts_with("node"))
        .arg(
            Arg::new("kubeconfig")
                .long("kubeconfig")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Kubeconfig for --node and --all; without it kubectl's, or the pod's service account"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("TIME")
                .value_parser(crate::config::time)
                .default_value("30m")
                .help("How long to wait for the nodes of --node and --all; they continue after that"),
        )
        .arg(output_argument())
        .arg(socket_argument())
        .after_help("Example:\n  meshd rotate --dry-run\n  meshd rotate\n  meshd rotate --node n1 --node n2")
}

/// Adds the daemon's options and the configuration file.
fn configured(command: Command) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("YAML file with the same options; flags and environment override it [env: MESHD_CONFIG]");
    OPTIONS.iter().fold(command.arg(file), |command, option| {
        let default = option.default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
        let required = if option.required { " [required]" } else { "" };
        command.arg(
            Arg::new(option.name)
                .long(option.name)
                .value_name(option.value)
                .allow_hyphen_values(true)
                .help(format!("{}{default}{required} [env: {}]", option.help, option.environment())),
        )
    })
}

pub(super) fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

pub(super) fn output_argument() -> Arg {
    Arg::new("output")
        .short('o')
        .long("output")
        .value_name("FORMAT")
        .value_parser(PossibleValuesParser::new(["table", "json"]))
        .default_value("table")
        .help("Output format")
}

pub(super) fn socket_argument() -> Arg {
    Arg::new("socket")
        .long("socket")
        .value_name("FILE")
        .default_value("/run/meshd/meshd.sock")
        .value_parser(value_parser!(PathBuf))
        .help("Control socket of the running daemon")
}

/// Whether JSON was asked for.
pub(super) fn wants_json(matches: &ArgMatches) -> bool {
    matches.get_one::<String>("output").is_some_and(|form| form == "json")
}

/// A path that has a default.
pub(super) fn path(matches: &ArgMatches, name: &str) -> PathBuf {
    matches.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

/// Reads the configuration from flags, environment and file.
pub(super) fn config(
    matches: &ArgMatches,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let flags: BTreeMap<String, String> = OPTIONS
        .iter()
        .filter_map(|option| Some((option.name.to_owned(), matches.get_one::<String>(option.name)?.clone())))
        .collect();
    let variables = OPTIONS
        .iter()
        .filter_map(|option| Some((option.name.to_owned(), environment(&option.environment())?)))
        .collect();
    let from_flag = matches.get_one::<PathBuf>("config").cloned();
    let file = match from_flag.or_else(|| environment("MESHD_CONFIG").map(PathBuf::from)) {
        Some(path) => Some((path.clone(), read(&path)?)),
        None => None,
    };
    from_sources(&Sources { flags, environment: variables, file })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|_| ConfigError::Value {
        option: "config".to_owned(),
        origin: Source::File(path.to_owned()),
        found: "bytes that are not UTF-8".to_owned(),
        expected: "a YAML file",
    })
}
