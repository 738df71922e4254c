//! Flags and subcommands, with those of `meshd run` taken from the table of options.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::config::{Config, ConfigError, OPTIONS, Source, Sources, from_sources};

/// The whole command line.
pub(super) fn command() -> Command {
    Command::new("meshd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Encrypted pod networking for Kubernetes: a WireGuard mesh between nodes that fails closed")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(configured(Command::new("run").about("Run the node daemon").after_help(
            "Example:\n  meshd run --node-name n1 --cluster-cidr 10.244.0.0/16 --service-cidr 10.96.0.0/12",
        )))
        .subcommand(
            Command::new("status")
                .about("Show the mesh as this node's daemon sees it")
                .arg(output_argument())
                .arg(socket_argument())
                .after_help("Example:\n  meshd status -o json | jq '.peers[] | {node, active}'"),
        )
        .subcommand(
            Command::new("plan")
                .about("Show what the daemon would change now; changes nothing")
                .arg(output_argument())
                .arg(socket_argument())
                .after_help("Example:\n  meshd plan"),
        )
        .subcommand(rotate())
        .subcommand(
            Command::new("keys")
                .about("Show this node's keys: fingerprints, ages and what each is for; never a secret")
                .arg(output_argument())
                .arg(socket_argument())
                .after_help("Example:\n  meshd keys -o json | jq '.keys[].age_seconds'"),
        )
        .subcommand(audit())
        .subcommand(configured(
            Command::new("uninstall")
                .about("Remove everything that meshd made on this node but its audit trail, the guard last")
                .arg(
                    Arg::new("keep-annotations")
                        .long("keep-annotations")
                        .action(ArgAction::SetTrue)
                        .help("Leave the annotations on the Node, for when the API server is away"),
                )
                .arg(
                    Arg::new("purge-audit")
                        .long("purge-audit")
                        .action(ArgAction::SetTrue)
                        .help("Remove the audit trail too; without this flag it is kept as evidence"),
                )
                .after_help("Example:\n  meshd uninstall --config /etc/meshd.yaml"),
        ))
        .subcommand(
            Command::new("tunnel")
                .about("Run one bare userspace WireGuard interface that `wg set` configures")
                .arg(Arg::new("name").value_name("NAME").required(true).help("Name of the interface"))
                .arg(
                    Arg::new("wireguard-dir")
                        .long("wireguard-dir")
                        .value_name("FOLDER")
                        .default_value("/var/run/wireguard")
                        .value_parser(value_parser!(PathBuf))
                        .help("Folder of the control socket"),
                )
                .arg(
                    Arg::new("background")
                        .long("background")
                        .action(ArgAction::SetTrue)
                        .help("Return once the interface is there, and go on in the background"),
                )
                .after_help(
                    "Example:\n  meshd tunnel --background wg0\n  wg set wg0 listen-port 51820 private-key key",
                ),
        )
        .subcommand(Command::new("options").about("Print the options of `meshd run` as a page of documentation"))
}

fn rotate() -> Command {
    Command::new("rotate")
        .about("Replace keys without losing a packet, and show how far it is")
        .long_about(
            "Replace keys without losing a packet, and show how far it is. Without a node's name: the keys of the node \
             that this runs on, by way of its daemon. With names or --all: by way of the API server, from anywhere.",
        )
        .arg(flag("dry-run", "Show what would be done, and what would be waited for"))
        .arg(flag(
            "emergency",
            "Replace both keys at once: for a key that others may know. Traffic breaks until peers know the new ones",
        ))
        .arg(
            Arg::new("node")
                .long("node")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("A node to ask through the API server, as often as there are some"),
        )
        .arg(flag("all", "Ask every node that has meshd").conflicts_with("node"))
        .arg(
            Arg::new("kubeconfig")
                .long("kubeconfig")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Kubeconfig for --node and --all; without it that of kubectl, or the pod's service account"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("TIME")
                .value_parser(crate::config::time)
                .default_value("30m")
                .help("How long to follow the nodes of --node and --all; they go on after that"),
        )
        .arg(output_argument())
        .arg(socket_argument())
        .after_help("Example:\n  meshd rotate --dry-run\n  meshd rotate\n  meshd rotate --node n1 --node n2")
}

