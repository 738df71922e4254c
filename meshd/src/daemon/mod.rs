//! The running daemon: wiring, and the loop that keeps the node's network as desired.
//!
//! ```text
//!  Nodes ──▶ plan::cluster ──▶ admission ──▶ Known ──┐
//!                                                    ├─ plan::turn::decide ─▶ perform ─▶ status, annotations, CNI
//!  kernel and engines ──▶ observe ──────▶ Observed ──┘
//! ```

mod allowance;
mod audit;
mod changes;
mod cni_files;
mod devices;
mod evidence;
mod filters;
mod forged;
mod host;
mod keys;
mod names;
mod observe;
mod outcome;
mod own_ports;
mod paths_file;
mod peer_channel;
mod perform;
mod pings;
mod pq;
mod preshared;
mod probes;
mod reconcile;
mod relay;
mod relay_file;
mod relay_leases;
mod stances;
mod stripped;
mod trail_writer;
mod unreached;
mod verify;
mod witness;

use std::sync::Arc;
use std::time::Duration;

use linux::guard::GuardOwner;
use linux::{Handle, Notices};
use plan::node::NodeName;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use crate::api;
use crate::channel::ReceivedMessage;
use crate::config::Config;
use crate::control::{self, ControlRequest};
use crate::device;
use crate::http;
use status::Status;

pub(crate) use cni_files::{CONFLIST, LOOPBACK, NODE_FILE, PLUGIN, is_loopback_ours};
pub(crate) use keys::KeysError;
pub(crate) use paths_file::FILE as PATHS_FILE;
use reconcile::{Answer, Outputs, Reconciler};
pub(crate) use relay_file::FILE as RELAY_FILE;

/// How long changes are gathered before the loop acts on them.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How long a former daemon that still owns the guard's table may take to end when this one starts.
const FORMER_ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How often the loop looks without a reason whether a turn is wanted: `wg set` changes the engine without a notice.
const RESYNC_PERIOD: Duration = Duration::from_secs(1);
/// How often the status is computed while no turn is taken.
const STATUS_PERIOD: Duration = Duration::from_secs(5);
/// Changes from the API server that may be queued.
const QUEUE: usize = 256;

/// Runs until SIGTERM or SIGINT. Everything that keeps traffic closed stays when it returns. `missing_protections` are protections
/// of this process that could not be set up; they are shown in the status.
pub(crate) async fn run(config: Config, missing_protections: Vec<String>) -> Result<(), DaemonError> {
    let mut stop = Stop::new()?;
    let host = Handle::open().map_err(|source| DaemonError::Host { source: Box::new(source) })?;
    let notices = host.monitor().map_err(|source| DaemonError::Host { source: Box::new(source) })?;
    refuse_own_network(&config, &host).await?;
    // The guard comes before the first key, route and file: from here on no pod's packet leaves unencrypted.
    let mut guard_owner = GuardOwner::new(config.guard_owner);
    reconcile::close(&config, &mut guard_owner, FORMER_ENDS_WITHIN)
        .map_err(|source| DaemonError::Guard { source: Box::new(source) })?;
    let chosen = device::select(config.backend, &host).await?;
    info!(event = "BackendSelected", backend = %chosen.backend, reason = chosen.reason, "backend selected");
    let keys = keys::Keys::open(&config)?;
    let audit = audit::Audit::open(&config.state_dir, &keys)?;
    let (client, server) = api::connect::client(config.kubeconfig.as_deref()).await?;

    let socket = config.run_dir.join("meshd.sock");
    let listener =
        control::listen(&socket).map_err(|source| DaemonError::Socket { path: socket.clone(), source })?;
    let server_bound = http::Server::bind(config.listen).await;
    let web = server_bound.map_err(|source| DaemonError::Listen { address: config.listen, source })?;

    let (changes_in, changes) = mpsc::channel(QUEUE);
    let (requests_in, requests) = mpsc::channel(QUEUE);
    let (wanted_in, wanted) = watch::channel(None);
    let (status_in, status) = watch::channel(Status::default());
    let (turned_in, turned) = watch::channel(Instant::now());
    let (received_in, received) = mpsc::channel(QUEUE * 4);
    let (node_events_in, node_events) = mpsc::channel(QUEUE);
    let (answers_in, answers) = mpsc::channel(QUEUE);
    let name = NodeName::new(config.node_name.clone());
    let tasks = [
        tokio::spawn(api::nodes::watch(client.clone(), name.clone(), changes_in)),
        tokio::spawn(api::events::run(client.clone(), name, node_events)),
        tokio::spawn(api::publish::run(client.clone(), wanted)),
        tokio::spawn(control::serve(listener, requests_in)),
        tokio::spawn(async move {
            match web.serve(http::View { status, turned, closed: Arc::default() }).await {}
        }),
    ];
    if config.node_cidrs.is_empty() {
        warn!(
            event = "NodeAddressesUnrestricted",
            "any Node may claim any address outside the cluster; set node-cidr to the networks of the nodes"
        );
    }
    info!(event = "Started", node = %config.node_name, version = env!("CARGO_PKG_VERSION"), "started");

    let outputs = Outputs {
        wanted: wanted_in,
        received: received_in,
        node_events: node_events_in,
        answers: answers_in,
    };
    let mut reconciler =
        Reconciler::new(config, (keys, audit), (host, guard_owner), (client, server), chosen, outputs);
    reconciler.outcome.missing_protections = missing_protections;
    let mut run = Loop {
        reconciler,
        changes,
        answers,
        requests,
        notices,
        received,
        status: status_in,
        turned: turned_in,
    };
    let ended = run.turn_until(&mut stop).await;
    for task in tasks {
        task.abort();
    }
    // With it the guard's owner: whoever waits for the socket to be gone finds a table that can be changed.
    drop(run);
    crate::file::remove(&socket).map_err(|source| DaemonError::Socket { path: socket, source })?;
    info!(event = "Stopped", "stopped; guard, links and routes remain in place");
    ended
}

