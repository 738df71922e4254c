//! Runs one bare interface: `bare NAME`, or `bare --background NAME`.

use std::process::ExitCode;

use tunnel::bare::{BareOptions, run};

fn main() -> ExitCode {
    let mut options = BareOptions::new("");
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--background" => options.foreground = false,
            "--up" => options.up = true,
            name => name.clone_into(&mut options.name),
        }
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                eprintln!("bare: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
