//! The checks of the host: when they are made, and what is said when their result changes.

use std::collections::BTreeSet;
use std::time::Duration;

use linux::{FactSources, FilterState, Handle, HostError, LastAnswer};
use plan::admission::Admission;
use plan::host::{DroppingChain, Expected, Facts, Finding, findings};
use plan::network::LinkName;
use plan::node::NodeName;
use plan::op::Op;
use wireguard::Backend;

use super::cni_files::CONFLIST;
use crate::api::events::MAX_MESSAGE_LEN;
use crate::config::Config;

/// How often the host is checked without a reason.
const PERIOD: Duration = Duration::from_mins(1);
/// How soon it is checked again when the kernel reports changes, which may come many times a second.
const SOONEST: Duration = Duration::from_secs(10);
/// How long it counts that somebody switched forwarding off.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Least time between two Events.
const EVENT_INTERVAL: Duration = Duration::from_mins(1);
/// What it takes to say how many findings an Event leaves out, in bytes.
const ROOM_FOR_REST: usize = 40;

/// What was read and found, and what was said of it. Times are monotonic.
#[derive(Debug, Default)]
pub(super) struct HostChecks {
    facts: Facts,
    findings: BTreeSet<Finding>,
    read_at: Option<Duration>,
    /// Whether something changed since.
    changed: bool,
    /// Whether what was read was not judged yet.
    unjudged: bool,
    /// Chains of others that drop.
    chains: LastAnswer<(), Vec<DroppingChain>>,
    /// Whether forwarding has been found or put in place.
    forwarding_set: bool,
    forwarding_reset: Option<Duration>,
    announced: (BTreeSet<Finding>, Option<Duration>),
}

/// A change of the findings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// What is new.
    pub(super) appeared: Vec<Finding>,
    /// What is no longer so.
    pub(super) gone: Vec<Finding>,
}

impl HostChecks {
    /// Whether the host is to be read now. `changed` says whether the kernel has reported a change since the last question.
    pub(super) fn are_due(&mut self, now: Duration, changed: bool) -> bool {
        self.changed |= changed;
        let wait = if self.changed { SOONEST } else { PERIOD };
        self.read_at.is_none_or(|at| now >= at + wait)
    }

    /// Reads the host.
    pub(super) async fn read(
        &mut self,
        now: Duration,
        config: &Config,
        (host, filters): (&Handle, FilterState),
    ) -> Result<(), HostError> {
        self.read_at = Some(now);
        self.changed = false;
        let sources = FactSources {
            mesh_links: [&config.links.a, &config.links.b],
            cluster: &config.cluster_cidrs,
            cni_conf_dir: &config.cni_conf_dir,
            cni_bin_dir: &config.cni_bin_dir,
        };
        match host.facts(sources, (filters, &mut self.chains)).await {
            Ok(facts) => {
                (self.facts, self.unjudged) = (facts, true);
                Ok(())
            }
            Err(error) => {
                // Tried again soon.
                self.changed = true;
                Err(error)
            }
        }
    }

    /// Links with a default route from router advertisements.
    pub(super) fn router_links(&self) -> BTreeSet<LinkName> {
        self.facts.router_links.clone()
    }

    /// Takes the steps of a turn: whether one switches forwarding on although it was on before.
    pub(super) fn note_steps(&mut self, now: Duration, steps: &[Op]) {
        let switches = |op: &Op| matches!(op, Op::SetSysctl { name, .. } if name == "net/ipv4/ip_forward" || name.ends_with("/all/forwarding"));
        if steps.iter().any(switches) && self.forwarding_set {
            self.forwarding_reset = Some(now);
            self.changed = true;
        }
        self.forwarding_set = true;
    }

    /// Judges what was read last, if that was not done yet; returns what has changed.
    pub(super) fn judge(
        &mut self,
        now: Duration,
        config: &Config,
        backend: Option<Backend>,
        admission: &Admission,
    ) -> Changes {
        if !std::mem::take(&mut self.unjudged) {
            return Changes::default();
        }
        let own = admission.world.own.iter().flat_map(|own| own.pod_cidrs.iter());
        let own = own.map(|range| (*range, NodeName::new(config.node_name.clone())));
        let peers = admission.world.peers.iter();
        let peers =
            peers.flat_map(|(name, member)| member.pod_cidrs.iter().map(|range| (*range, name.clone())));
        let expected = Expected {
            node: config.node_name.clone(),
            input: config.mesh_input(),
            cluster: config.cluster_cidrs.iter().copied().collect(),
            pod_cidrs: own.chain(peers).collect(),
            mesh_links: config.links.iter().map(|(_, link)| link.clone()).collect(),
            to_pods_priority: config.rule_priority + 1,
            cni_file: CONFLIST.to_owned(),
            cni_directory: config.cni_conf_dir.display().to_string(),
            needs_tun: backend == Some(Backend::Userspace),
            forwarding_reset: self.forwarding_reset.is_some_and(|at| now.saturating_sub(at) < REMEMBERED),
        };
        self.take(findings(&self.facts, &expected).into_iter().collect())
    }

    /// How many pods another network plugin has attached, as far as that can be seen.
    pub(super) fn pods_outside(&self) -> usize {
        plan::host::pods_outside(&self.facts).len()
    }

