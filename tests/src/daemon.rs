//! A program that keeps running in a host: signals, exit status, and what it logged.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::error::Error;
use crate::space;

/// A running program. Killed with SIGKILL when dropped, and with its host.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Arc<Mutex<Child>>,
    out: PathBuf,
    err: PathBuf,
}

impl Daemon {
    pub(crate) fn new(name: String, child: Arc<Mutex<Child>>, out: PathBuf, err: PathBuf) -> Self {
        Self { name, child, out, err }
    }

    /// Its process id as seen from the lab.
    pub fn pid(&self) -> u32 {
        self.lock().id()
    }

    /// Sends a signal; one to a program that ended already does nothing.
    pub fn kill(&self, signal: Signal) -> Result<(), Error> {
        let mut child = self.lock();
        // Only a child that was not waited for still owns its process id.
        match child.try_wait() {
            Ok(Some(_)) => Ok(()),
            Ok(None) => space::signal(&child, signal).map_err(|source| self.failed(source)),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Result<Option<ExitStatus>, Error> {
        self.lock().try_wait().map_err(|source| self.failed(source))
    }

    /// Waits for its end. Fails with [`Error::Timeout`] if it takes longer than `within`.
    pub fn wait(&self, within: Duration) -> Result<ExitStatus, Error> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if since.elapsed() >= within {
                return Err(Error::Timeout { what: format!("the end of {}", self.name), within });
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The file that its standard output goes to.
    pub fn out_path(&self) -> &Path {
        &self.out
    }

    /// The file that its standard error goes to.
    pub fn err_path(&self) -> &Path {
        &self.err
    }

    /// All that it (and daemons of this name before it) printed: standard output, then standard error.
    pub fn log(&self) -> Result<String, Error> {
        let read = |path: &Path| match std::fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(source) => Err(Error::File { action: "read", path: path.into(), source }),
        };
        Ok(read(&self.out)? + &read(&self.err)?)
    }

    /// The lines of its log that are JSON objects. A line that is not yet complete is left out.
    pub fn json_log(&self) -> Result<Vec<Value>, Error> {
        let log = self.log()?;
        Ok(log
            .lines()
            .filter(|line| line.starts_with('{'))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    /// Waits until the log contains a text. Fails early if the program ends before that.
    pub fn wait_log(&self, text: &str, within: Duration) -> Result<(), Error> {
        let since = Instant::now();
        loop {
            // Asked before the log is read, so that the last words of a program are not missed.
            let over = self.ended()?.is_some() || since.elapsed() >= within;
            if self.log()?.contains(text) {
                return Ok(());
            }
            if over {
                return Err(Error::Timeout {
                    what: format!("the line {text:?} in the log of {}", self.name),
                    within,
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Run { program: self.name.clone(), host: String::from("the lab"), source }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut child = self.lock();
        let _ended_already = child.kill();
        let _status = child.wait();
    }
}
