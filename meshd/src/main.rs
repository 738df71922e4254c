//! The `meshd` command: reads the command line, calls one subcommand, turns its outcome into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshd::cli::main(std::env::args_os())
}
