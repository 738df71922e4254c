//! Subcommands that act on this node.

use clap::ArgMatches;
use tunnel::bare::BareOptions;

use super::{CommandError, arguments, output};
use crate::config::Config;
use crate::uninstall::Scope;

/// `meshd run`
pub(super) fn run(matches: &ArgMatches) -> Result<(), CommandError> {
    let missing = crate::harden::process();
    let config = config(matches)?;
    crate::logging::start(&config);
    missing.warn();
    Ok(runtime()?.block_on(crate::daemon::run(config, missing.texts()))?)
}

/// `meshd uninstall`
pub(super) fn uninstall(matches: &ArgMatches) -> Result<(), CommandError> {
    let config = config(matches)?;
    let scope = Scope {
        annotations: !matches.get_flag("keep-annotations"),
        audit_trail: matches.get_flag("purge-audit"),
    };
    let removed = runtime()?.block_on(crate::uninstall::run(&config, scope))?;
    output::print(&removed.to_string())
}

/// `meshd tunnel`
pub(super) fn tunnel(matches: &ArgMatches) -> Result<(), CommandError> {
    let missing = crate::harden::process();
    crate::logging::plain();
    missing.warn();
    let name = matches.get_one::<String>("name").cloned().unwrap_or_default();
    let directory = arguments::path(matches, "wireguard-dir");
    let foreground = !matches.get_flag("background");
    let options = BareOptions { foreground, uapi_dir: directory, ..BareOptions::new(name) };
    Ok(tunnel::bare::run(&options)?)
}

fn config(matches: &ArgMatches) -> Result<Config, CommandError> {
    Ok(arguments::config(matches, |name| std::env::var(name).ok())?)
}

/// One thread is enough for the control plane; packets are handled in threads of their own.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CommandError::Runtime)
}
