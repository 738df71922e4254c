//! Runs one bare interface: `bare NAME`, `bare --background NAME`, or `bare --persistent NAME` whose device stays.

use std::process::ExitCode;

use tunnel::bare::{BareOptions, run};
use tunnel::{Health, Interface, InterfaceConfig, TunnelError, uapi_dir};

fn main() -> ExitCode {
    let mut options = BareOptions::new("");
    let mut persistent = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--background" => options.foreground = false,
            "--up" => options.up = true,
            "--persistent" => persistent = true,
            name => name.clone_into(&mut options.name),
        }
    }
    let result = if persistent { run_persistent(&options.name) } else { run(&options) };
    match result {
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

/// Until it is killed.
fn run_persistent(name: &str) -> Result<(), TunnelError> {
    let config = InterfaceConfig {
        persistent: true,
        up: true,
        uapi_dir: Some(uapi_dir()),
        ..InterfaceConfig::new(name)
    };
    let interface = Interface::create(&config)?;
    while interface.health() == Health::Running {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Ok(())
}
