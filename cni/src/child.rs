//! Another plugin as a child process, with a deadline.

use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Longest output that is read, in bytes.
const MAX_OUTPUT: u64 = 1 << 16;
/// How often a plugin that has closed its output is checked for its exit.
const EXIT_POLL: Duration = Duration::from_millis(1);

/// Why a plugin gave no answer.
#[derive(Debug)]
pub(crate) enum ChildError {
    /// It could not be started.
    Start(io::Error),
    /// Its output or its exit status could not be read.
    Read(io::Error),
    /// It did not end in time; it was killed.
    Timeout,
}

/// Runs a plugin and returns its exit status and output. One that takes longer than `timeout` is killed with everything
/// that it started.
pub(crate) fn run(
    command: &mut Command,
    input: &str,
    timeout: Duration,
) -> Result<(ExitStatus, Vec<u8>), ChildError> {
    let deadline = Instant::now() + timeout;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(ChildError::Start)?;
    let answer = answer(&mut child, input, deadline);
    if !matches!(answer, Ok(Some(_))) {
        // It was not reaped yet, so the number of its process group is still its own.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
    }
    answer.map_err(ChildError::Read)?.ok_or(ChildError::Timeout)
}

/// Exit status and output; `None` if the deadline passes before both are there.
fn answer(child: &mut Child, input: &str, deadline: Instant) -> io::Result<Option<(ExitStatus, Vec<u8>)>> {
    if let Some(mut to) = child.stdin.take() {
        let input = input.to_owned();
        // Writing and reading have no timeout of their own: each is a thread, which ends with the processes that have the
        // pipe open. Plugins may answer without reading.
        std::thread::Builder::new().spawn(move || drop(to.write_all(input.as_bytes())))?;
    }
    let Some(output) = child.stdout.take() else { return Ok(None) };
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new().spawn(move || {
        let mut text = Vec::new();
        let read = output.take(MAX_OUTPUT).read_to_end(&mut text);
        let _ = sender.send(read.map(|_| text));
    })?;
    let Ok(text) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
        return Ok(None);
    };
    let text = text?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some((status, text)));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(EXIT_POLL);
    }
}