/// Fails if a pod range covers the node's own network: the guard would cut the node off from everything, and stay.
async fn refuse_own_network(config: &Config, host: &Handle) -> Result<(), DaemonError> {
    let addresses =
        host.own_network().await.map_err(|source| DaemonError::Host { source: Box::new(source) })?;
    let links = [&config.links.a, &config.links.b];
    match plan::host::covered(&config.cluster_cidrs, &addresses, &links, linux::POD_LINK_PREFIX) {
        Some(covered) => Err(DaemonError::OwnNetwork(covered)),
        None => Ok(()),
    }
}

/// The two signals that end the daemon.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self, DaemonError> {
        let on = |kind| signal(kind).map_err(DaemonError::Signals);
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
    }
}

struct Loop {
    reconciler: Reconciler,
    changes: mpsc::Receiver<api::nodes::Change>,
    answers: mpsc::Receiver<Answer>,
    requests: mpsc::Receiver<ControlRequest>,
    notices: Notices,
    received: mpsc::Receiver<ReceivedMessage>,
    status: watch::Sender<Status>,
    turned: watch::Sender<Instant>,
}

impl Loop {
    async fn turn_until(&mut self, stop: &mut Stop) -> Result<(), DaemonError> {
        let mut resync = tokio::time::interval(RESYNC_PERIOD);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due: Option<Instant> = Some(Instant::now());
        let mut look: Option<Instant> = None;
        let mut told = Instant::now();
        loop {
            let soon = Instant::now() + DEBOUNCE;
            if self.reconciler.take_turn() {
                due = Some(earlier(due, soon));
            }
            if self.reconciler.take_look() {
                look = Some(earlier(look, soon));
            }
            let wait = until(due);
            let look_due = until(look);
            let rotation = self.reconciler.due();
            let rotation_due = until(rotation);
            tokio::select! {
                () = stop.asked() => return Ok(()),
                () = wait => {
                    // What waits already belongs to this turn.
                    while let Ok(change) = self.changes.try_recv() {
                        self.reconciler.take_change(change);
                    }
                    let again = self.reconciler.reconcile().await;
                    if let Some(status) = self.reconciler.survey() {
                        self.status.send_replace(status);
                    }
                    self.turned.send_replace(Instant::now());
                    due = again.map(|again| Instant::now() + again);
                    (look, told) = (None, Instant::now());
                }
                () = look_due => {
                    look = None;
                    if self.reconciler.look().await {
                        due = Some(Instant::now());
                    } else {
                        self.turned.send_replace(Instant::now());
                        if told.elapsed() >= STATUS_PERIOD {
                            told = Instant::now();
                            if let Some(status) = self.reconciler.survey() {
                                self.status.send_replace(status);
                            }
                        }
                    }
                }
                () = rotation_due => self.reconciler.tick(),
                Some(received) = self.received.recv() => self.reconciler.receive(&received),
                _ = resync.tick() => look = Some(earlier(look, soon)),
                Some(change) = self.changes.recv() => {
                    if self.reconciler.take_change(change) {
                        due = Some(earlier(due, soon));
                    }
                }
                Some(answer) = self.answers.recv() => {
                    if self.reconciler.take_answer(answer) {
                        due = Some(earlier(due, soon));
                    }
                }
                Some(_) = self.notices.routing.recv() => {
                    self.reconciler.kernel_changed();
                    due = Some(earlier(due, soon));
                }
                Some(notice) = self.notices.routes.recv() => {
                    if !self.reconciler.is_as_wanted(&notice) {
                        self.reconciler.kernel_changed();
                        due = Some(earlier(due, soon));
                    }
                }
                Some(_) = self.notices.filters.recv() => self.reconciler.filters_changed(),
                Some(request) = self.requests.recv() => self.reconciler.take_request(request).await,
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn earlier(due: Option<Instant>, soon: Instant) -> Instant {
    due.map_or(soon, |due| due.min(soon))
}

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Netlink could not be opened.
    #[error("open netlink: expected CAP_NET_ADMIN in this network namespace")]
    Host {
        /// The cause.
        source: Box<linux::HostError>,
    },
    /// A pod range covers the node's own network. Nothing was changed on the node.
    #[error(transparent)]
    OwnNetwork(plan::host::Covered),
    /// The guard could not be put in place, so nothing else was started.
    #[error("put the guard in place; nothing else is started without it")]
    Guard {
        /// The cause.
        source: Box<linux::HostError>,
    },
    /// The kernel's WireGuard is configured, and not available.
    #[error(transparent)]
    Backend(#[from] device::KernelUnavailable),
    /// There are no usable keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The audit trail can't be written.
    #[error(transparent)]
    Audit(#[from] keyring::audit::TrailError),
    /// There is no client for the API server.
    #[error(transparent)]
    Connect(#[from] api::connect::ConnectError),
    /// The control socket could not be opened.
    #[error("open the control socket {}", path.display())]
    Socket {
        /// The socket.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The address for health and metrics is not available.
    #[error("listen on {address} for health and metrics: set --listen to a free address")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// Signals can't be received.
    #[error("wait for signals")]
    Signals(#[source] std::io::Error),
}
