//! Answers to requests from the control socket.

use keyring::Slot;
use keyring::rotation::{Cause, Input};

use plan::node::NodeUid;
use plan::paths::Kind;

use super::Reconciler;
use crate::chain::Chain;
use crate::control::{ControlRequest, Request};
use status::PlanReport;
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
        };
        // The client may have gone away.
        let _ = reply.send(text.map(|text| text + "\n").unwrap_or_default());
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
