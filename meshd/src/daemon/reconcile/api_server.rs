//! What the loop asks of the API server, by tasks whose answers come back as inputs, and what it publishes there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use keyring::Slot;
use keyring::rotation::Input;
use plan::admission::Claim;
use plan::backoff::Attempt;
use plan::cluster::Lookup;
use plan::names::HostName;
use plan::node::NodeName;
use plan::publication;
use plan::turn::{ApiServer, questions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{error, warn};

use super::Reconciler;
use crate::api::events::NodeEvent;
use crate::api::fence;
use crate::api::{API_TIMEOUT, nodes, servers};
use crate::chain::Chain;
use crate::daemon::cni_files::Probed;
use status::Fence;
use status::verify::evidence::{FenceEvidence, TrailEvidence};

/// How long all lookups of missing Nodes may take together. Those without an answer by then are not confirmed gone.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);
/// The signatures by which this node proves its keys.
const PROOF: Attempt = Attempt::Task("proof");
/// Lookups at a time.
const LOOKUPS: usize = 8;

/// What the API server answered.
#[derive(Debug)]
pub(in crate::daemon) enum Answer {
    /// Which of the missing Nodes of a list it does not have.
    Gone { list: u64, gone: BTreeSet<NodeName> },
    /// Its own addresses; none if it did not name them in time.
    Addresses(Option<BTreeSet<IpAddr>>),
    /// Whether its admission policy is in place.
    Fence(Fence),
    /// What it says to forgeries, for a verification.
    Forgeries(FenceEvidence),
    /// What the audit trail says, for a verification. Not of the API server.
    TrailRead(TrailEvidence),
    /// Which chained CNI plugins support CNI 1.1.0. Not of the API server, but of a task as well.
    ChainedPlugins(Vec<Probed>),
    /// Whether a node completed a handshake at an address that it claims. Not of the API server either.
    AddressTested { claim: Claim, slot: Slot, completed: bool },
    /// What a name stands for, or why it can't be resolved.
    Named { name: HostName, answer: Result<Vec<IpAddr>, String> },
}

/// Asks the API server, and remembers when.
pub(super) struct ApiQuestions {
    client: kube::Client,
    answers: mpsc::Sender<Answer>,
    /// The running lookup of missing Nodes; one for an older list is of no use any more.
    lookup: Option<JoinHandle<()>>,
    addresses_known: bool,
    addresses_asked: Option<Duration>,
    fence_tested: Option<Duration>,
}

impl ApiQuestions {
    pub(super) const fn new(client: kube::Client, answers: mpsc::Sender<Answer>) -> Self {
        let lookup = None;
        Self { client, answers, lookup, addresses_known: false, addresses_asked: None, fence_tested: None }
    }

    /// Looks up missing Nodes by name, a few at a time.
    pub(super) fn look_up(&mut self, Lookup { list, missing }: Lookup) {
        let client = self.client.clone();
        let lookup = self.ask(async move {
            let lookups = futures::stream::iter(missing).map(|name| {
                let client = client.clone();
                async move {
                    let answer = timeout(API_TIMEOUT, nodes::find(&client, &name)).await;
                    matches!(answer, Ok(Ok(None))).then_some(name)
                }
            });
            let mut confirmed = lookups.buffer_unordered(LOOKUPS).filter_map(std::future::ready).boxed();
            let mut gone = BTreeSet::new();
            let all = async {
                while let Some(name) = confirmed.next().await {
                    gone.insert(name);
                }
            };
            // The rest is not confirmed.
            let _ = timeout(LOOKUP_TIMEOUT, all).await;
            Some(Answer::Gone { list, gone })
        });
        if let Some(former) = self.lookup.replace(lookup) {
            former.abort();
        }
    }

    /// Asks for its own addresses. There is always an answer.
    pub(super) fn ask_addresses(&mut self, now: Duration) {
        self.addresses_asked = Some(now);
        let client = self.client.clone();
        drop(self.ask(async move {
            match timeout(API_TIMEOUT, servers::addresses(&client)).await {
                Ok(Ok(addresses)) => return Some(Answer::Addresses(Some(addresses))),
                Ok(Err(error)) => {
                    warn!(
                        event = "ApiServerAddressesUnknown", error = %Chain(&error),
                        "can't read the API server's addresses"
                    );
                }
                Err(_) => warn!(event = "ApiServerTimeout", "timed out reading the API server's addresses"),
            }
            Some(Answer::Addresses(None))
        }));
    }

    fn test_fence(&self, other: NodeName) {
        let client = self.client.clone();
        drop(self.ask(async move {
            match timeout(API_TIMEOUT, fence::test(&client, &other)).await {
                Ok(Ok(fence)) => return Some(Answer::Fence(fence)),
                Ok(Err(error)) => warn!(
                    event = "TrustPolicyUntested", error = %Chain(&error),
                    "the admission policy could not be tested"
                ),
                Err(_) => {
                    warn!(event = "ApiServerTimeout", "the admission policy could not be tested in time");
                }
            }
            None
        }));
    }

    /// Asks what becomes of forgeries of another Node.
    pub(super) fn try_forgeries(&self, other: NodeName) {
        let client = self.client.clone();
        drop(self.ask(async move {
            let forgeries = fence::forgeries(&client, &other).await;
            Some(Answer::Forgeries(FenceEvidence { other: Some(other.to_string()), forgeries }))
        }));
    }

    /// Runs a task whose answer is an input of the loop.
    pub(super) fn ask(
        &self,
        question: impl Future<Output = Option<Answer>> + Send + 'static,
    ) -> JoinHandle<()> {
        let answers = self.answers.clone();
        tokio::spawn(async move {
            if let Some(answer) = question.await {
                // This fails when the loop has ended; the answer is not needed then.
                let _ = answers.send(answer).await;
            }
        })
    }
}

impl Reconciler {
    /// Asks periodically for the API server's addresses and whether its admission policy is in place.
    pub(super) fn question_api_server(&mut self, now: Duration) {
        let due = questions(
            &ApiServer {
                connected: self.cluster.is_listed() && self.outcome.api_error.is_none(),
                addresses_known: self.api.addresses_known,
                addresses_asked: self.api.addresses_asked,
                fence_tested: self.api.fence_tested,
                other: self.cluster.any_other().cloned(),
            },
            now,
        );
        if due.addresses {
            self.api.ask_addresses(now);
        }
        if let Some(other) = due.fence {
            self.api.fence_tested = Some(now);
            self.api.test_fence(other);
        }
    }

    /// Takes an answer of the API server; returns whether the loop should act on it.
    pub(in crate::daemon) fn take_answer(&mut self, answer: Answer) -> bool {
        match answer {
            Answer::Gone { list, gone } => self.cluster.confirm(self.started.elapsed(), list, &gone),
            Answer::Addresses(addresses) => {
                self.api.addresses_known |= addresses.is_some();
                let addresses = addresses.unwrap_or_default();
                let before = self.policy.api_servers.len();
                self.policy.api_servers.extend(addresses);
                // Without an answer the addresses known from the configuration have to do.
                self.apply_held_changes() || self.policy.api_servers.len() != before
            }
            Answer::Fence(fence) => {
                if fence == Fence::Missing {
                    warn!(
                        event = "TrustPolicyMissing",
                        "the API server lets this daemon change other Nodes; apply deploy/base/policy-own-node.yaml"
                    );
                }
                self.outcome.fence = fence;
                false
            }
            Answer::AddressTested { claim, slot, completed } => {
                self.take_test(self.started.elapsed(), &claim, slot, completed)
            }
            Answer::Forgeries(evidence) => {
                self.take_verified(|verification| verification.fence = Some(evidence))
            }
            Answer::TrailRead(evidence) => {
                self.take_verified(|verification| verification.trail = Some(evidence))
            }
            Answer::Named { name, answer } => self.take_name(&name, answer),
            Answer::ChainedPlugins(probed) => {
                self.outcome.chained.finish_probe(probed, self.started.elapsed());
                true
            }
        }
    }

    /// Has an Event created on our Node, if there is one.
    pub(super) fn send_event(&self, warning: bool, reason: &'static str, message: String) {
        let Some(own) = self.cluster.own_record() else { return };
        // The queue is full while the API server is away: an Event is not worth waiting for.
        let event = NodeEvent { uid: own.uid.clone(), warning, reason, message };
        if self.node_events.try_send(event).is_err() {
            self.outcome.events_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hands the publisher the annotations of our Node, if they differ.
    pub(super) fn publish(&mut self) {
        let Some(record) = self.cluster.own_record().cloned() else {
            self.outcome.published = false;
            return;
        };
        if let Some(seen) = publication::foreign_generation(&record, self.keys.journal(), !self.keys.shown())
        {
            self.keys.handle(Input::ForeignGeneration(seen));
        }
        // Not before the devices have these keys.
        if !self.keys.announced() {
            self.outcome.published = false;
            return;
        }
        let endpoints = self.endpoints(&record);
        let announcement = publication::announcement(&record, self.keys.journal(), &self.config.ports);
        let state = match self.keys.prove(&announcement, publication::published(&record, &announcement)) {
            Ok(state) => {
                self.side_tasks.succeeded(&PROOF);
                state
            }
            Err(error) => {
                let cause = Chain(&error).to_string();
                if self.side_tasks.failed(self.started.elapsed(), PROOF, cause.clone()) {
                    error!(
                        event = "KeysNotProven",
                        error = cause,
                        "can't sign the announcement of the keys; the former one stays"
                    );
                }
                self.outcome.published = false;
                return;
            }
        };
        let publication = publication::wanted(&record, &state, &endpoints);
        self.outcome.published = publication::is_in_place(&record, &publication);
        if self.outcome.published {
            self.keys.set_shown();
        }
        let wanted = (!self.outcome.published).then_some(publication);
        // What was written once may have been overwritten before it was seen here.
        let overwritten = self.outcome.shown_state != record.state;
        self.outcome.shown_state.clone_from(&record.state);
        self.wanted.send_if_modified(|former| {
            let modified = *former != wanted || (overwritten && wanted.is_some());
            *former = wanted;
            modified
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Instant;

    use super::*;

    /// An API server that accepts connections and never answers.
    async fn hanging() -> kube::Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Ok(connection) = listener.accept().await {
                connections.push(connection);
            }
        });
        kube::Client::try_from(kube::Config::new(uri.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn a_lookup_that_hangs_holds_up_nothing_and_confirms_nothing() {
        let (sender, mut answers) = mpsc::channel(1);
        let mut api = ApiQuestions::new(hanging().await, sender);
        let missing = ["n2", "n3"].map(NodeName::new).into();
        let asked = Instant::now();
        api.look_up(Lookup { list: 7, missing });
        api.ask_addresses(Duration::ZERO);
        api.test_fence(NodeName::new("n2"));
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
        assert!(answers.try_recv().is_err());
        let (mut looked_up, mut addresses) = (None, None);
        while looked_up.is_none() || addresses.is_none() {
            match answers.recv().await {
                Some(Answer::Gone { list: 7, gone }) => looked_up = Some(gone),
                Some(Answer::Addresses(answer)) => addresses = Some(answer),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((looked_up, addresses), (Some(BTreeSet::new()), Some(None)));
        assert!(asked.elapsed() >= API_TIMEOUT);
    }
}
