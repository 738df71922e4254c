//! Which problems follow from which: of a cause and what it brings about only the cause is worth reading first. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::text::{Paint, wrapped};
use super::{API_VERSION, Code, Mesh, Problem, Severity};
use crate::table::names;

/// How many places are named.
const NAMED: usize = 5;

/// A mesh with its causes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `MeshDiagnosis`.
    pub kind: String,
    /// Each cause, errors first.
    pub causes: Vec<Cause>,
}

/// A problem that follows from no other one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// Its name: a code of docs/problems.md or of docs/host-checks.md.
    pub code: String,
    /// How bad it is, with what follows.
    pub severity: Severity,
    /// The problem.
    #[serde(flatten)]
    pub problem: Cut,
    /// What follows from it: codes and where each is seen.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub explains: BTreeMap<String, Vec<String>>,
}

/// A problem without what its cause says already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cut {
    /// Where it is seen.
    pub node: String,
    /// What was found.
    pub what: String,
    /// What to do.
    #[serde(rename = "do")]
    pub advice: String,
}

/// Checks of the host that keep packets of the mesh from the node, or lead them elsewhere. A program that only might do so, since it
/// manages links, is none of them: it would explain everything.
const AGAINST_PACKETS: [&str; 4] =
    ["input-policy-drop", "competing-route", "competing-rule", "rp-filter-strict"];
/// Those that can keep a node from becoming ready.
const AGAINST_READINESS: [&str; 5] =
    ["cni-config-shadowed", "cni-dir-owner", "tun-missing", "ipv6-disabled", "selinux"];

/// Whether a problem can be what brings about another one. A problem never explains itself, and these rules have no circles:
/// each leads from what is nearer to the host to what is nearer to pods.
fn explains(cause: &Problem, effect: &Problem) -> bool {
    let (here, there) = (effect.node == cause.node, is_all_about(effect, &cause.node));
    let check = cause.check.as_deref().unwrap_or_default();
    match cause.code {
        // Its peers wait for it.
        Code::NoDaemon | Code::NoAnswer => there && is_of_pair(effect.code),
        Code::Host if check == "clock" => {
            (here && matches!(effect.code, Code::ApiAway | Code::Unpublished))
                || touches_pairs(effect, here, there)
        }
        Code::Host if AGAINST_PACKETS.contains(&check) => touches_pairs(effect, here, there),
        Code::Host if AGAINST_READINESS.contains(&check) => {
            here && matches!(effect.code, Code::NotReady | Code::StepFailed)
        }
        Code::StepFailed => {
            (here && matches!(effect.code, Code::GuardMissing | Code::NotReady))
                || touches_pairs(effect, here, there)
        }
        Code::GuardMissing => here && effect.code == Code::NotReady,
        Code::ApiAway => {
            (here && effect.code == Code::Unpublished) || (there && effect.code == Code::Pending)
        }
        Code::Unpublished => there && effect.code == Code::Pending,
        Code::Rejected => {
            here && effect.peers.iter().all(|peer| cause.peers.contains(peer))
                && matches!(effect.code, Code::Unreached | Code::PresharedBlocked | Code::RotationBlocked)
                && !effect.peers.is_empty()
        }
        // Of the same pair, at either end.
        Code::NoRelay => same_pair(cause, effect) && effect.code != Code::NoRelay && is_of_pair(effect.code),
        Code::Unreached => {
            same_pair(cause, effect)
                && matches!(
                    effect.code,
                    Code::PresharedBlocked
                        | Code::PresharedStripped
                        | Code::RotationBlocked
                        | Code::PathTooSmall
                )
        }
        Code::PresharedBlocked | Code::PresharedStripped => {
            same_pair(cause, effect) && effect.code == Code::RotationBlocked
        }
        _ => false,
    }
}

fn touches_pairs(effect: &Problem, here: bool, there: bool) -> bool {
    (here || there)
        && matches!(
            effect.code,
            Code::Unreached
                | Code::PresharedBlocked
                | Code::PresharedStripped
                | Code::RotationBlocked
                | Code::NoRelay
        )
}

