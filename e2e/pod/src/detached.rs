//! Streams in the background: what kubectl is connected to ends with a kubelet or an API server, and these do not.
//!
//! A stream has a directory with files that tell it to end, and what it said.

use std::env;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::{client, invalid};

/// A stream that was told to end waits for its last answers, and has said how it ended by then.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Begins a stream with these arguments, and prints its number.
pub(crate) fn start(words: &[&str]) -> io::Result<String> {
    let above = place();
    fs::create_dir_all(&above)?;
    let free = |number: &u32| fs::create_dir(above.join(number.to_string())).is_ok();
    let number = (1..1000).find(free).ok_or_else(|| invalid("a directory that can be written to"))?;
    let mut command = Command::new(env::current_exe()?);
    command.arg("detached").arg(above.join(number.to_string())).args(words);
    // What holds the pipes of the caller would keep it waiting.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok(format!("{number}\n"))
}

/// The stream itself.
pub(crate) fn stream(
    directory: &Path,
    seconds: u32,
    may_lose: u32,
    server: SocketAddr,
) -> io::Result<String> {
    let end = directory.join("end");
    let outcome = client::stream(seconds, may_lose, server, || end.exists());
    let (file, said) = match outcome {
        Ok(said) if end.exists() => ("succeeded", said),
        Ok(said) => ("failed", format!("it ended before it was told to: {said}")),
        Err(error) => ("failed", error.to_string()),
    };
    let new = directory.join("new");
    fs::write(&new, said)?;
    fs::rename(new, directory.join(file))?;
    Ok(String::new())
}

/// Ends a stream. Says on and on what it has said: a caller may not have heard it.
pub(crate) fn collect(number: u32) -> io::Result<String> {
    let directory = place().join(number.to_string());
    fs::write(directory.join("end"), "")?;
    let since = Instant::now();
    while since.elapsed() < ENDS_WITHIN {
        if let Ok(said) = fs::read_to_string(directory.join("succeeded")) {
            return Ok(said);
        }
        if let Ok(said) = fs::read_to_string(directory.join("failed")) {
            return Err(io::Error::other(said));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the stream says nothing"))
}

fn place() -> PathBuf {
    env::temp_dir().join("e2e-pod")
}
