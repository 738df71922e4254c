//! A host's namespaces: network, mounts, host name and processes, kept by one small process and removed with it.
//!
//! The holder is `cat` reading a pipe whose other end only this process has: when this process ends, however it
//! ends, the pipe closes and the holder ends. The holder is the first process of a process namespace, so the kernel
//! ends with it everything that was started in the host, and gives it the orphans. It ignores SIGCHLD, so that the kernel
//! clears those away when they end (wait(2)). (A parent-death signal would not do: it fires when the
//! *thread* that started the child ends.)
//!
//! Everything that happens in a host happens on a thread that entered its namespaces; programs inherit them.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{Pid, Signal, kill_process};

use crate::error::Error;
use crate::mounts;

/// A network namespace that stays while this (or a clone of it) does.
#[derive(Clone)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    name: Arc<str>,
}

/// The namespaces of one host of the lab.
pub(crate) struct Space {
    name: String,
    holder: Child,
    net: NetNs,
    mnt: OwnedFd,
    uts: OwnedFd,
    pid: OwnedFd,
    children: Mutex<Vec<Weak<Mutex<Child>>>>,
}

impl NetNs {
    /// Wraps an open namespace file; the name is for messages.
    pub(crate) fn new(fd: OwnedFd, name: &str) -> Self {
        Self { fd: Arc::new(fd), name: name.into() }
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace permanently. Only for threads started for that purpose.
    pub fn enter(&self) -> Result<(), Error> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::Enter { host: self.name.to_string(), source: errno.into() })
    }

    /// Runs a closure on a thread of its own in the namespace and waits for it. A panic in it is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        scoped(|| self.enter().map(|()| work()))
    }

    /// Starts a thread that lives in the namespace; the closure runs only if it could enter.
    pub(crate) fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<Result<T, Error>> {
        let own = self.clone();
        thread::spawn(move || own.enter().map(|()| work()))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Space {
    /// Creates the namespaces with `lo` up, the host name set, and a private file tree (see [`mounts`]).
    pub(crate) fn create(name: &str) -> Result<Self, Error> {
        Self::create_with(name, &[])
    }

    /// The same with more private directories.
    pub(crate) fn create_with(name: &str, private: &[&str]) -> Result<Self, Error> {
        let failed = |source| Error::CreateSpace { host: name.to_owned(), source };
        let space = scoped(|| {
            unshare(
                CloneFlags::CLONE_NEWNET
                    | CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWUTS
                    | CloneFlags::CLONE_NEWPID,
            )
            .map_err(|errno| failed(errno.into()))?;
            rustix::system::sethostname(name.as_bytes()).map_err(|errno| failed(errno.into()))?;
            mounts::privatize(private)?;
            let holder = Command::new("env")
                .args(["--ignore-signal=CHLD", "cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .map_err(failed)?;
            let open = |file: &str| {
                File::open(format!("/proc/thread-self/ns/{file}")).map(OwnedFd::from).map_err(failed)
            };
            let space = Self {
                name: name.to_owned(),
                holder,
                net: NetNs::new(open("net")?, name),
                mnt: open("mnt")?,
                uts: open("uts")?,
                pid: open("pid_for_children")?,
                children: Mutex::default(),
            };
            mounts::mount_proc()?;
            Ok::<_, Error>(space)
        })?;
        // Not on the thread above: the kernel lets no thread start another whose children are to be elsewhere.
        space.ip_batch("link set lo up\n")?;
        Ok(space)
    }

    /// The host's name, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The host's network namespace.
    pub(crate) fn net(&self) -> &NetNs {
        &self.net
    }

    /// Process id of the holder, as seen from the lab: what `nsenter -t` takes.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Runs a closure on a thread of its own in the host's network, mount and host-name namespaces and waits for it.
    /// Its working directory is `/`. A panic in it is passed on.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        scoped(|| self.enter().map(|()| work()))
    }

    /// Starts a program with the host's files and processes in a network namespace, the host's own or a pod's. It is
    /// killed when the host goes.
    pub(crate) fn spawn_in(&self, net: &NetNs, command: &mut Command) -> Result<Arc<Mutex<Child>>, Error> {
        command.process_group(0);
        let child = scoped(|| {
            self.enter()?;
            net.enter()?;
            setns(&self.pid, CloneFlags::CLONE_NEWPID).map_err(|errno| self.enter_failed(errno.into()))?;
            command.spawn().map_err(|source| Error::Run {
                program: program(command),
                host: self.name.clone(),
                source,
            })
        })?;
        let child = Arc::new(Mutex::new(child));
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain(|known| known.strong_count() > 0);
        children.push(Arc::downgrade(&child));
        Ok(child)
    }

    /// Runs `ip -batch -` with the given lines in the host's network namespace.
    pub(crate) fn ip_batch(&self, lines: &str) -> Result<(), Error> {
        self.run(|| ip_batch(&self.name, lines))?
    }

    fn enter(&self) -> Result<(), Error> {
        let all = [
            (self.net.as_fd(), CloneFlags::CLONE_NEWNET),
            (self.uts.as_fd(), CloneFlags::CLONE_NEWUTS),
            (self.mnt.as_fd(), CloneFlags::CLONE_NEWNS),
        ];
        // A thread shares its working directory with the others unless unshared, and the kernel moves no
        // thread with a shared one into another mount namespace.
        unshare(CloneFlags::CLONE_FS).map_err(|errno| self.enter_failed(errno.into()))?;
        all.into_iter()
            .try_for_each(|(fd, kind)| setns(fd, kind))
            .map_err(|errno| self.enter_failed(errno.into()))
    }

    fn enter_failed(&self, source: io::Error) -> Error {
        Error::Enter { host: self.name.clone(), source }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // The holder, as the first process of its namespace, ends only once all others there have been waited for.
        let children = std::mem::take(self.children.get_mut().unwrap_or_else(PoisonError::into_inner));
        for child in children.into_iter().filter_map(|child| child.upgrade()) {
            let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
            let _ended_already = child.kill();
            let _status = child.wait();
        }
        let _ended_already = self.holder.kill();
        let _status = self.holder.wait();
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").field("name", &self.name).field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl fmt::Debug for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NetNs").field(&self.name).finish()
    }
}

/// Creates a network namespace with `lo` up for the calling thread, which stays in it, and binds it to a path.
pub(crate) fn new_net_at(path: &Path, name: &str) -> Result<NetNs, Error> {
    let failed = |source| Error::CreateSpace { host: name.to_owned(), source };
    File::create_new(path).map_err(|source| Error::File { action: "create", path: path.into(), source })?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
    // The thread is not among the host's processes, so the host's own /proc does not know it.
    let own = Path::new(mounts::OUTER_PROC).join("thread-self/ns/net");
    let fd = File::open(&own).map_err(failed)?;
    rustix::mount::mount_bind(&own, path).map_err(|errno| Error::Mount {
        what: "network namespace",
        path: path.into(),
        source: errno.into(),
    })?;
    ip_batch(name, "link set lo up\n")?;
    Ok(NetNs::new(fd.into(), name))
}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

/// The program with its arguments, for messages.
pub(crate) fn program(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs `ip -batch -` in the network namespace of the calling thread.
fn ip_batch(host: &str, lines: &str) -> Result<(), Error> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    let output = crate::command::run_with_input(&mut command, lines.as_bytes())
        .map_err(|source| Error::Run { program: program(&command), host: host.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        program: format!("ip -batch ({})", lines.trim().replace('\n', "; ")),
        host: host.to_owned(),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a closure on a fresh thread and waits: the thread may change its namespaces without affecting others.
fn scoped<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
