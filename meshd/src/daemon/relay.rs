//! This node as a relay, while its Node has the label: leases for members of the mesh, and the forwarder.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyring::rotation::PeerId;
use keyring::{PerSlot, Slot};
use plan::admission::Admission;
use plan::leases::{Answer, Question, Refusal};
use relay::{Forwarder, Grant, Limits, Relay};
use tokio::time::Instant;
use tracing::{error, info, warn};
use wireguard::{DeviceState, PeerState};

use super::devices::peer_state;
use super::relay_file::{self, RelayFile};
use crate::chain::Chain;
use crate::channel::Message;
use crate::config::Config;
use status::RelayStatus;

/// How often the file is written at most: addresses change with each handshake of a node behind a restless NAT.
const SAVE_PERIOD: Duration = Duration::from_secs(2);

/// A relay, if this node is one.
#[derive(Debug)]
pub(super) struct RelayServer {
    limits: Limits,
    file: RelayFile,
    forwarder: Option<Forwarder>,
    /// Members that may have leases: their control messages are authenticated.
    members: BTreeSet<PeerId>,
    /// Where this node's own tunnels see the slots of members.
    seen: BTreeMap<(PeerId, Slot), SocketAddr>,
    /// When the file was written last.
    saved: Option<Instant>,
    /// What was logged last, so that it is logged once.
    trouble: Option<String>,
    closed_ports: BTreeSet<u16>,
    /// Leases that were refused because of a quota.
    refused_leases: AtomicU64,
}

impl RelayServer {
    /// Not a relay yet.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            limits: Limits {
                ports: config.relay_ports.clone(),
                bytes_per_second: config.relay_rate,
                pair_bytes_per_second: (config.relay_rate / 2).max(1),
            },
            file: RelayFile::in_directory(&config.state_dir, relay_file::FORMAT),
            forwarder: None,
            members: BTreeSet::new(),
            seen: BTreeMap::new(),
            saved: None,
            trouble: None,
            closed_ports: BTreeSet::new(),
            refused_leases: AtomicU64::new(0),
        }
    }

    /// Starts or stops as the label says, and ends leases of nodes that are not members any more.
    pub(super) fn update(&mut self, admission: &Admission, states: &PerSlot<Option<DeviceState>>) {
        self.seen = seen(admission, states);
        let is_relay = admission.world.own.as_ref().is_some_and(|own| own.relay);
        let proven = admission.world.peers.values().filter(|member| member.is_proven());
        self.members = proven.map(|member| member.uid.peer_id()).collect();
        match (is_relay, &self.forwarder) {
            (true, Some(forwarder)) if !forwarder.is_running() => {
                error!(event = "RelayFailed", "the relay's thread ended; it is started again");
                self.forwarder = None;
            }
            (true, None) => self.start(),
            (false, Some(_)) => {
                self.forwarder = None;
                info!(event = "RelayStopped", "this node is no relay any more");
                if let Err(error) = self.file.remove() {
                    self.report(&error);
                }
            }
            _ => {}
        }
        let Some(forwarder) = &self.forwarder else { return };
        let relays = relay_addresses(admission);
        let members = &self.members;
        forwarder.with(|now, relay| {
            relay.set_relays(relays);
            relay.expire(now, |node| members.contains(node));
        });
        self.save();
        self.report_closed_ports();
    }

    fn start(&mut self) {
        let started = std::time::Instant::now();
        let mut relay = Relay::new(Duration::ZERO, self.limits.clone());
        match self.file.load() {
            Ok(saved) => relay.restore(Duration::ZERO, saved.unwrap_or_default()),
            Err(error) => self.report(&error),
        }
        let leases = relay.count().0;
        match Forwarder::start(relay, started) {
            Ok(forwarder) => {
                self.forwarder = Some(forwarder);
                let (first, last) = (self.limits.ports.start(), self.limits.ports.end());
                info!(
                    event = "RelayStarted",
                    leases,
                    first_port = first,
                    last_port = last,
                    "this node is a relay"
                );
            }
            Err(error) => self.report(&error),
        }
    }

    /// Writes the leases to disk if they changed.
    fn save(&mut self) {
        let Some(forwarder) = &self.forwarder else { return };
        if self.saved.is_some_and(|saved| saved.elapsed() < SAVE_PERIOD) {
            return;
        }
        let leases = forwarder.with(|_, relay| relay.saved());
        match self.file.save(leases) {
            Ok(written) => {
                self.trouble = None;
                if written {
                    self.saved = Some(Instant::now());
                }
            }
            Err(error) => self.report(&error),
        }
    }

    /// Logs what went wrong, once.
    fn report(&mut self, error: &(dyn std::error::Error + 'static)) {
        let cause = Chain(error).to_string();
        if self.trouble.as_ref() != Some(&cause) {
            warn!(event = "RelayTrouble", error = cause, "the relay's state is not complete");
            self.trouble = Some(cause);
        }
    }

    fn report_closed_ports(&mut self) {
        let Some(forwarder) = &self.forwarder else { return };
        let closed = forwarder.closed_ports();
        for (port, error) in &closed {
            if !self.closed_ports.contains(port) {
                warn!(event = "RelayPortNotOpened", port, error, "a leased port can't be opened; retrying");
            }
        }
        self.closed_ports = closed.into_keys().collect();
    }

    /// Answers a member; returns the messages to send.
    pub(super) fn answer(
        &self,
        from: &PeerId,
        peer: &PeerId,
        slot: Slot,
        question: Question,
        distance: Option<Duration>,
    ) -> Vec<(PeerId, Message)> {
        if !self.members.contains(from) {
            return Vec::new();
        }
        let say = |to: &PeerId, about: &PeerId, answer: Answer| {
            (to.clone(), Message::FromRelay { peer: about.clone(), slot, answer })
        };
        let refuse = |refusal| vec![say(from, peer, Answer::Refused(refusal))];
        let Some(forwarder) = &self.forwarder else {
            return if question == Question::Release { Vec::new() } else { refuse(Refusal::Off) };
        };
        match question {
            Question::Release => {
                forwarder.with(|_, relay| relay.release(from, peer, slot));
                Vec::new()
            }
            _ if !self.members.contains(peer) => refuse(Refusal::NotAMember),
            Question::Distance => vec![say(from, peer, Answer::Distance(distance))],
            Question::Lease { wanted } => {
                let seen = self.seen.get(&(from.clone(), slot)).copied();
                let asked = forwarder.with(|now, relay| relay.ask(now, from, peer, slot, seen));
                let is_quota = matches!(asked, Err(relay::Refusal::Full | relay::Refusal::TooMany));
                self.refused_leases.fetch_add(u64::from(is_quota), Ordering::Relaxed);
                let Grant { port, both, offer } = match asked {
                    Ok(grant) => grant,
                    Err(relay::Refusal::Full) => return refuse(Refusal::Full),
                    Err(relay::Refusal::TooMany) => return refuse(Refusal::TooMany),
                    Err(relay::Refusal::Itself) => return refuse(Refusal::NotAMember),
                };
                let mut messages = vec![say(from, peer, Answer::Leased { port, both, distance })];
                if offer {
                    messages.push(say(peer, from, Answer::Offered { wanted }));
                }
                messages
            }
        }
    }

    /// This node as a relay; none while it is not one.
    pub(super) fn status(&self) -> Option<RelayStatus> {
        let forwarder = self.forwarder.as_ref()?;
        let (leases, waiting) = forwarder.with(|_, relay| relay.count());
        let counters = forwarder.counters();
        Some(RelayStatus {
            leases,
            waiting,
            datagrams: counters.datagrams,
            bytes: counters.bytes,
            dropped: counters.dropped.into_iter().map(|(why, count)| (why.to_owned(), count)).collect(),
            refused_leases: self.refused_leases.load(Ordering::Relaxed),
            closed_ports: forwarder.closed_ports(),
        })
    }
}

