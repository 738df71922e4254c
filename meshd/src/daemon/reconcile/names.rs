//! Names as endpoints: those of peers and this node's own are looked up beside the loop, never in a turn.

use std::collections::BTreeSet;
use std::net::IpAddr;

use plan::annotation::Endpoints;
use plan::names::{Change, Host, HostName};
use tracing::{info, warn};

use super::{Answer, Reconciler};
use crate::chain::Chain;
use crate::daemon::names;
use status::NameStatus;

impl Reconciler {
    /// Begins the lookups that are due.
    pub(super) fn look_up_names(&mut self) {
        let peers = self.outcome.admission().world.peers.values().filter_map(|member| member.name.clone());
        let mut wanted: BTreeSet<HostName> = peers.collect();
        wanted.extend(self.config.endpoints.iter().filter_map(|host| match host {
            Host::Name(name) => Some(name.clone()),
            Host::Address(_) => None,
        }));
        let now = self.started.elapsed();
        self.names.set_wanted(now, &wanted);
        for name in self.names.begin(now) {
            self.api.ask(async move {
                let answer = names::look_up(&name).await.map_err(|error| Chain(&error).to_string());
                Some(Answer::Named { name, answer })
            });
        }
    }

    /// Takes what a name stands for; returns whether that is news.
    pub(super) fn take_name(&mut self, name: &HostName, answer: Result<Vec<IpAddr>, String>) -> bool {
        let counters = &mut self.outcome.counters;
        *(if answer.is_ok() { &mut counters.names_resolved } else { &mut counters.names_failed }) += 1;
        let trouble = answer.as_ref().err().cloned();
        match self.names.take(self.started.elapsed(), name, answer) {
            Some(Change::Resolved(addresses)) => info!(
                event = "NameResolved", %name, addresses = %listed(&addresses),
                "a name stands for other addresses than before"
            ),
            Some(Change::Failed(kept)) => warn!(
                event = "NameNotResolved",
                %name, addresses = %listed(&kept), error = trouble.unwrap_or_else(|| "it has no usable address".to_owned()),
                "a name can't be resolved; what it last stood for is kept"
            ),
            None => return false,
        }
        self.policy.resolved = self.names.resolved();
        true
    }

    /// The addresses that an operator gives this node besides those on its links. Until a name of its own has been looked up,
    /// `shown` counts: what its Node shows from before the daemon started.
    pub(super) fn given_addresses(&self, shown: Option<&Endpoints>) -> Vec<IpAddr> {
        let mut given: Vec<IpAddr> = Vec::new();
        let mut is_complete = true;
        for host in &self.config.endpoints {
            match host {
                Host::Address(address) => given.push(*address),
                Host::Name(name) => match self.names.addresses(name) {
                    Some(addresses) if !addresses.is_empty() => given.extend(addresses),
                    _ => is_complete = false,
                },
            }
        }
        if let Some(shown) = shown.filter(|_| !is_complete) {
            given.extend(&shown.external);
        }
        let mut seen = BTreeSet::new();
        given.retain(|address| seen.insert(*address));
        given
    }

    /// The names, for the status.
    pub(super) fn name_statuses(&self) -> Vec<NameStatus> {
        let status = |report: plan::names::Report<'_>| NameStatus {
            name: report.name.to_string(),
            addresses: report.addresses.to_vec(),
            trouble: report.trouble.map(str::to_owned),
        };
        self.names.reports().map(status).collect()
    }
}

fn listed(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(" ")
}
