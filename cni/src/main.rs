//! The plugin's process: environment and standard input in, one JSON document and an exit code out. Started under the
//! name `loopback`, it is that plugin.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let environment = |name: &str| std::env::var(name).ok();
    let outcome = if Path::new(&name).file_name().is_some_and(|name| name == cni::loopback::PLUGIN) {
        cni::loopback::run(environment, std::io::stdin())
    } else {
        cni::run(environment, std::io::stdin())
    };
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (text, ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
