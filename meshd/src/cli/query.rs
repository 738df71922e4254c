//! Subcommands that query the running daemon.

use clap::ArgMatches;

use super::{CommandError, arguments, output};
use crate::control::{self, Request};
use status::{PlanReport, Status};

/// `meshd status`
pub(super) fn status(matches: &ArgMatches) -> Result<(), CommandError> {
    let all = matches.get_flag("all");
    let whole = all || (arguments::wants_json(matches) && !matches.get_flag("problems"));
    let request = if whole { Request::Status } else { Request::ShortStatus };
    let answer = control::ask(&arguments::path(matches, "socket"), &request)?;
    if arguments::wants_json(matches) {
        return output::print(&answer);
    }
    let status: Status = control::parse(&answer)?;
    output::print(&status::table::render(&status, all))
}

/// `meshd plan`
pub(super) fn plan(matches: &ArgMatches) -> Result<(), CommandError> {
    let answer = control::ask(&arguments::path(matches, "socket"), &Request::Plan)?;
    if arguments::wants_json(matches) {
        return output::print(&answer);
    }
    let report: PlanReport = control::parse(&answer)?;
    output::print(&report.to_string())
}
