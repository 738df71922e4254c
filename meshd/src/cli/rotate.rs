//! `meshd rotate` and `meshd keys`, through this node's daemon.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::ArgMatches;

use super::{CommandError, arguments, output};
use crate::control::{self, Request};
use status::rotation::{RotationStatus, keys_table, line};
use status::{PeerStatus, Status};

/// How often the daemon's progress is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// `meshd keys`
pub(super) fn keys(matches: &ArgMatches) -> Result<(), CommandError> {
    let status = status(&arguments::path(matches, "socket"))?.rotation;
    if arguments::wants_json(matches) {
        return output::json(&status);
    }
    output::print(&keys_table(&status))
}

/// `meshd rotate` without node names.
pub(super) fn rotate(matches: &ArgMatches) -> Result<(), CommandError> {
    let socket = arguments::path(matches, "socket");
    let json = arguments::wants_json(matches);
    let before = status(&socket)?;
    if matches.get_flag("dry-run") {
        return if json { output::json(&before.rotation) } else { output::print(&preview(&before)) };
    }
    let request = if matches.get_flag("emergency") { Request::RotateNow } else { Request::Rotate };
    control::ask(&socket, &request)?;
    let after = follow(&socket, &before.rotation)?;
    if json {
        output::json(&after)?;
    }
    if after.rolled_back > before.rotation.rolled_back {
        return Err(CommandError::Blocked { nodes: after.blocked_by });
    }
    let took = after.last_milliseconds.unwrap_or_default();
    if json {
        return Ok(());
    }
    let seconds = format!("{}.{} s", took / 1000, took % 1000 / 100);
    output::print(&format!("rotated in {seconds}: generation {}\n{}", after.generation, keys_table(&after)))
}

/// Waits until the rotation has ended, and prints progress on standard error.
fn follow(socket: &Path, before: &RotationStatus) -> Result<RotationStatus, CommandError> {
    let mut printed = String::new();
    loop {
        let now = status(socket)?.rotation;
        let text = line(&now);
        if text != printed {
            // Standard error may be closed.
            let _ = writeln!(std::io::stderr(), "{}: {text}", now.node);
            printed = text;
        }
        let over = now.finished > before.finished || now.rolled_back > before.rolled_back;
        if over && !now.busy {
            return Ok(now);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// What a rotation would do and what it would wait for.
fn preview(status: &Status) -> String {
    let rotation = &status.rotation;
    let mut lines = Vec::new();
    if rotation.busy {
        lines.push(format!("a rotation is in progress: {}", line(rotation)));
    }
    if !rotation.waits_for.is_empty() {
        lines.push(format!("would wait for the rotation of {}", rotation.waits_for.join(", ")));
    }
    if !status.api.published {
        lines.push("would wait until this node's keys are published".to_owned());
    }
    let no_handshake = |peer: &&PeerStatus| {
        peer.slots.iter().all(|(_, slot)| slot.as_ref().is_none_or(|slot| slot.handshake_age.is_none()))
    };
    let unreached: Vec<&str> =
        status.peers.iter().filter(no_handshake).map(|peer| peer.node.as_str()).collect();
    if !unreached.is_empty() {
        lines.push(format!("no handshake yet, skipped if still not responding: {}", unreached.join(", ")));
    }
    for key in &rotation.keys {
        let (fingerprint, slot, state, age) = (key.key.fingerprint(), key.slot, &key.state, key.age_seconds);
        lines.push(format!("would replace key {fingerprint} of slot {slot} ({state}, {age} s old)"));
    }
    lines.push(format!("{} peers would have to acknowledge; nothing changed", status.peers.len()));
    lines.join("\n") + "\n"
}

fn status(socket: &Path) -> Result<Status, CommandError> {
    Ok(control::parse(&control::ask(socket, &Request::ShortStatus)?)?)
}
