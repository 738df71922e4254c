//! Programs that run in a host of the lab: a builder over `std::process::Command` that knows where to run.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::space::{NetNs, Space, program};

/// A program to be run in a host's namespaces (and in those of one of its pods, if [started there](crate::Pod::command)).
///
/// Standard input is empty unless [`input`](Self::input) is called; the working directory is `/`.
#[derive(Debug)]
pub struct Command<'a> {
    space: &'a Space,
    net: NetNs,
    logs: &'a Path,
    inner: std::process::Command,
    input: Vec<u8>,
}

impl<'a> Command<'a> {
    pub(crate) fn new(space: &'a Space, net: &NetNs, logs: &'a Path, program: &OsStr) -> Self {
        Self { space, net: net.clone(), logs, inner: std::process::Command::new(program), input: Vec::new() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.inner.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.inner.args(args);
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Drops all variables of the environment that were inherited or set so far.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.inner.env_clear();
        self
    }

    /// What the program reads from its standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Runs the program to its end and returns what it printed, whether it succeeded or not. Fails if it can't be started.
    pub fn output(mut self) -> Result<Output, Error> {
        self.inner.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.space.spawn_in(&self.net, &mut self.inner)?;
        let failed = |source| self.failed(source);
        let mut guard = child.lock().unwrap_or_else(PoisonError::into_inner);
        // Pipes are taken out and drained here, so that the lock is free while the program runs: the host can be
        // dropped meanwhile, which kills it.
        let pipes = (guard.stdin.take(), guard.stdout.take(), guard.stderr.take());
        drop(guard);
        let (stdout, stderr) = drain(pipes, &self.input).map_err(failed)?;
        let status = wait(&child).map_err(failed)?;
        Ok(Output { status, stdout, stderr })
    }

    /// Runs the program, which has to succeed, and returns its standard output. Fails with its standard error.
    pub fn run(self) -> Result<String, Error> {
        let (name, host) = (program(&self.inner), self.space.name().to_owned());
        let output = self.output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        let stderr = String::from_utf8_lossy(said).into_owned();
        Err(Error::Failed { program: name, host, status: output.status, stderr })
    }

    /// Starts the program as a daemon. Standard output and error go to `HOST-NAME.out` and `HOST-NAME.err` in the
    /// lab's directory, appended if a daemon of that name ran there before.
    pub fn daemon(mut self, name: &str) -> Result<Daemon, Error> {
        let file =
            |suffix: &str| -> PathBuf { self.logs.join(format!("{}-{name}.{suffix}", self.space.name())) };
        let (out, err) = (file("out"), file("err"));
        let open = |path: &Path| {
            std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(|source| Error::File {
                action: "create",
                path: path.into(),
                source,
            })
        };
        self.inner.stdin(Stdio::null()).stdout(open(&out)?).stderr(open(&err)?);
        let child = self.space.spawn_in(&self.net, &mut self.inner)?;
        Ok(Daemon::new(format!("{name} in {}", self.space.name()), child, out, err))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Run { program: program(&self.inner), host: self.space.name().to_owned(), source }
    }
}

type Pipes =
    (Option<std::process::ChildStdin>, Option<std::process::ChildStdout>, Option<std::process::ChildStderr>);

/// Feeds a program and reads both of its outputs to their ends, all at once so that no pipe fills up.
fn drain((stdin, stdout, stderr): Pipes, input: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>)> {
    thread::scope(|scope| {
        let fed = scope.spawn(|| stdin.map_or(Ok(()), |mut pipe| pipe.write_all(input)));
        let errors = scope.spawn(|| read_all(stderr));
        let out = read_all(stdout)?;
        let err = errors.join().map_err(|_panic| io::ErrorKind::Other)??;
        match fed.join().map_err(|_panic| io::ErrorKind::Other)? {
            // A program may well end without reading what it was given.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok((out, err)),
        }
    })
}

fn read_all(pipe: Option<impl io::Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Waits for a child by polling, so that the lock is free for others to kill it.
fn wait(child: &Arc<Mutex<Child>>) -> io::Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.lock().unwrap_or_else(PoisonError::into_inner).try_wait()? {
            return Ok(status);
        }
        thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Runs a program where the calling thread is.
pub(crate) fn run_with_input(command: &mut std::process::Command, input: &[u8]) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let drained = drain((child.stdin.take(), child.stdout.take(), child.stderr.take()), input);
    let status = child.wait()?;
    drained.map(|(stdout, stderr)| Output { status, stdout, stderr })
}
