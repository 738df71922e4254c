//! `meshd verify`: asks the daemon for evidence, says how far that has come, and judges it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use clap::ArgMatches;
use status::mesh::Paint;
use status::verify::evidence::Evidence;
use status::verify::{Progress, Report, render};

use super::{CommandError, arguments, output};
use crate::chain::Chain;
use crate::control::{self, QueryError, Request};

/// After how long progress is said, and again.
const PROGRESS: Duration = Duration::from_secs(2);

/// Exit code if nothing is known.
const UNKNOWN: u8 = 2;

/// `meshd verify`
pub(super) fn verify(matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    let asked = ask(arguments::path(matches, "socket"));
    let read = asked.and_then(|answer| Ok((control::parse::<Evidence>(&answer)?, answer)));
    let (evidence, answer) = match read {
        Ok(read) => read,
        Err(error) => {
            // Standard error may be closed.
            let _ = writeln!(std::io::stderr(), "meshd: {}", Chain(&error));
            return Ok(ExitCode::from(UNKNOWN));
        }
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let report = Report::of_node(now.as_secs(), evidence);
    if arguments::wants_json(matches) {
        output::print(&answer)?;
    } else {
        output::print(&render(&report, matches.get_flag("all"), Paint::None))?;
    }
    Ok(ExitCode::from(report.exit_code()))
}

fn ask(socket: PathBuf) -> Result<String, QueryError> {
    let (sender, answered) = mpsc::channel();
    let asked = socket.clone();
    // It ends with the process.
    drop(thread::spawn(move || sender.send(control::ask(&asked, &Request::Verify))));
    loop {
        match answered.recv_timeout(PROGRESS) {
            Ok(answer) => return answer,
            Err(RecvTimeoutError::Timeout) => say_progress(&socket),
            Err(RecvTimeoutError::Disconnected) => return Err(QueryError::Empty { socket }),
        }
    }
}

fn say_progress(socket: &Path) {
    let progress = control::ask(socket, &Request::VerifyProgress).and_then(|text| control::parse(&text));
    if let Ok(Some(Progress { done, of, seconds })) = progress {
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "{done} of {of} slots of peers tried, {seconds} s");
    }
}
