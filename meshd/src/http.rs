//! Health, readiness and metrics over HTTP, for probes and Prometheus. Read-only, without secrets.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::metrics;
use status::Status;

/// How long the control loop may go without a reconciliation before it counts as stuck.
const STUCK_AFTER: Duration = Duration::from_mins(1);

/// What one client can take up.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Open connections. Beyond them the oldest is closed: a probe needs its connection for milliseconds, so idle ones
    /// don't keep it out.
    connections: usize,
    /// From the connection to the end of the request's headers.
    headers: Duration,
    /// From the connection to its end: each serves one request.
    whole: Duration,
    /// Bytes of headers.
    buffer: usize,
}

const LIMITS: Limits = Limits {
    connections: 64,
    headers: Duration::from_secs(5),
    whole: Duration::from_secs(10),
    buffer: 16 * 1024,
};

/// Connections that were closed before they had their answer.
#[derive(Debug, Default)]
pub(crate) struct ClosedConnections {
    limit: AtomicU64,
    timeout: AtomicU64,
}

impl ClosedConnections {
    /// How many, with the reason.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 2] {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [("limit", count(&self.limit)), ("timeout", count(&self.timeout))]
    }
}

/// State shared with the handlers.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// The current status.
    pub status: watch::Receiver<Status>,
    /// When the control loop last completed a reconciliation.
    pub turned: watch::Receiver<Instant>,
    /// Connections of this server.
    pub closed: Arc<ClosedConnections>,
}

/// A bound HTTP server.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    limits: Limits,
}

impl Server {
    /// Binds the address.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, limits: LIMITS })
    }

    /// Serves until the future is dropped.
    pub(crate) async fn serve(self, view: View) -> Infallible {
        let closed = view.closed.clone();
        let routes = Router::new()
            .route("/healthz", get(health))
            .route("/readyz", get(ready))
            .route("/metrics", get(scrape))
            .with_state(view);
        let mut open = Open(VecDeque::new());
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    open.make_room(self.limits.connections, &closed);
                    let connection = answer(stream, routes.clone(), self.limits, closed.clone());
                    open.0.push_back(tokio::spawn(connection).abort_handle());
                }
                // Most likely out of file descriptors: wait instead of spinning.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// The open connections, the oldest first. They end with this value.
struct Open(VecDeque<AbortHandle>);

impl Open {
    /// Forgets those that have ended, and closes the oldest if there are still too many.
    fn make_room(&mut self, most: usize, closed: &ClosedConnections) {
        self.0.retain(|connection| !connection.is_finished());
        while self.0.len() >= most {
            if let Some(oldest) = self.0.pop_front() {
                oldest.abort();
                closed.limit.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Answers the one request of a connection.
async fn answer(stream: TcpStream, routes: Router, limits: Limits, closed: Arc<ClosedConnections>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_buf_size(limits.buffer)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let timed_out = match tokio::time::timeout(limits.whole, connection).await {
        // A client that went away or sent something else is none of ours.
        Ok(served) => served.is_err_and(|error| error.is_timeout()),
        Err(_) => true,
    };
    if timed_out {
        closed.timeout.fetch_add(1, Ordering::Relaxed);
    }
}

async fn health(State(view): State<View>) -> Response {
    let idle = view.turned.borrow().elapsed();
    if idle < STUCK_AFTER {
        "ok\n".into_response()
    } else {
        let text = format!("no reconciliation for {} s\n", idle.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn ready(State(view): State<View>) -> Response {
    let status = view.status.borrow();
    if status.ready {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", status.waiting_for.join("\n"))).into_response()
    }
}

async fn scrape(State(view): State<View>) -> Response {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    // Read here, when somebody asks, and not by the loop in each turn.
    let drops = linux::guard::drops().unwrap_or_default();
    match metrics::render(view.status, drops, view.closed) {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Idle clients: `HTTP_IDLE_CLIENTS`, or more than any client needs, and few enough for a process's usual limit of
    /// file descriptors.
    fn idle_clients() -> usize {
        std::env::var("HTTP_IDLE_CLIENTS").map_or(2000, |number| number.parse().unwrap())
    }

    struct Running {
        address: SocketAddr,
        closed: Arc<ClosedConnections>,
        _ends: (watch::Sender<Status>, watch::Sender<Instant>),
    }

    impl Running {
        async fn new(limits: Limits) -> Self {
            let mut server = Server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            server.limits = limits;
            let address = server.listener.local_addr().unwrap();
            let (status_in, status) = watch::channel(Status::default());
            let (turned_in, turned) = watch::channel(Instant::now());
            let closed = Arc::<ClosedConnections>::default();
            tokio::spawn(server.serve(View { status, turned, closed: closed.clone() }));
            Self { address, closed, _ends: (status_in, turned_in) }
        }

        async fn get(&self, path: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }

        fn count(&self, reason: &str) -> u64 {
            self.closed.counts().into_iter().find(|(name, _)| *name == reason).unwrap().1
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    }

    /// Whether the other end closes the connection.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer);
        let Ok(read) = tokio::time::timeout(Duration::from_secs(10), read).await else { return false };
        matches!(read, Ok(0) | Err(_))
    }

    #[test]
    fn idle_connections_do_not_keep_probes_out() {
        run(async {
            let running = Running::new(LIMITS).await;
            let mut idle = Vec::new();
            let clients = idle_clients();
            for number in 0..clients {
                idle.push(TcpStream::connect(running.address).await.unwrap());
                if number % 250 == 0 {
                    assert!(running.get("/healthz").await.starts_with("HTTP/1.1 200"), "after {number}");
                }
            }
            let since = Instant::now();
            assert!(running.get("/healthz").await.ends_with("ok\n"));
            assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
            let least = u64::try_from(clients - LIMITS.connections).unwrap();
            assert!(running.count("limit") >= least, "{:?}", running.closed);
            assert!(is_closed(&mut idle[0]).await, "the oldest goes first");
            let metrics = running.get("/metrics").await;
            assert!(metrics.contains("meshd_http_connections_closed_total{reason=\"limit\"}"), "{metrics}");
        });
    }

    #[test]
    fn a_slow_client_is_cut_off() {
        run(async {
            let limits =
                Limits { headers: Duration::from_millis(300), whole: Duration::from_millis(600), ..LIMITS };
            let running = Running::new(limits).await;
            // One never ends its headers; another never sends the body that it announces, nor reads.
            for (number, request) in
                (1..).zip(["GET /healthz HTTP/1.1\r\nHo", "", "GET /healthz HTTP/1.1\r\n"])
            {
                let mut stream = TcpStream::connect(running.address).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                assert!(is_closed(&mut stream).await, "{request:?}");
                assert_eq!(running.count("timeout"), number, "{request:?}");
            }
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            let long = format!("GET /healthz HTTP/1.1\r\nA: {}", "a".repeat(limits.buffer));
            // Cut off while it still sends.
            let _ = stream.write_all(long.as_bytes()).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.starts_with(b"HTTP/1.1 431") || answer.is_empty(), "{answer:?}");
            assert!(running.get("/healthz").await.contains("connection: close"), "one request a connection");
        });
    }
}
