//! `kubectl meshd`: a plugin for kubectl. It needs nothing of a node, so it runs wherever kubectl does.

mod arguments;
mod ask;
mod audit;
mod bundle;
mod cluster;
mod doctor;
mod graph;
mod install;
mod keys;
mod netcheck;
mod output;
mod peers;
mod ping;
mod rotate;
mod shell;
mod status;
mod verify;

use std::io::Write as _;
use std::process::ExitCode;

use ::status::mesh::Verdict;
use arguments::Subcommand;

/// Exit code for a wrong command line (`EX_USAGE` of `sysexits.h`).
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let matches = match arguments::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let usage = error.use_stderr();
            // The terminal may be gone.
            let _ = error.print();
            return if usage { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // clap has refused a command line without a known subcommand.
    let Some((subcommand, matches)) = arguments::subcommand(&matches) else {
        return ExitCode::from(EX_USAGE);
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return failed(&CommandError::Runtime(source)),
    };
    let done = runtime.block_on(async {
        match subcommand {
            Subcommand::Status => status::run(matches).await.map(Verdict::exit_code),
            Subcommand::Graph => graph::run(matches).await.map(Verdict::exit_code),
            Subcommand::Verify => verify::run(matches).await,
            Subcommand::Doctor => doctor::run(matches).await.map(Verdict::exit_code),
            Subcommand::Peers => peers::run(matches).await.map(Verdict::exit_code),
            Subcommand::Keys => keys::run(matches).await.map(Verdict::exit_code),
            Subcommand::Rotate => rotate::run(matches).await.map(Verdict::exit_code),
            Subcommand::Audit => audit::run(matches).await.map(Verdict::exit_code),
            Subcommand::Ping => ping::run(matches).await.map(Verdict::exit_code),
            Subcommand::NetCheck => netcheck::run(matches).await.map(Verdict::exit_code),
            Subcommand::Bundle => bundle::run(matches).await.map(Verdict::exit_code),
            Subcommand::Install => install::run_install(matches).await.map(Verdict::exit_code),
            Subcommand::Upgrade => install::run_upgrade(matches).await.map(Verdict::exit_code),
            Subcommand::Check => install::run_check(matches).await.map(Verdict::exit_code),
            Subcommand::Completions => shell::print_completions(matches).map(Verdict::exit_code),
            Subcommand::Man => shell::write_man(matches).map(Verdict::exit_code),
            Subcommand::Complete => shell::print_candidates(matches).map(Verdict::exit_code),
        }
    });
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&error),
    }
}

/// What can't be asked is not known to be wrong.
fn failed(error: &CommandError) -> ExitCode {
    let mut text = format!("kubectl-meshd: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let words = cause.to_string();
        // Some errors say what their cause says.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    // Standard error may be closed.
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(Verdict::Unknown.exit_code())
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// The API server could not be asked.
    #[error(transparent)]
    Cluster(#[from] cluster::ClusterError),
    /// No such Node.
    #[error("node {node}: expected the name of a Node of this cluster")]
    NoSuchNode {
        /// The name that was given.
        node: String,
    },
    /// The cluster's networks are not known.
    #[error(transparent)]
    Ranges(#[from] install::RangesError),
    /// The program's own manifests can't be read.
    #[error(transparent)]
    Manifest(#[from] install::ManifestError),
    /// Nothing is installed over what is there.
    #[error("the DaemonSet is there already: `kubectl meshd upgrade` keeps its configuration")]
    Installed,
    /// There is nothing to be upgraded.
    #[error(
        "expected a DaemonSet `meshd` in the namespace, with a ConfigMap meshd-config...: `kubectl meshd install` makes both"
    )]
    NotInstalled,
    /// It could not be asked.
    #[error("ask the daemon of node {node}: {why}")]
    NotAsked {
        /// The node.
        node: String,
        /// The cause.
        why: String,
    },
    /// It runs no meshd.
    #[error("node {node}: expected a Node with the annotation meshd.dev/state; is meshd running there?")]
    NotInTheMesh {
        /// The name that was given.
        node: String,
    },
    /// A picture of so many nodes shows nothing.
    #[error("{found} nodes: expected at most {most} for a picture; use --by zone, or --format dot")]
    TooManyNodes {
        /// How many there are.
        found: usize,
        /// How many may be drawn.
        most: usize,
    },
    /// Output could not be rendered.
    #[error("render as {format}: {cause}")]
    Render {
        /// The format that was asked for.
        format: &'static str,
        /// The cause.
        cause: String,
    },
    /// A file could not be written.
    #[error("write {}", path.display())]
    File {
        /// The file or directory.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Output could not be written.
    #[error("write to standard output")]
    Output(#[source] std::io::Error),
    /// The runtime could not be set up.
    #[error("set up the runtime for tasks and timers")]
    Runtime(#[source] std::io::Error),
}
