//! Health, readiness and metrics over HTTP, for probes and Prometheus. Read-only, without secrets.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics;
use crate::status::Status;

/// How long the control loop may go without a reconciliation before it counts as stuck.
const STUCK_AFTER: Duration = Duration::from_mins(1);

/// State shared with the handlers.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// The current status.
    pub status: watch::Receiver<Status>,
    /// When the control loop last completed a reconciliation.
    pub turned: watch::Receiver<Instant>,
}

/// A bound HTTP server.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
}

impl Server {
    /// Binds the address.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// Serves until the future is dropped.
    pub(crate) async fn serve(self, view: View) -> io::Result<()> {
        let routes = Router::new()
            .route("/healthz", get(health))
            .route("/readyz", get(ready))
            .route("/metrics", get(scrape))
            .with_state(view);
        axum::serve(self.listener, routes).await
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
    match metrics::render(view.status) {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
