//! The daemon's control socket: one request line in, one JSON document out. Only root can connect.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyring::Slot;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

/// What a client can request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The mesh as the daemon sees it.
    Status,
    /// The same without peers that are well, unless there are few.
    ShortStatus,
    /// Try whether the mesh is encrypted, and give evidence. It takes some seconds.
    Verify,
    /// How far that has come.
    VerifyProgress,
    /// What the daemon would change now.
    Plan,
    /// Replace this node's keys without losing a packet.
    Rotate,
    /// Replace this node's keys at once, accepting packet loss.
    RotateNow,
    /// Have a peer echo a packet.
    Ping(Ping),
}

/// A packet for a peer to echo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ping {
    /// The peer's node.
    pub(crate) node: String,
    /// The slot to send it over; none for the one that carries packets.
    pub(crate) slot: Option<Slot>,
    /// Its size in bytes; none for the smallest.
    pub(crate) size: Option<u32>,
}

impl Request {
    /// Those that are one word.
    const WORDS: [(Self, &'static str); 7] = [
        (Self::Status, "status"),
        (Self::ShortStatus, "short-status"),
        (Self::Verify, "verify"),
        (Self::VerifyProgress, "verify-progress"),
        (Self::Plan, "plan"),
        (Self::Rotate, "rotate"),
        (Self::RotateNow, "rotate-now"),
    ];

    fn line(&self) -> String {
        if let Self::Ping(Ping { node, slot, size }) = self {
            let slot = slot.map_or_else(|| "-".to_owned(), |slot| slot.to_string());
            let size = size.map_or_else(|| "-".to_owned(), |size| size.to_string());
            return format!("ping {node} {slot} {size}\n");
        }
        let word = Self::WORDS.iter().find(|(request, _)| request == self).map_or("", |(_, word)| word);
        format!("{word}\n")
    }

    /// Reads a line with its end.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        if let Some((request, _)) = Self::WORDS.into_iter().find(|(_, word)| *word == line) {
            return Some(request);
        }
        let words: Vec<&str> = line.split(' ').collect();
        let &["ping", node, slot, size] = words.as_slice() else { return None };
        let slot = match slot {
            "-" => None,
            slot => Some(Slot::ALL.into_iter().find(|known| known.to_string() == slot)?),
        };
        let size = match size {
            "-" => None,
            size => Some(size.parse().ok().filter(|size| status::ping::SIZES.contains(size))?),
        };
        Some(Self::Ping(Ping { node: node.to_owned(), slot, size }))
    }

    /// How long the daemon may take to answer.
    const fn timeout(&self) -> Duration {
        match self {
            Self::Verify => VERIFY_TIMEOUT,
            _ => ANSWER_TIMEOUT,
        }
    }
}

/// A request and where its answer goes.
#[derive(Debug)]
pub(crate) struct ControlRequest {
    /// The request.
    pub(crate) request: Request,
    /// Receives the answer.
    pub(crate) reply: oneshot::Sender<String>,
}

/// How long either side waits for the other, per request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a verification may take: longer than the daemon gives it, so that there is an answer.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest request line in bytes: names of Nodes have up to 253.
const MAX_REQUEST_LEN: usize = 272;

/// Directory, beside the socket, in which it is created. A daemon that is killed meanwhile leaves it.
pub(crate) const BIRTHPLACE: &str = ".meshd.sock.new";

/// Opens the socket, accessible to root only. A stale socket of a dead daemon is replaced.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another meshd is listening on this socket"));
    }
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    std::fs::create_dir_all(directory)?;
    // It is bound where nobody but root can reach it, and appears under its name with its mode. A umask would hold for
    // the files of all threads.
    let private = directory.join(BIRTHPLACE);
    remove_directory(&private)?;
    std::fs::DirBuilder::new().mode(0o700).create(&private)?;
    let unseen = private.join("sock");
    let listener = UnixListener::bind(&unseen)?;
    std::fs::set_permissions(&unseen, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unseen, path)?;
    std::fs::remove_dir(&private)?;
    Ok(listener)
}

/// Removes what a daemon that was killed may have left.
fn remove_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Answers clients until the receiver of `requests` is dropped.
pub(crate) async fn serve(listener: UnixListener, requests: mpsc::Sender<ControlRequest>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, requests).await {
                        debug!(
                            event = "ControlClientDisconnected", %error,
                            "control socket client disconnected"
                        );
                    }
                });
            }
            // Most likely out of file descriptors: wait instead of spinning.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn answer(mut stream: UnixStream, requests: mpsc::Sender<ControlRequest>) -> io::Result<()> {
    let Ok(read) = timeout(ANSWER_TIMEOUT, read(&mut stream)).await else { return Ok(()) };
    let text = match read? {
        Some(request) => {
            let limit = request.timeout();
            let (reply, replied) = oneshot::channel();
            if requests.send(ControlRequest { request, reply }).await.is_err() {
                return Ok(());
            }
            match timeout(limit, replied).await {
                Ok(Ok(text)) => text,
                // The daemon ends, or is busy for too long.
                Ok(Err(_)) | Err(_) => return Ok(()),
            }
        }
        None => format!("{{\"error\":\"expected one of the lines {}\"}}\n", known()),
    };
    timeout(ANSWER_TIMEOUT, stream.write_all(text.as_bytes())).await.unwrap_or(Ok(()))
}