/// `meshd audit` with its own subcommands.
fn audit() -> Command {
    let trail = || {
        Arg::new("trail")
            .long("trail")
            .value_name("PLACE")
            .default_value("/var/lib/meshd/audit")
            .value_parser(value_parser!(PathBuf))
            .help("Folder of a trail, or one of its files")
    };
    let filters = |command: Command| {
        command
            .arg(trail())
            .arg(Arg::new("node").long("node").value_name("NAME").help("Only what concerns this node"))
            .arg(Arg::new("key").long("key").value_name("FINGERPRINT").help("Only what concerns this key"))
            .arg(
                Arg::new("since")
                    .long("since")
                    .value_name("TIME")
                    .value_parser(crate::config::time)
                    .help("Only the last of it, such as 90s, 24h or 30d"),
            )
    };
    Command::new("audit")
        .about("Read the audit trail of keys; works without a daemon")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("verify")
                .about("Check that a trail is whole, and that it agrees with what other nodes remember of it")
                .arg(trail())
                .arg(
                    Arg::new("witness")
                        .long("witness")
                        .value_name("PLACE")
                        .action(ArgAction::Append)
                        .value_parser(value_parser!(PathBuf))
                        .help("Trail of another node, as often as there are some"),
                )
                .arg(output_argument())
                .after_help(
                    "Example:\n  meshd audit verify --trail n1/audit --witness n2/audit --witness n3/audit",
                ),
        )
        .subcommand(
            filters(Command::new("show").about("Show events"))
                .arg(output_argument())
                .after_help("Example:\n  meshd audit show --node n2 --since 24h"),
        )
        .subcommand(
            filters(Command::new("export").about("Print events in a form that other tools read"))
                .arg(
                    Arg::new("format")
                        .long("format")
                        .value_name("FORM")
                        .value_parser(PossibleValuesParser::new(["jsonl", "csv", "ocsf"]))
                        .default_value("jsonl")
                        .help("JSON Lines, comma-separated values, or Open Cybersecurity Schema Framework"),
                )
                .after_help("Example:\n  meshd audit export --format ocsf --since 24h"),
        )
        .subcommand(
            Command::new("report")
                .about(
                    "One page for an auditor: which keys were in use when, and whether the old ones are gone",
                )
                .arg(trail().action(ArgAction::Append).help(
                    "Folder of a trail, as often as there are some; one node's trail tells of all its peers",
                ))
                .arg(
                    Arg::new("max-age")
                        .long("max-age")
                        .value_name("TIME")
                        .value_parser(crate::config::time)
                        .default_value("48h")
                        .help("Age above which a key is called too old"),
                )
                .arg(output_argument())
                .after_help("Example:\n  meshd audit report --trail n1/audit --trail n2/audit --max-age 30d"),
        )
}

/// Adds the options of the daemon and the configuration file.
fn configured(command: Command) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("YAML file with the same options; flags and environment win over it [env: MESHD_CONFIG]");
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

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn output_argument() -> Arg {
    Arg::new("output")
        .short('o')
        .long("output")
        .value_name("FORM")
        .value_parser(PossibleValuesParser::new(["table", "json"]))
        .default_value("table")
        .help("A table for people or JSON for programs")
}

fn socket_argument() -> Arg {
    Arg::new("socket")
        .long("socket")
        .value_name("FILE")
        .default_value("/run/meshd/meshd.sock")
        .value_parser(value_parser!(PathBuf))
        .help("Socket of the running daemon")
}

/// Whether JSON was asked for.
pub(super) fn wants_json(matches: &ArgMatches) -> bool {
    matches.get_one::<String>("output").is_some_and(|form| form == "json")
}

/// A path that has a default.
pub(super) fn path(matches: &ArgMatches, name: &str) -> PathBuf {
    matches.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

/// Puts flags, environment and file together.
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
        source_: Source::File(path.to_owned()),
        found: "bytes that are not UTF-8".to_owned(),
        expected: "a YAML file",
    })
}