/// Where the sessions with members are. The endpoint of an ended one shows nothing any more.
fn seen(
    admission: &Admission,
    states: &PerSlot<Option<DeviceState>>,
) -> BTreeMap<(PeerId, Slot), SocketAddr> {
    let members = admission.world.peers.values();
    let slots = members.flat_map(|member| Slot::ALL.map(|slot| (member, slot)));
    let seen = slots.filter_map(|(member, slot)| {
        let state = peer_state(states, member, slot)?;
        let endpoint = state.config.endpoint.filter(|_| has_session(state))?;
        Some(((member.uid.peer_id(), slot), endpoint))
    });
    seen.collect()
}

/// Whether a handshake has been completed within the time that a session lasts (`REJECT_AFTER_TIME`, WireGuard paper, section
/// 6.1).
fn has_session(peer: &PeerState) -> bool {
    peer.since_handshake.is_some_and(|since| since < Duration::from_mins(3))
}

/// The addresses of all relays: a leased port there is nobody's end.
fn relay_addresses(admission: &Admission) -> BTreeSet<IpAddr> {
    let own = admission.world.own.iter().flat_map(|own| own.addresses.iter().copied());
    let members = admission.world.peers.values().filter(|member| member.relay);
    let others = members.flat_map(|member| {
        let reach = &member.reach;
        let observed = reach.observed.a.iter().chain(&reach.observed.b).map(SocketAddr::ip);
        let listed = member.addresses.iter().chain(&reach.addresses).chain(&reach.external).copied();
        listed.chain(observed).chain(member.endpoint.map(|endpoint| endpoint.address))
    });
    own.chain(others).collect()
}
