//! The plugin's process: environment and standard input in, one JSON document and an exit code out.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = cni::run(|name| std::env::var(name).ok(), std::io::stdin());
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (text, ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
