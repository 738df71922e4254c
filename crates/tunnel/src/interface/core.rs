//! What the threads of one interface share, and the operations on it.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use keyring::{PrivateKey, PublicKey};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::config::{Health, InterfaceConfig};
use super::mmsg::send;
use super::tun::Tun;
use super::udp::Sockets;
use super::udp_offload::UdpOffload;
use crate::batch::Datagrams;
use crate::counters::DropReason;
use crate::engine::{ClockReading, Config, Engine, EngineOptions};
use crate::error::{Failure, TunnelError};
use wireguard::{DeviceState, OffloadStatus, PeerOp};

/// Work for the control thread, which never leaves the namespace of the interface.
pub(super) type Job = Box<dyn FnOnce(&Core) + Send>;

/// An interface without its threads.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) engine: Engine,
    pub(super) tun: Tun,
    pub(super) sockets: ArcSwap<Sockets>,
    /// The same for all sockets, also those of another port.
    udp_offload: Arc<UdpOffload>,
    /// Readable for ever once the interface has to stop.
    pub(super) stop: EventFd,
    /// Wakes the control thread.
    pub(super) control: EventFd,
    /// Wakes the receiving thread, because there are other sockets.
    pub(super) rebound: EventFd,
    jobs: Mutex<Sender<Job>>,
    /// Where the control thread finds its work; taken once.
    pub(super) queue: Mutex<Option<Receiver<Job>>>,
    fwmark: AtomicU32,
    failure: OnceLock<Failure>,
}

