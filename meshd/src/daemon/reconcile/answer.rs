//! Answers to requests from the control socket.

use keyring::Slot;
use keyring::rotation::{Cause, Input};

use plan::node::NodeUid;
use plan::paths::Kind;

use super::Reconciler;
use crate::chain::Chain;
use crate::control::Request;
use crate::status::{PlanReport, Status};

impl Reconciler {
    /// Answers a request from the control socket.
    pub(in crate::daemon) async fn answer(&mut self, request: Request) -> String {
        let text = match request {
            Request::Status => serde_json::to_string_pretty(&self.status()),
            Request::Plan => serde_json::to_string_pretty(&self.plan().await),
            Request::Rotate => self.rotate(Cause::Request),
            Request::RotateNow => self.rotate(Cause::Emergency),
        };
        text.map(|text| text + "\n").unwrap_or_default()
    }

    fn rotate(&mut self, cause: Cause) -> serde_json::Result<String> {
        self.keys.handle(Input::Rotate(cause));
        self.peer_channel.send_asks(self.keys.take_asks());
        serde_json::to_string_pretty(&self.status().rotation)
    }

    async fn plan(&mut self) -> PlanReport {
        match self.prepare().await {
            Ok(turn) => PlanReport {
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

    fn path_text(&self, peer: &NodeUid, slot: Slot, kind: Kind) -> String {
        let leased = (!kind.is_direct()).then(|| self.leases.address(peer, slot)).flatten();
        let world = &self.outcome.admission().world;
        let relay = leased.and_then(|leased| world.name_of(leased.relay.as_str()).cloned());
        relay.map_or_else(|| kind.as_str().to_owned(), |relay| format!("{} via {relay}", kind.as_str()))
    }

    /// The status as of now.
    pub(in crate::daemon) fn status(&mut self) -> Status {
        let status = self.outcome.status(
            &self.config,
            &self.keys,
            &self.pairs,
            &self.cluster,
            (&mut self.devices, &self.peer_channel),
            self.started.elapsed(),
        );
        let relay = self.relay.status();
        let leases = self.leases.status(self.outcome.admission());
        let (control, nat) = (self.peer_channel.status(), self.mapping());
        let names = self.name_statuses();
        let mut status = Status { nat, control, relay, leases, names, ..status };
        for peer in &mut status.peers {
            let Some(uid) = self.outcome.uid(&peer.node) else { continue };
            for slot in Slot::ALL {
                if let Some(found) = peer.slots.get_mut(slot) {
                    found.path = self.paths.up(uid, slot).map(|kind| self.path_text(uid, slot, kind));
                }
            }
            let way = self.peer_channel.path(uid);
            peer.round_trip_microseconds =
                way.round_trip.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            way.source.as_str().clone_into(&mut peer.mtu_source);
            peer.full_size_passes = way.full_size;
        }
        status
    }
}
