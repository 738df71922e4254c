//! The daemon's control socket: one request line in, one JSON document out. Only root can connect.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

/// What a client can request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The mesh as the daemon sees it.
    Status,
    /// What the daemon would change now.
    Plan,
    /// Replace this node's keys without losing a packet.
    Rotate,
    /// Replace this node's keys at once, accepting packet loss.
    RotateNow,
}

impl Request {
    const ALL: [Self; 4] = [Self::Status, Self::Plan, Self::Rotate, Self::RotateNow];

    const fn line(self) -> &'static str {
        match self {
            Self::Status => "status\n",
            Self::Plan => "plan\n",
            Self::Rotate => "rotate\n",
            Self::RotateNow => "rotate-now\n",
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
/// Longest request line in bytes.
const MAX_REQUEST_LEN: usize = 16;

/// Opens the socket, accessible to root only. A stale socket of a dead daemon is replaced.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another meshd is listening on this socket"));
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    crate::file::remove(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers clients until the receiver of `requests` is dropped.
pub(crate) async fn serve(listener: UnixListener, requests: mpsc::Sender<ControlRequest>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    if let Ok(Err(error)) =
                        tokio::time::timeout(ANSWER_TIMEOUT, answer(stream, requests)).await
                    {
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
    let mut line = [0; MAX_REQUEST_LEN];
    let mut len = 0;
    while len < MAX_REQUEST_LEN && !line[..len].contains(&b'\n') {
        match stream.read(&mut line[len..]).await? {
            0 => break,
            read => len += read,
        }
    }
    let Some(request) = Request::ALL.into_iter().find(|known| known.line().as_bytes() == &line[..len]) else {
        return stream
            .write_all(b"{\"error\":\"expected the line status, plan, rotate or rotate-now\"}\n")
            .await;
    };
    let (reply, replied) = oneshot::channel();
    if requests.send(ControlRequest { request, reply }).await.is_ok()
        && let Ok(text) = replied.await
    {
        stream.write_all(text.as_bytes()).await?;
    }
    Ok(())
}

/// Sends a request to the daemon; its answer is one JSON document.
pub(crate) fn ask(socket: &Path, request: Request) -> Result<String, QueryError> {
    let failed = |source| QueryError::Ask { socket: socket.to_owned(), source };
    let mut stream = std::os::unix::net::UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
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
