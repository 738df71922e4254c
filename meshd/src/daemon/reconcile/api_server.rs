//! What the loop asks of the API server, and what it has published there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use keyring::rotation::Input;
use plan::node::NodeName;
use tokio::time::Instant;
use tracing::warn;

use super::{ASK, PATIENCE, Reconciler};
use crate::api::fence::{self, Fence};
use crate::api::{nodes, servers};
use crate::chain::Chain;
use crate::daemon::publication;

impl Reconciler {
    /// Asks for each missing Node by name, a few at a time.
    pub(super) async fn confirm_gone(&self, missing: BTreeSet<NodeName>) -> BTreeSet<NodeName> {
        use futures::StreamExt as _;
        let questions = futures::stream::iter(missing).map(|name| async {
            let answer = tokio::time::timeout(PATIENCE, nodes::find(&self.client, &name)).await;
            matches!(answer, Ok(Ok(None))).then_some(name)
        });
        questions.buffer_unordered(8).filter_map(std::future::ready).collect().await
    }

    /// Hands the publisher what our Node should say, if it says something else.
    pub(super) async fn publish(&mut self) {
        let Some(record) = self.cluster.own_record().cloned() else {
            self.outcome.published = false;
            return;
        };
        if let Some(seen) = publication::foreign_generation(&record, &self.keys) {
            self.keys.handle(Input::ForeignGeneration(seen));
        }
        // Not before the node is as it says.
        if !self.keys.announced() {
            self.outcome.published = false;
            return;
        }
        let endpoints = self.endpoints(&record).await;
        let publication = publication::wanted(&record, &self.keys, &self.config, endpoints);
        self.outcome.published = publication::stands(&record, &publication);
        if self.outcome.published {
            self.keys.handle(Input::Published(self.keys.journal().generation));
        }
        let wanted = (!self.outcome.published).then_some(publication);
        self.wanted.send_if_modified(|standing| {
            let modified = *standing != wanted;
            *standing = wanted;
            modified
        });
    }

    /// Where peers reach us: as configured, else our Node's addresses that are really ours.
    async fn endpoints(&self, record: &plan::node::NodeRecord) -> Vec<IpAddr> {
        if !self.config.endpoints.is_empty() {
            return self.config.endpoints.clone();
        }
        let local = self.host.local_addresses().await.unwrap_or_default();
        let listed = record.addresses.iter().filter_map(|text| text.parse().ok());
        listed.filter(|address| local.contains(address)).collect()
    }

    /// Asks now and then what the API server's addresses are and whether its policy stands.
    pub(super) async fn ask_api_server(&mut self) {
        let due = self.asked.is_none_or(|asked| asked.elapsed() >= ASK);
        if !due || !self.cluster.is_listed() || self.outcome.api_error.is_some() {
            return;
        }
        self.asked = Some(Instant::now());
        match tokio::time::timeout(PATIENCE, servers::addresses(&self.client)).await {
            Ok(Ok(addresses)) => self.policy.api_servers.extend(addresses),
            Ok(Err(error)) => warn!(cause = %Chain(&error), "the API server does not name its own addresses"),
            Err(_) => warn!("the API server does not answer in time"),
        }
        let Some(other) = self.cluster.any_other() else {
            self.asked = None;
            return;
        };
        match tokio::time::timeout(PATIENCE, fence::test(&self.client, other)).await {
            Ok(Ok(fence)) => {
                if fence == Fence::Missing {
                    warn!(
                        "TrustPolicyMissing: the API server lets this daemon change other Nodes; apply deploy/base/admission-policy.yaml"
                    );
                }
                self.outcome.fence = fence;
            }
            Ok(Err(error)) => warn!(cause = %Chain(&error), "the trust policy could not be tested"),
            Err(_) => warn!("the API server does not answer in time"),
        }
    }
}
