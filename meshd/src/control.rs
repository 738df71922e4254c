//! The daemon's own socket: one request line in, one JSON document out. Only root reaches it.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The mesh as the daemon sees it.
    Status,
    /// What the daemon would change now.
    Plan,
    /// That this node's keys be replaced without losing a packet.
    Rotate,
    /// That this node's keys be replaced at once, whatever is lost.
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

/// A request with the place for its answer.
pub(crate) type Asked = (Request, oneshot::Sender<String>);

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request line.
const LONGEST: usize = 16;

/// Opens the socket for root alone. A socket that a dead daemon left is replaced.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another meshd answers on this socket"));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    crate::file::remove(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the daemon's end of `asked` is gone.
pub(crate) async fn serve(listener: UnixListener, asked: mpsc::Sender<Asked>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let asked = asked.clone();
                tokio::spawn(async move {
                    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, answer(stream, asked)).await {
                        debug!(cause = %error, "a client of the control socket went away");
                    }
                });
            }
            // Out of descriptors, most likely: wait instead of spinning.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn answer(mut stream: UnixStream, asked: mpsc::Sender<Asked>) -> io::Result<()> {
    let mut line = [0; LONGEST];
    let mut len = 0;
    while len < LONGEST && !line[..len].contains(&b'\n') {
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
    if asked.send((request, reply)).await.is_ok()
        && let Ok(text) = replied.await
    {
        stream.write_all(text.as_bytes()).await?;
    }
    Ok(())
}

/// Asks the daemon behind the socket; its answer is one JSON document.
pub(crate) fn ask(socket: &Path, request: Request) -> Result<String, QueryError> {
    let failed = |source| QueryError::Ask { socket: socket.to_owned(), source };
    let mut stream = std::os::unix::net::UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.write_all(request.line().as_bytes()).map_err(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    if text.is_empty() { Err(QueryError::Empty { socket: socket.to_owned() }) } else { Ok(text) }
}

/// Reads an answer.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(answer: &str) -> Result<T, QueryError> {
    serde_json::from_str(answer).map_err(|source| QueryError::Answer { source })
}

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Nobody answers at the socket.
    #[error("ask the daemon at {}: expected a running `meshd run` on this node, and root", socket.display())]
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
