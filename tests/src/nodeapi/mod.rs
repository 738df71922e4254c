//! A fake Kubernetes API server for Nodes: needs nothing installed, starts in milliseconds.
//!
//! Nodes: get, list (paged), watch (bookmarks, 410), create, merge patch (uid and resourceVersion as preconditions, dry
//! run), status, delete. Events: create, patch, list. The endpoints of the API server. Bearer tokens, and who may do
//! what. The contract tests run the same steps against this and a real server and compare.
//!
//! What it does not do it refuses: PUT, other patch types than merge patch, selectors beyond a name and equal labels,
//! tables and partial objects, TLS. There are no managed fields, no conversion of events between API groups, and
//! a Node's own fields are checked only as far as podCIDRs and the size of annotations.

mod http;
pub(crate) mod request;
mod status;
mod store;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::{io, thread};

use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::kube::users::Users;
use crate::space::NetNs;
use store::Store;

/// Port that it listens on, in the namespace of its own host.
pub(crate) const PORT: u16 = 8080;

/// The fake server with its objects, which it keeps while it is stopped.
#[derive(Debug)]
pub(crate) struct Fake {
    shared: Arc<Shared>,
    net: NetNs,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

/// What all requests share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    users: Users,
    fence: bool,
    /// Whether requests for single objects are never answered.
    hangs: AtomicBool,
    /// Whether patches of Nodes are never answered.
    hangs_on_patches: AtomicBool,
    /// Address that nodes reach it by.
    address: IpAddr,
    /// The latest revision, for watches to wait on.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    nodes: Store,
    /// Events by namespace and name.
    events: BTreeMap<(String, String), Value>,
    /// Counts the requests by verb and resource since the start.
    requests: BTreeMap<String, u64>,
}

impl Fake {
    /// Starts to serve in a network namespace, on all its addresses. `address` is the one that it says it has.
    pub(crate) fn start(net: &NetNs, address: IpAddr, users: Users, fence: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                nodes: Store::new(),
                events: BTreeMap::new(),
                requests: BTreeMap::new(),
            }),
            users,
            fence,
            hangs: AtomicBool::new(false),
            hangs_on_patches: AtomicBool::new(false),
            address,
            changed: watch::Sender::new(0),
        });
        let mut server = Self { shared, net: net.clone(), running: None };
        server.resume()?;
        Ok(server)
    }

    /// Stops to serve at once: connections are cut, the port is closed. What is known stays.
    pub(crate) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ended_already = running.stop.send(());
            let _result = running.thread.join();
        }
    }

    /// Serves again after a stop. As with a real server that was restarted, the history of changes is lost.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        self.shared.lock().nodes.forget();
        // For both versions, unless the host has no IPv6.
        let on = |any: IpAddr| TcpListener::bind(SocketAddr::new(any, PORT));
        let bind = || on([0; 16].into()).or_else(|_no_ipv6| on([0, 0, 0, 0].into()));
        let listener = self.net.run(bind).map_err(io::Error::other)??;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::spawn(move || {
            // Dropped with the runtime, all connections end: a client sees what it sees when a server is killed.
            let serve = async { http::serve(listener, shared).await };
            runtime.block_on(async {
                tokio::select! {
                    result = serve => result,
                    _ = stopped => Ok(()),
                }
            })
        });
        self.running = Some(Running { stop, thread });
        Ok(())
    }

    /// Loses everything, as a server whose etcd was emptied. Has to be stopped.
    pub(crate) fn wipe(&self) {
        let mut state = self.shared.lock();
        state.nodes = Store::new();
        state.events.clear();
    }

    /// From now on, GETs of single objects are never answered; lists, watches and changes are.
    pub(crate) fn hang_gets(&self) {
        self.shared.hangs.store(true, Ordering::Relaxed);
    }

    /// From now on, patches of Nodes are never answered, and not performed.
    pub(crate) fn hang_patches(&self) {
        self.shared.hangs_on_patches.store(true, Ordering::Relaxed);
    }

    /// How many requests of each kind came since the start: keys like `patch nodes`.
    pub(crate) fn requests(&self) -> BTreeMap<String, u64> {
        self.shared.lock().requests.clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
