//! The UAPI socket: accessible to root only, served by one thread, removed at the end.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use zeroize::{Zeroize as _, Zeroizing};

use super::apply::answer;
use super::{LONGEST_LINE, LONGEST_REQUEST};
use crate::error::{Failure, TunnelError};
use crate::interface::Core;

/// How long a client may take for each read or write: others wait meanwhile.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A served configuration socket; it disappears on drop.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    /// Device and inode: a file that replaced ours is left alone.
    identity: (u64, u64),
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Creates `dir/name.sock` and serves `core` on it. Refuses to take the place of a live process's socket, or
    /// of a file that is no socket; replaces what a dead process left.
    pub(crate) fn start(dir: &Path, name: &str, core: &Arc<Core>) -> Result<Self, TunnelError> {
        let path = dir.join(format!("{name}.sock"));
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| TunnelError::Uapi { operation, path, source }
        };
        fs::create_dir_all(dir).map_err(failed("create directory", dir))?;
        clear_stale(&path)?;
        let listener = bind_for_owner(&path).map_err(|errno| failed("bind", &path)(errno.into()))?;
        let file = fs::symlink_metadata(&path).map_err(failed("stat", &path))?;
        let mut server = Self { identity: (file.dev(), file.ino()), path, thread: None };
        let core = Arc::clone(core);
        let thread = std::thread::Builder::new().name(format!("uapi-{name}"));
        let spawned = thread.spawn(move || {
            match catch_unwind(AssertUnwindSafe(|| serve(&listener, &core))) {
                Ok(Ok(())) => {}
                Ok(Err(errno)) => {
                    tracing::error!(
                        event = "ConfigurationSocketFailed", link = core.name(), error = %errno,
                        "configuration socket ended"
                    );
                }
                // What it was changing may be half done.
                Err(_) => core.fail(Failure::Panic("configuration")),
            }
        });
        let failed = |source| TunnelError::Thread { thread: "configuration", source };
        server.thread = Some(spawned.map_err(failed)?);
        Ok(server)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is still the socket that was created here.
    pub(crate) fn is_ours(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity)
    }
}

impl Drop for Server {
    /// The interface is already stopping, or this would wait for ever.
    fn drop(&mut self) {
        if self.is_ours() {
            // Nothing to do about it if that fails: the next start replaces a stale socket.
            let _ = fs::remove_file(&self.path);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Removes the socket of a dead process.
fn clear_stale(path: &Path) -> Result<(), TunnelError> {
    let failed = |operation| move |source| TunnelError::Uapi { operation, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("stat")(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(failed("replace a file that is no socket:")(io::ErrorKind::AlreadyExists.into()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(TunnelError::UapiInUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("connect to")(error)),
    }
}

/// Binds with mode 0600 from the start: Linux takes the mode of the file from the socket.
fn bind_for_owner(path: &Path) -> Result<UnixListener, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(16)?)?;
    Ok(fd.into())
}

fn serve(listener: &UnixListener, core: &Core) -> Result<(), Errno> {
    while !core.stopped() {
        readable(listener.as_fd(), core, None)?;
        match listener.accept() {
            // A client that misbehaves is its own problem.
            Ok((client, _)) => drop(converse(&client, core)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors, or the client has gone already: not for ever, and no reason to spin.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    Ok(())
}

/// Answers requests until the client is done, too slow, or asks too much.
fn converse(mut client: &UnixStream, core: &Core) -> io::Result<()> {
    client.set_nonblocking(true)?;
    client.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut request = Zeroizing::new(Vec::new());
    let mut buffer = Zeroizing::new([0; 4096]);
    // Up to here there is no end of a request.
    let mut searched = 0;
    loop {
        while let Some(end) = request_end(&request, searched) {
            searched = 0;
            let reply = answer(core, &request[..end]);
            request[..end].zeroize();
            request.drain(..end);
            client.set_nonblocking(false)?;
            client.write_all(reply.as_bytes())?;
            client.set_nonblocking(true)?;
        }
        searched = request.len();
        if request.len() > LONGEST_REQUEST || longest_open_line(&request) > LONGEST_LINE {
            return client.write_all(format!("errno={}\n\n", -(Errno::EMSGSIZE as i32)).as_bytes());
        }
        if !readable(client.as_fd(), core, Some(CLIENT_TIMEOUT))? {
            return Ok(());
        }
        match client.read(buffer.as_mut_slice()) {
            Ok(0) => return Ok(()),
            Ok(len) => request.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Where the first request ends, behind its empty line, if that lies behind `searched`.
fn request_end(request: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(1);
    request[from..].windows(2).position(|two| two == b"\n\n").map(|at| from + at + 2)
}

/// Length of the line that is not complete yet.
fn longest_open_line(request: &[u8]) -> usize {
    request.len() - request.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

/// Waits until `fd` is readable. `false` if the interface stops or `timeout` passes before.
fn readable(fd: BorrowedFd<'_>, core: &Core, timeout: Option<Duration>) -> Result<bool, Errno> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| PollTimeout::try_from(left).ok()).unwrap_or(PollTimeout::NONE);
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(core.stop_event(), PollFlags::POLLIN)];
        match poll(&mut fds, left) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(!core.stopped()),
        }
    }
}
