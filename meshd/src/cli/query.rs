//! Subcommands that query the running daemon.

use clap::ArgMatches;

use super::{CommandError, arguments, output};
use crate::control::{self, Request};
use crate::status::{PlanReport, Status};

/// `meshd status`
pub(super) fn status(matches: &ArgMatches) -> Result<(), CommandError> {
    let answer = control::ask(&arguments::path(matches, "socket"), Request::Status)?;
    if arguments::wants_json(matches) {
        return output::print(&answer);
    }
    let status: Status = control::parse(&answer)?;
    output::print(&crate::status::table::render(&status))
}

/// `meshd plan`
pub(super) fn plan(matches: &ArgMatches) -> Result<(), CommandError> {
    let answer = control::ask(&arguments::path(matches, "socket"), Request::Plan)?;
    if arguments::wants_json(matches) {
        return output::print(&answer);
    }
    let report: PlanReport = control::parse(&answer)?;
    output::print(&report.to_string())
}
