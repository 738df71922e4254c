//! Answers to requests from the control socket.

use keyring::Slot;
use keyring::rotation::{Cause, Input, PeerId};

use plan::node::{NodeName, NodeUid};
use plan::paths::Kind;
use tokio::sync::oneshot;

use super::Reconciler;
use crate::chain::Chain;
use crate::control::{ControlRequest, Ping, Request};
use crate::daemon::pings;
use status::PlanReport;
use status::ping::Echo;
use status::rotation::RotationStatus;

impl Reconciler {
    /// Takes a request from the control socket. What takes longer is answered later.
    pub(in crate::daemon) async fn take_request(
        &mut self,
        ControlRequest { request, reply }: ControlRequest,
    ) {
        let text = match request {
            Request::Verify => return self.begin_verification(reply).await,
            Request::VerifyProgress => serde_json::to_string(&self.verification_progress()),
            Request::Status => serde_json::to_string_pretty(&self.status()),
            Request::ShortStatus => serde_json::to_string(&self.short_status()),
            Request::Plan => serde_json::to_string_pretty(&self.plan().await),
            Request::Rotate => self.rotate(Cause::Request),
            Request::RotateNow => self.rotate(Cause::Emergency),
            Request::Ping(ping) => return self.ping(&ping, reply),
        };
        // The client may have gone away.
        let _ = reply.send(text.map(|text| text + "\n").unwrap_or_default());
    }

    /// Has a peer echo a packet; the loop goes on meanwhile.
    fn ping(&mut self, ping: &Ping, reply: oneshot::Sender<String>) {
        let refused =
            |reply: oneshot::Sender<String>, why| drop(reply.send(pings::text(&Echo::refused(why))));
        let admission = self.outcome.admission();
        let Some(member) = admission.world.peers.get(&NodeName::new(ping.node.as_str())) else {
            return refused(reply, "not a peer of this node; `meshd status --all` lists them");
        };
        let peer = PeerId::new(member.uid.as_str());
        let Some(over) = ping.slot.or_else(|| self.peer_channel.tx(&peer)) else {
            return refused(reply, "no slot carries packets to it yet");
        };
        let echo = Echo {
            slot: Some(over),
            round_trip_microseconds: None,
            endpoint: self.outcome.endpoint(member, over),
            path: self.paths.up(&member.uid, over).map(|kind| self.path_text(&member.uid, over, kind)),
            refused: None,
        };
        match self.peer_channel.send_ping(&peer, over, ping.size) {
            Some(back) => drop(tokio::spawn(pings::answer(back, echo, reply))),
            None => refused(reply, "too many echoes are on their way, or the peer has no mesh address"),
        }
    }

    fn rotate(&mut self, cause: Cause) -> serde_json::Result<String> {
        self.keys.handle(Input::Rotate(cause));
        self.peer_channel.send_asks(self.keys.take_asks());
        serde_json::to_string_pretty(&self.rotation_status())
    }

    fn rotation_status(&self) -> RotationStatus {
        self.outcome.rotation(&self.config, &self.keys, self.keys.now())
    }

    async fn plan(&mut self) -> PlanReport {
        match self.prepare().await {
            Ok((turn, _)) => PlanReport {
                steps: turn.due.iter().chain(&turn.waiting).map(ToString::to_string).collect(),
                ops: turn
                    .due
                    .iter()
                    .chain(&turn.waiting)
                    .filter_map(|op| serde_json::to_value(op).ok())
                    .collect(),
                violations: turn.violations.iter().map(ToString::to_string).collect(),
            },
            Err(error) => PlanReport { violations: vec![Chain(&error).to_string()], ..PlanReport::default() },
        }
    }

    pub(super) fn path_text(&self, peer: &NodeUid, slot: Slot, kind: Kind) -> String {
        let leased = (!kind.is_direct()).then(|| self.leases.address(peer, slot)).flatten();
        let world = &self.outcome.admission().world;
        let relay = leased.and_then(|leased| world.name_of(leased.relay.as_str()).cloned());
        relay.map_or_else(|| kind.as_str().to_owned(), |relay| format!("{} via {relay}", kind.as_str()))
    }
}
