//! The commands, one file each.

mod add;
mod check;
mod del;
mod gc;
mod status;
mod version;

use crate::call::{Call, Command};
use crate::error::CniError;

/// Performs a call; returns what is to be printed.
pub(crate) fn run(call: &Call) -> Result<String, CniError> {
    match &call.command {
        Command::Add(attachment, netns) => add::run(&call.conf, attachment, netns, &call.plugin_dirs),
        Command::Del(attachment) => {
            del::run(&call.conf, attachment, &call.plugin_dirs).map(|()| String::new())
        }
        Command::Check(attachment, netns) => {
            check::run(&call.conf, attachment, netns).map(|()| String::new())
        }
        Command::Status => status::run(&call.conf).map(|()| String::new()),
        Command::Gc => gc::run(&call.conf, &call.plugin_dirs).map(|()| String::new()),
        Command::Version => Ok(version::run(&call.conf)),
    }
}
