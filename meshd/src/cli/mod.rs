//! The command line: parses it and runs one subcommand.

mod arguments;
mod audit;
mod fleet;
mod output;
mod ping;
mod query;
mod rotate;
mod run;
mod shell;
mod verify;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::ArgMatches;

use self::arguments::Subcommand;
use crate::chain::Chain;
use crate::config::ConfigError;

/// Exit code for a wrong flag, variable or configuration file, or one that does not fit the node (`EX_USAGE` of `sysexits.h`).
const EX_USAGE: u8 = 64;

/// Runs the command line `arguments`, program name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match arguments::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            let usage = error.use_stderr();
            // The terminal may be gone.
            let _ = error.print();
            return if usage { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(&matches) {
        Ok(code) => code,
        Err(error) => {
            let is_usage = matches!(
                error,
                CommandError::Config(_) | CommandError::Daemon(crate::daemon::DaemonError::OwnNetwork(_))
            );
            let code = if is_usage { ExitCode::from(EX_USAGE) } else { ExitCode::FAILURE };
            let _ = writeln!(std::io::stderr(), "meshd: {}", Chain(&error));
            code
        }
    }
}

fn dispatch(matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    // clap has refused a command line without a known subcommand.
    let Some((subcommand, matches)) = arguments::subcommand(matches) else {
        return Ok(ExitCode::from(EX_USAGE));
    };
    let done = match subcommand {
        Subcommand::Run => run::run(matches),
        Subcommand::Status => query::status(matches),
        Subcommand::Verify => return verify::verify(matches),
        Subcommand::Plan => query::plan(matches),
        Subcommand::Ping => return ping::ping(matches),
        Subcommand::Rotate if fleet::is_wanted(matches) => fleet::rotate(matches),
        Subcommand::Rotate => rotate::rotate(matches),
        Subcommand::Keys => rotate::keys(matches),
        Subcommand::Audit => return audit::audit(matches),
        Subcommand::Uninstall => run::uninstall(matches),
        Subcommand::Tunnel => run::tunnel(matches),
        Subcommand::Completions => shell::print_completions(matches),
        Subcommand::Man => shell::write_man(matches),
        Subcommand::Options => output::print(&crate::config::reference()),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Why a subcommand failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The daemon failed.
    #[error(transparent)]
    Daemon(#[from] crate::daemon::DaemonError),
    /// Not everything could be removed.
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
    /// A rotation was rolled back.
    #[error("rotation rolled back: {} alive, but not answering with the new key; see the log, and check that both UDP ports are open", nodes.join(", "))]
    Blocked {
        /// The nodes that did not follow.
        nodes: Vec<String>,
    },
    /// The client for the API server could not be created.
    #[error(transparent)]
    Connect(Box<crate::api::connect::ConnectError>),
    /// The API server did not list the Nodes.
    #[error("list Nodes: expected a reachable API server and permission to list and patch nodes")]
    List(#[source] Box<crate::api::nodes::WatchError>),
    /// A node that can't rotate on request.
    #[error("node {node}: expected {}", if *missing { "the name of a Node" } else { "a Node with the annotation meshd.dev/state; is meshd running there?" })]
    NotInTheMesh {
        /// The name that was given.
        node: String,
        /// Whether there is no such Node.
        missing: bool,
    },
    /// A rotation could not be requested.
    #[error("annotate Node {node}; nodes before it have been annotated")]
    Ask {
        /// The node.
        node: String,
        /// The cause.
        source: crate::api::WriteError,
    },
    /// Nodes that have not replaced their keys within the timeout.
    #[error("not finished within the timeout: {}; they continue, and `kubectl describe node` or `meshd status` there shows what they wait for", nodes.join(", "))]
    NotYet {
        /// The nodes.
        nodes: Vec<String>,
    },
    /// Manual pages could not be written.
    #[error("write manual pages into {}: expected a directory", directory.display())]
    Man {
        /// The directory.
        directory: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Output could not be rendered as JSON.
    #[error("render as JSON")]
    Render(#[source] serde_json::Error),
    /// The runtime could not be set up.
    #[error("set up the runtime for tasks and timers")]
    Runtime(#[source] std::io::Error),
    /// Output could not be written.
    #[error("write to standard output")]
    Output(#[source] std::io::Error),
}