    fn take(&mut self, found: BTreeSet<Finding>) -> Changes {
        let changes = Changes {
            appeared: found.difference(&self.findings).cloned().collect(),
            gone: self.findings.difference(&found).cloned().collect(),
        };
        self.findings = found;
        changes
    }

    /// What was found.
    pub(super) const fn findings(&self) -> &BTreeSet<Finding> {
        &self.findings
    }

    /// The message of an Event, if something else was found than at the last one and that is long enough ago.
    pub(super) fn take_announcement(&mut self, now: Duration) -> Option<String> {
        let (announced, at) = &self.announced;
        let soon = at.is_some_and(|at| now.saturating_sub(at) < EVENT_INTERVAL);
        if *announced == self.findings || soon {
            return None;
        }
        self.announced = (self.findings.clone(), Some(now));
        Some(announcement(&self.findings))
    }
}

/// The codes of all findings, and as many of their sentences as an Event has room for.
fn announcement(findings: &BTreeSet<Finding>) -> String {
    if findings.is_empty() {
        return "no finding is left".to_owned();
    }
    let codes: BTreeSet<&str> = findings.iter().map(|found| found.code.as_str()).collect();
    let mut text = Vec::from_iter(codes).join(", ");
    let mut left_out = 0;
    for (number, found) in findings.iter().enumerate() {
        let sentence = format!(
            "{}{}: {}",
            if number == left_out { ". " } else { "; " },
            found.code.as_str(),
            found.sentence
        );
        if text.len() + sentence.len() + ROOM_FOR_REST <= MAX_MESSAGE_LEN {
            text.push_str(&sentence);
        } else {
            left_out += 1;
        }
    }
    if left_out == 0 { text } else { format!("{text}; {left_out} more in meshd status") }
}

#[cfg(test)]
mod tests {
    use plan::host::Code;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn finding(code: Code) -> Finding {
        Finding { code, sentence: "a sentence".to_owned(), fix: "a command".to_owned() }
    }

    #[test]
    fn the_host_is_read_at_once_then_every_minute_and_sooner_after_a_change() {
        let mut checks = HostChecks::default();
        let mut reads = Vec::new();
        for second in 0..200 {
            // The kernel reports changes all the time for half a minute, and once more while nothing is due.
            let changed = (100..130).contains(&second) || second == 133;
            if checks.are_due(second * SECOND, changed) {
                (checks.read_at, checks.changed) = (Some(second * SECOND), false);
                reads.push(second);
            }
        }
        assert_eq!(reads, [0, 60, 100, 110, 120, 130, 140]);
    }

    #[test]
    fn changes_are_said_once_and_events_come_once_a_minute_at_most() {
        let mut checks = HostChecks::default();
        let all: BTreeSet<Finding> = [Code::Clock, Code::CompetingRoute].map(finding).into();
        let changes = checks.take(all.clone());
        assert_eq!((changes.appeared.len(), changes.gone.len()), (2, 0));
        assert_eq!(checks.take(all), Changes::default());
        let announced = checks.take_announcement(SECOND).unwrap();
        assert_eq!(announced, "clock, competing-route. competing-route: a sentence; clock: a sentence");
        assert_eq!(checks.take_announcement(2 * SECOND), None);
        assert_eq!(checks.take(BTreeSet::new()).gone.len(), 2);
        assert_eq!(checks.take_announcement(60 * SECOND), None, "too soon");
        assert_eq!(checks.take_announcement(61 * SECOND).unwrap(), "no finding is left");
    }

    #[test]
    fn an_event_names_all_codes_and_says_how_many_findings_it_leaves_out() {
        let long = |(code, length): (Code, usize)| Finding {
            code,
            sentence: "a".repeat(length),
            fix: "a command".to_owned(),
        };
        // Each is too long for what the others leave, or too long altogether.
        let lengths = [2_000, 30, 600, 300, 300, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30];
        let all: BTreeSet<Finding> = Code::ALL.into_iter().zip(lengths).map(long).collect();
        let text = announcement(&all);
        assert!(text.len() <= MAX_MESSAGE_LEN, "{}", text.len());
        let (codes, sentences) = text.split_once(". ").unwrap();
        for code in Code::ALL {
            assert!(codes.split(", ").any(|found| found == code.as_str()), "{code:?} in {text}");
        }
        let said =
            Code::ALL.iter().filter(|code| sentences.contains(&format!("{}: ", code.as_str()))).count();
        assert!(said > 1 && sentences.starts_with("input-policy-drop: "), "{text}");
        assert!(text.ends_with(&format!("; {} more in meshd status", all.len() - said)), "{text}");
        assert_eq!(announcement(&BTreeSet::new()), "no finding is left");
    }

    #[test]
    fn forwarding_that_was_on_and_is_switched_on_again_was_reset() {
        let mut checks = HostChecks::default();
        let step = Op::SetSysctl { name: "net/ipv4/ip_forward".to_owned(), value: "1".to_owned() };
        checks.note_steps(SECOND, std::slice::from_ref(&step));
        assert_eq!(checks.forwarding_reset, None, "the first time");
        checks.note_steps(2 * SECOND, &[]);
        assert_eq!(checks.forwarding_reset, None);
        checks.note_steps(3 * SECOND, &[step]);
        assert_eq!(checks.forwarding_reset, Some(3 * SECOND));
    }
}