/// Whether it is what one node says of others.
const fn is_of_pair(code: Code) -> bool {
    matches!(
        code,
        Code::Unreached
            | Code::PresharedBlocked
            | Code::PresharedStripped
            | Code::PathTooSmall
            | Code::Pending
            | Code::RotationBlocked
            | Code::NoRelay
    )
}

/// Whether a problem is about this node and no other one.
fn is_all_about(problem: &Problem, node: &str) -> bool {
    !problem.peers.is_empty() && problem.peers.iter().all(|peer| peer == node)
}

/// Whether each pair of the effect is one of the cause's.
fn same_pair(cause: &Problem, effect: &Problem) -> bool {
    let of_cause = |one: &str, other: &str| {
        (cause.node == one && cause.peers.iter().any(|peer| peer == other))
            || (cause.node == other && cause.peers.iter().any(|peer| peer == one))
    };
    !effect.peers.is_empty() && effect.peers.iter().all(|peer| of_cause(&effect.node, peer))
}

impl Diagnosis {
    /// Finds the causes among the problems of a mesh.
    pub fn new(mesh: &Mesh) -> Self {
        let problems = &mesh.problems;
        let roots: Vec<&Problem> =
            problems.iter().filter(|effect| !problems.iter().any(|cause| explains(cause, effect))).collect();
        let mut causes: Vec<Cause> = roots.into_iter().map(|root| Cause::new(root, problems)).collect();
        causes.sort_by(|one, other| (one.severity, &one.code).cmp(&(other.severity, &other.code)));
        Self { api_version: API_VERSION.to_owned(), kind: "MeshDiagnosis".to_owned(), causes }
    }

    /// Renders it, within 80 columns.
    pub fn render(&self, paint: Paint) -> String {
        let mut text = String::new();
        // Writing into a String can't fail.
        for cause in &self.causes {
            let _ = cause.write(&mut text, paint);
        }
        if self.causes.is_empty() {
            text.push_str("nothing is wrong\n");
        }
        text
    }
}

impl Cause {
    fn new(root: &Problem, problems: &[Problem]) -> Self {
        let mut severity = root.severity;
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        // What follows, what follows from that, and so on.
        let mut open = vec![root];
        let mut seen: Vec<&Problem> = vec![root];
        while let Some(cause) = open.pop() {
            for effect in problems.iter().filter(|effect| explains(cause, effect)) {
                if seen.contains(&effect) {
                    continue;
                }
                seen.push(effect);
                open.push(effect);
                severity = severity.min(effect.severity);
                let place = match effect.peers.as_slice() {
                    [] => effect.node.clone(),
                    peers => format!("{} -> {}", effect.node, names(peers, NAMED)),
                };
                found.entry(effect.name().to_owned()).or_default().push(place);
            }
        }
        Self {
            code: root.name().to_owned(),
            severity,
            problem: Cut { node: root.node.clone(), what: root.what.clone(), advice: root.advice.clone() },
            explains: found,
        }
    }

