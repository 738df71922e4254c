//! The command line: what each subcommand takes, and which room does its work.

mod arguments;
mod audit;
mod fleet;
mod output;
mod query;
mod rotate;
mod run;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::ArgMatches;

use crate::chain::Chain;
use crate::config::ConfigError;

/// Exit code for a wrong flag, variable or configuration file (`EX_USAGE` of `sysexits.h`).
const EX_USAGE: u8 = 64;

/// Runs the command line that `arguments` spell, program name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match arguments::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            let usage = error.use_stderr();
            // The terminal may be gone; there is nobody left to tell then.
            let _ = error.print();
            return if usage { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(&matches) {
        Ok(code) => code,
        Err(error) => {
            let code = if matches!(error, CommandError::Config(_)) {
                ExitCode::from(EX_USAGE)
            } else {
                ExitCode::FAILURE
            };
            let _ = writeln!(std::io::stderr(), "meshd: {}", Chain(&error));
            code
        }
    }
}

fn dispatch(matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    let done = match matches.subcommand() {
        Some(("run", matches)) => run::run(matches),
        Some(("status", matches)) => query::status(matches),
        Some(("plan", matches)) => query::plan(matches),
        Some(("rotate", matches)) if fleet::is_wanted(matches) => fleet::rotate(matches),
        Some(("rotate", matches)) => rotate::rotate(matches),
        Some(("keys", matches)) => rotate::keys(matches),
        Some(("audit", matches)) => return audit::audit(matches),
        Some(("uninstall", matches)) => run::uninstall(matches),
        Some(("tunnel", matches)) => run::tunnel(matches),
        _ => output::print(&crate::config::reference()),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Why a subcommand ended without doing its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The daemon could not go on.
    #[error(transparent)]
    Daemon(#[from] crate::daemon::DaemonError),
    /// Things are left that should have been removed.
    #[error(transparent)]
    Uninstall(#[from] crate::uninstall::UninstallError),
    /// The bare tunnel ended.
    #[error(transparent)]
    Tunnel(#[from] tunnel::TunnelError),
    /// The running daemon did not answer.
    #[error(transparent)]
    Query(#[from] crate::control::QueryError),
    /// A trail could not be read.
    #[error(transparent)]
    Trail(#[from] keyring::audit::TrailError),
    /// A rotation was given up.
    #[error("the rotation was rolled back because of {}: alive, but not answering over the new key; see the log, and check that both UDP ports are open", nodes.join(", "))]
    Blocked {
        /// The nodes that did not follow.
        nodes: Vec<String>,
    },
    /// There is no client for the API server.
    #[error(transparent)]
    Connect(Box<crate::api::connect::ConnectError>),
    /// The API server did not list the Nodes.
    #[error("list the Nodes: expected an API server that answers, and the right to list and patch nodes")]
    List(#[source] Box<crate::api::nodes::WatchError>),
    /// A node can't be asked.
    #[error("node {node}: expected {}", if *missing { "the name of a Node" } else { "a Node with the annotation meshd.dev/state; is meshd running there?" })]
    NotInTheMesh {
        /// The name that was given.
        node: String,
        /// Whether there is no such Node.
        missing: bool,
    },
    /// A node could not be asked.
    #[error("annotate Node {node}; those before it have been asked")]
    Ask {
        /// The node.
        node: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// Nodes that have not replaced their keys in time.
    #[error("not done in time: {}; they go on by themselves, and `kubectl describe node` or `meshd status` there says what they wait for", nodes.join(", "))]
    NotYet {
        /// The nodes.
        nodes: Vec<String>,
    },
    /// Output could not be put into JSON.
    #[error("render as JSON")]
    Render(#[source] serde_json::Error),
    /// The runtime could not be set up.
    #[error("set up the runtime for tasks and timers")]
    Runtime(#[source] std::io::Error),
    /// Output could not be written.
    #[error("write to standard output")]
    Output(#[source] std::io::Error),
}