impl Core {
    pub(super) fn new(config: &InterfaceConfig) -> Result<Self, TunnelError> {
        let tun = Tun::open(&config.name, config.tun_offload)?;
        if let Some(mtu) = config.mtu {
            tun.set_mtu(mtu)?;
        }
        let engine = Engine::new(EngineOptions {
            mtu: tun.mtu()?,
            handshakes_per_second: config.handshakes_per_second,
            ..EngineOptions::default()
        });
        let udp_offload = Arc::new(UdpOffload::new(&config.name, config.udp_offload, send));
        let sockets = Sockets::bind(config.listen_port, config.fwmark, &udp_offload)?;
        let (jobs, queue) = channel();
        Ok(Self {
            engine,
            tun,
            sockets: ArcSwap::from_pointee(sockets),
            udp_offload,
            stop: event()?,
            control: event()?,
            rebound: event()?,
            jobs: Mutex::new(jobs),
            queue: Mutex::new(Some(queue)),
            fwmark: AtomicU32::new(config.fwmark),
            failure: OnceLock::new(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        self.tun.name()
    }

    /// The configured part, for the configuration socket.
    pub(crate) const fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn set_private_key(&self, key: Option<PrivateKey>) {
        self.engine.set_private_key(key);
        self.wake_control();
    }

    pub(super) fn apply(&self, changes: Vec<PeerOp>) -> Result<(), TunnelError> {
        self.configure(|_| changes)
    }

    /// Applies the changes that `plan` derives from the configuration as it is.
    pub(crate) fn configure(&self, plan: impl FnOnce(&Config) -> Vec<PeerOp>) -> Result<(), TunnelError> {
        self.engine.configure(plan).map_err(TunnelError::Change)?;
        // A new keepalive is due at once.
        self.wake_control();
        Ok(())
    }

    pub(crate) fn set_listen_port(&self, port: u16) -> Result<(), TunnelError> {
        self.in_namespace(move |core| {
            if port != 0 && core.sockets.load().port() == port {
                return Ok(());
            }
            let sockets = Sockets::bind(port, core.fwmark.load(Ordering::Relaxed), &core.udp_offload)?;
            core.sockets.store(Arc::new(sockets));
            let _ = core.rebound.write(1);
            Ok(())
        })
    }

    pub(crate) fn set_fwmark(&self, fwmark: u32) -> Result<(), TunnelError> {
        // On the control thread too, so that it can't fall between the making and the use of other sockets.
        self.in_namespace(move |core| {
            core.sockets.load().set_fwmark(fwmark)?;
            core.fwmark.store(fwmark, Ordering::Relaxed);
            Ok(())
        })
    }

    pub(super) fn set_mtu(&self, mtu: u16) -> Result<(), TunnelError> {
        self.tun.set_mtu(mtu)?;
        self.engine.set_mtu(mtu);
        Ok(())
    }

    pub(super) fn set_up(&self) -> Result<(), TunnelError> {
        self.tun.set_up()
    }

    /// Whether the device stays without anyone attached.
    pub(super) fn set_persistent(&self, persistent: bool) -> Result<(), TunnelError> {
        self.tun.set_persistent(persistent)
    }

    pub(crate) fn state(&self) -> DeviceState {
        DeviceState {
            key: self.engine.public_key(),
            port: self.sockets.load().port(),
            fwmark: self.fwmark.load(Ordering::Relaxed),
            peers: self.engine.peers(ClockReading::now()),
        }
    }

    pub(super) fn offload(&self) -> OffloadStatus {
        OffloadStatus {
            udp: self.udp_offload.is_used(),
            tun: self.tun.is_offload_used(),
            refused: self.udp_offload.refused_batches() + self.tun.refused_batches(),
        }
    }

    /// Sends one by one to where `peer` is now. Returns whether that is new.
    pub(super) fn send_singly(&self, peer: &PublicKey) -> bool {
        let endpoint = self.engine.peers(ClockReading::now()).get(peer).and_then(|peer| peer.config.endpoint);
        endpoint.is_some_and(|endpoint| self.udp_offload.switch_off_for(endpoint))
    }

    pub(super) fn initiate_handshake(&self, peer: &PublicKey) -> bool {
        let mut out = Datagrams::new();
        let known = self.engine.initiate_handshake(ClockReading::now(), peer, &mut out);
        self.transmit(&out);
        known
    }

    pub(super) fn health(&self) -> Health {
        self.failure.get().copied().map_or(Health::Running, Health::Failed)
    }

    /// Stops all threads, because of `failure` unless there was another before.
    pub(crate) fn fail(&self, failure: Failure) {
        if self.failure.set(failure).is_ok() && failure != Failure::ShutDown {
            tracing::error!(
                event = "InterfaceStopped", link = self.name(), error = %failure,
                "interface stopped"
            );
        }
        let _ = self.stop.write(1);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Readable once the interface has to stop.
    pub(crate) fn stop_event(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    /// Sends all of `datagrams` and counts those that the kernel refuses.
    pub(super) fn transmit(&self, datagrams: &Datagrams) {
        if !datagrams.is_empty() {
            self.count(DropReason::UdpSend, self.sockets.load().send(datagrams));
        }
    }

    pub(super) fn count(&self, reason: DropReason, dropped: u64) {
        if dropped > 0 {
            self.engine.dropped(reason, dropped);
        }
    }

    fn wake_control(&self) {
        let _ = self.control.write(1);
    }

    /// Runs `job` on the control thread and waits for its result.
    fn in_namespace(
        &self,
        job: impl FnOnce(&Self) -> Result<(), TunnelError> + Send + 'static,
    ) -> Result<(), TunnelError> {
        let (answer, result) = sync_channel(1);
        let job: Job = Box::new(move |core| {
            // The receiver is gone if the interface has stopped in between.
            let _ = answer.send(job(core));
        });
        let stopped = || TunnelError::Stopped {
            name: self.name().to_owned(),
            reason: self.failure.get().copied().unwrap_or(Failure::ShutDown),
        };
        self.jobs.lock().send(job).map_err(|_| stopped())?;
        self.wake_control();
        result.recv().map_err(|_| stopped())?
    }
}

fn event() -> Result<EventFd, TunnelError> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|source| TunnelError::Event { operation: "create an event descriptor", source })
}