/// Reads a request; none if it is not a known one.
async fn read(stream: &mut UnixStream) -> io::Result<Option<Request>> {
    let mut line = [0; MAX_REQUEST_LEN];
    let mut len = 0;
    while len < MAX_REQUEST_LEN && !line[..len].contains(&b'\n') {
        match stream.read(&mut line[len..]).await? {
            0 => break,
            read => len += read,
        }
    }
    Ok(Request::parse(&line[..len]))
}

/// The known lines, for people.
fn known() -> String {
    let words = Request::WORDS.map(|(_, word)| word).join(", ");
    format!("{words}, ping NODE SLOT SIZE")
}

/// Sends a request to the daemon; its answer is one JSON document.
pub(crate) fn ask(socket: &Path, request: &Request) -> Result<String, QueryError> {
    let failed = |source| QueryError::Ask { socket: socket.to_owned(), source };
    let mut stream = std::os::unix::net::UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(request.timeout())).map_err(failed)?;
    stream.write_all(request.line().as_bytes()).map_err(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    if text.is_empty() { Err(QueryError::Empty { socket: socket.to_owned() }) } else { Ok(text) }
}

/// Parses an answer.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(answer: &str) -> Result<T, QueryError> {
    serde_json::from_str(answer).map_err(|source| QueryError::Answer { source })
}

/// Why a request to the daemon failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Nothing is listening on the socket, or it is not accessible.
    #[error("query the daemon at {}: expected a running `meshd run` on this node, and root privileges", socket.display())]
    Ask {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The daemon closed the socket without an answer.
    #[error("the daemon at {} is stopping", socket.display())]
    Empty {
        /// The socket.
        socket: PathBuf,
    },
    /// The answer is not what this version expects.
    #[error("read the daemon's answer: expected the same version of meshd on both ends")]
    Answer {
        /// The cause.
        source: serde_json::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::*;

    /// Where the listeners belong to.
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap()
    }

    /// Listens again. A child that another test of this process has just forked holds the last socket until it runs its program.
    fn listen_again(path: &Path) -> io::Result<UnixListener> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match listen(path) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other,
            }
        }
    }

    /// Ends a watcher, also when the test fails: its scope waits for it.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_request_is_one_line_that_is_read_as_it_was_written() {
        let ping = |slot, size| Request::Ping(Ping { node: "n".repeat(253), slot, size });
        let pings = [ping(None, None), ping(Some(Slot::B), Some(9028)), ping(Some(Slot::A), None)];
        for request in Request::WORDS.into_iter().map(|(request, _)| request).chain(pings) {
            let line = request.line();
            assert!(line.len() <= MAX_REQUEST_LEN, "{line}");
            assert_eq!(Request::parse(line.as_bytes()), Some(request));
        }
        for wrong in [
            "",
            "\n",
            "status",
            "Status\n",
            "ping\n",
            "ping n1\n",
            "ping n1 c -\n",
            "ping n1 a -1\n",
            "ping n1 a 9029\n",
        ] {
            assert_eq!(Request::parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_socket_never_has_another_mode_than_root_s_alone() {
        let runtime = runtime();
        let _entered = runtime.enter();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meshd.sock");
        let stop = AtomicBool::new(false);
        // Every name in the directory that is a socket, as often as a watcher can look.
        let modes: BTreeSet<u32> = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut modes = BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    for entry in std::fs::read_dir(directory.path()).unwrap().flatten() {
                        // Gone in the meantime.
                        let Ok(found) = std::fs::symlink_metadata(entry.path()) else { continue };
                        modes.insert(found.mode());
                    }
                }
                modes
            });
            let stopped = Stop(&stop);
            for _ in 0..2000 {
                drop(listen_again(&path).unwrap());
            }
            drop(stopped);
            watcher.join().unwrap()
        });
        let modes: BTreeSet<String> = modes.into_iter().map(|mode| format!("{mode:o}")).collect();
        let expected = BTreeSet::from(["140600".to_owned(), "40700".to_owned()]);
        assert!(modes.is_subset(&expected) && modes.contains("140600"), "{modes:?}");
        assert!(std::fs::read_dir(directory.path()).unwrap().count() == 1, "nothing else is left");
    }

    #[test]
    fn a_socket_that_somebody_listens_on_is_not_taken() {
        let runtime = runtime();
        let _entered = runtime.enter();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meshd.sock");
        // What a daemon that was killed between two steps leaves.
        std::fs::create_dir(directory.path().join(".meshd.sock.new")).unwrap();
        std::fs::write(directory.path().join(".meshd.sock.new/sock"), "").unwrap();
        let first = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        listen_again(&path).unwrap();
    }
}
