//! The plugin's process: environment and standard input in, one JSON document and an exit code out.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use cni::call::{Call, MAX_INPUT};

fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().take(MAX_INPUT + 1).read_to_end(&mut input);
    let outcome = read
        .map_err(cni::CniError::from)
        .and_then(|_| Call::new(|name| std::env::var(name).ok(), &input))
        .and_then(|call| cni::run(&call));
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (
            error.render(&input, std::env::var("CNI_COMMAND").is_ok_and(|command| command == "STATUS")),
            ExitCode::FAILURE,
        ),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