    fn write(&self, text: &mut String, paint: Paint) -> std::fmt::Result {
        let Cut { node, what, advice } = &self.problem;
        writeln!(text, "{} {}", paint.severity(self.severity), self.code)?;
        wrapped(text, "  ", &format!("{node}: {what}"))?;
        wrapped(text, "  do: ", advice)?;
        for (code, places) in &self.explains {
            wrapped(text, "  explains: ", &format!("{code}: {}", names(places, NAMED)))?;
        }
        writeln!(text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::{mesh, node};
    use super::super::{Answer, Shown, render};
    use super::*;
    use crate::{FindingStatus, Status};

    const FOUR: [&str; 4] = ["n1", "n2", "n3", "n4"];

    fn diagnosis(statuses: Vec<Status>, others: Vec<(&str, Answer)>) -> Diagnosis {
        let mut answers: BTreeMap<String, Answer> = mesh(statuses);
        answers.extend(others.into_iter().map(|(node, answer)| (node.to_owned(), answer)));
        Diagnosis::new(&Mesh::new(&answers))
    }

    fn found(diagnosis: &Diagnosis) -> Vec<(&str, &str, Vec<&str>)> {
        diagnosis
            .causes
            .iter()
            .map(|cause| {
                (
                    cause.code.as_str(),
                    cause.problem.node.as_str(),
                    cause.explains.keys().map(String::as_str).collect(),
                )
            })
            .collect()
    }

    fn host(code: &str) -> FindingStatus {
        FindingStatus {
            code: code.to_owned(),
            sentence: "a chain drops".to_owned(),
            fix: "nft ...".to_owned(),
        }
    }

    #[test]
    fn a_mesh_without_problems_has_no_cause() {
        let diagnosis = diagnosis(FOUR.map(|name| node(name, &FOUR, &[])).into(), Vec::new());
        assert_eq!(
            (found(&diagnosis), diagnosis.render(Paint::None).as_str()),
            (vec![], "nothing is wrong\n")
        );
    }

    #[test]
    fn a_chain_that_drops_explains_whom_the_node_does_not_reach_and_what_waits_for_that() {
        let mut statuses: Vec<Status> = FOUR.map(|name| node(name, &FOUR, &[])).into();
        statuses[1] = node("n2", &FOUR, &["n1"]);
        statuses[0] = node("n1", &FOUR, &["n2"]);
        statuses[1].findings = vec![host("input-policy-drop")];
        statuses[0].rotation.blocked_by = vec!["n2".to_owned()];
        let diagnosis = diagnosis(statuses, Vec::new());
        assert_eq!(found(&diagnosis), [("input-policy-drop", "n2", vec!["rotation-blocked", "unreached"])]);
        assert_eq!(diagnosis.causes[0].severity, Severity::Error, "as bad as what follows from it");
        let text = diagnosis.render(Paint::None);
        assert!(text.contains("  explains: unreached: n1 -> n2, n2 -> n1\n"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_node_that_is_gone_explains_what_others_say_of_it_and_nothing_else() {
        let mut statuses: Vec<Status> = ["n1", "n2", "n3"].map(|name| node(name, &FOUR, &["n4"])).into();
        statuses[0].pending = vec!["n4".to_owned()];
        statuses[1].ready = false;
        let diagnosis = diagnosis(statuses, vec![("n4", Answer::Absent("no pod".to_owned()))]);
        assert_eq!(found(&diagnosis), [("no-daemon", "n4", vec!["pending"]), ("not-ready", "n2", vec![])]);
    }

    #[test]
    fn causes_lead_on_through_what_they_bring_about() {
        let mut status = node("n1", &FOUR, &[]);
        status.findings = vec![host("tun-missing")];
        status.failures = vec!["create mesh-a: no such device".to_owned()];
        status.guard.in_place = false;
        status.ready = false;
        let rest = ["n2", "n3", "n4"].map(|name| node(name, &FOUR, &[]));
        let diagnosis = diagnosis(std::iter::once(status).chain(rest).collect(), Vec::new());
        assert_eq!(
            found(&diagnosis),
            [("tun-missing", "n1", vec!["guard-missing", "not-ready", "step-failed"])]
        );
    }

    #[test]
    fn nothing_is_hidden_that_no_cause_explains() {
        let statuses = vec![
            node("n1", &FOUR, &["n2"]),
            node("n2", &FOUR, &["n1"]),
            node("n3", &FOUR, &[]),
            node("n4", &FOUR, &[]),
        ];
        let all = mesh(statuses);
        let whole = Mesh::new(&all);
        let diagnosis = Diagnosis::new(&whole);
        assert_eq!(found(&diagnosis), [("unreached", "n1", vec![]), ("unreached", "n2", vec![])]);
        assert!(render(&whole, Shown::Problems, Paint::None).contains("unreached"));
    }
}
