//! A report as one HTML page for an auditor: the verdict first, then what was found, each node, each pair, and how to check the
//! digests. It needs no script and nothing from elsewhere, and it prints well. Pure.

use ::status::rotation::age;
use ::status::verify::evidence::{Evidence, PeerEvidence, SlotEvidence};
use ::status::verify::{Code, Finding, NodePart, Report, Verdict, Weight, verdict_line};
use keyring::Slot;
use keyring::pq::Protection;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// How the page looks.
const STYLE: &str = include_str!("style.css");

/// Renders the page.
pub(super) fn render(report: &Report) -> String {
    let title = format!("Encryption of the mesh: {}", report.verdict.as_str());
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (verdict(report))
                (findings(&report.findings))
                (nodes(report))
                (pairs(report))
                (meaning())
                (digests(report))
            }
        }
    };
    page.into_string()
}

fn verdict(report: &Report) -> Markup {
    let (class, sentence) = match report.verdict {
        Verdict::Encrypted => ("good", "Everything that was tried proves that the mesh is encrypted."),
        Verdict::Leak => ("bad", "Packets with addresses of pods left a node unencrypted."),
        Verdict::NotProven => ("unknown", "It is not proven that the mesh is encrypted."),
    };
    html! {
        header.(class) {
            h1 { (verdict_line(report)) }
            p { (sentence) }
            p.quiet { "Made " (time(report.made_at)) ", by the clock of the machine that asked." }
        }
    }
}

const fn word(weight: Weight) -> &'static str {
    match weight {
        Weight::Leak => "leak",
        Weight::Failed => "failed",
        Weight::Unknown => "not known",
        Weight::Warning => "warning",
    }
}

fn findings(findings: &[Finding]) -> Markup {
    html! {
        section {
            h2 { "What was found" }
            @if findings.is_empty() { p { "Nothing speaks against it." } } @else {
                table {
                    thead { tr { th { "weight" } th { "code" } th { "where" } th { "what" } th { "do" } } }
                    tbody {
                        @for finding in findings {
                            tr.(word(finding.weight).replace(' ', "-")) {
                                td { (word(finding.weight)) }
                                td { code { (finding.code.as_str()) } }
                                td {
                                    (finding.node)
                                    @if let Some(peer) = &finding.peer { " → " (peer) }
                                    @if let Some(slot) = finding.slot { ", slot " (slot) }
                                }
                                td { (finding.what) }
                                td { (finding.code.advice()) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn nodes(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Nodes" }
            table {
                thead {
                    tr {
                        th { "node" } th { "guard" } th { "sent in the clear" } th { "caught on purpose" }
                        th { "forgeries" } th { "audit trail" } th { "since" } th { "version" }
                    }
                }
                tbody { @for part in &report.nodes { (node(part)) } }
            }
        }
    }
}

fn node(part: &NodePart) -> Markup {
    let Some(evidence) = &part.evidence else {
        let why = part.error.as_deref().unwrap_or("no evidence");
        return html! { tr.failed { td { (part.node) } td colspan="7" { (why) } } };
    };
    let guard = &evidence.guard;
    let place = match guard.in_place {
        Some(true) if guard.owned => "as it should be, and nobody else can change it",
        Some(true) => "as it should be",
        Some(false) => "changed or missing",
        None => "not known",
    };
    let sent: u64 = guard.controls.iter().map(|control| control.sent).sum();
    let caught: u64 = guard.controls.iter().map(|control| control.seen.min(control.dropped)).sum();
    let since = guard.repaired_seconds_ago.unwrap_or(evidence.running_seconds);
    html! {
        tr {
            td { (part.node) }
            td { (place) }
            td { (guard.escaped) " packets" }
            td { (caught) " of " (sent) }
            td { @for forgery in &evidence.fence.forgeries {
                p { (forgery.what.as_str()) ": " (refused(forgery.refused)) br; span.quiet { (forgery.words) } }
            } }
            td { (trail(evidence)) }
            td { (age(since)) }
            td { (evidence.version) }
        }
    }
}

const fn refused(refused: Option<bool>) -> &'static str {
    match refused {
        Some(true) => "refused",
        Some(false) => "ACCEPTED",
        None => "not known",
    }
}

fn trail(evidence: &Evidence) -> String {
    let trail = &evidence.trail;
    match (&trail.error, trail.problems.len()) {
        (Some(error), _) => error.clone(),
        (None, 0) => format!("whole, lines {} to {}", trail.first, trail.last),
        (None, problems) => format!("{problems} problems"),
    }
}

fn pairs(report: &Report) -> Markup {
    let evidence = || report.nodes.iter().filter_map(|part| part.evidence.as_ref());
    html! {
        section {
            h2 { "Pairs" }
            table.pairs {
                thead {
                    tr {
                        th { "from" } th { "to" } th { "slot" } th { "key" } th { "handshake" } th { "echo" }
                        th { "full size" } th { "one byte more" } th { "bytes probed, sent" } th { "preshared key" }
                    }
                }
                tbody {
                    @for node in evidence() { @for peer in &node.peers { @for slot in Slot::ALL {
                        (pair(&node.node, peer, slot, peer.slots.get(slot)))
                    } } }
                }
            }
        }
    }
}

fn pair(node: &str, peer: &PeerEvidence, slot: Slot, found: &SlotEvidence) -> Markup {
    let held = found.held.map_or_else(|| "none".to_owned(), |key| key.fingerprint().to_string());
    let announced = if found.held == found.announced { "as announced" } else { "NOT AS ANNOUNCED" };
    let handshake = found.handshake_age.map_or_else(|| "none".to_owned(), |seconds| age(seconds) + " ago");
    let echo = found
        .echo_microseconds
        .map_or_else(|| "NONE".to_owned(), |micros| format!("{}.{:03} ms", micros / 1000, micros % 1000));
    let passes = match found.full_size_passes {
        Some(true) => "passes",
        Some(false) => "LOST",
        None => "not tried",
    };
    let larger = match found.larger_refused {
        Some(true) => "refused",
        Some(false) => "NOT REFUSED",
        None => "not tried",
    };
    let preshared = match (found.pq.protection, peer.pq.enabled) {
        (Protection::Proven, _) => "proven",
        (_, Some(false)) => "off",
        (Protection::Set, _) => "set, not used yet",
        (Protection::None | Protection::Offered, _) => "none yet",
    };
    html! {
        tr {
            td { (node) } td { (peer.node) } td { (slot) }
            td { code { (held) } " " (announced) }
            td { (handshake) } td { (echo) }
            td { (peer.mtu) " bytes: " (passes) } td { (larger) }
            td { (found.probed) ", " (found.sent.map_or_else(|| "not known".to_owned(), |sent| sent.to_string())) }
            td { (preshared) }
        }
    }
}

fn meaning() -> Markup {
    html! {
        section {
            h2 { "What was tried" }
            p {
                "On each node the daemon compared every rule of the guard in the kernel with what it should be, counted the packets with pod \
                 addresses that were about to leave outside the tunnels and those that were dropped, and sent some so on purpose: all have \
                 to be in both counts. It tried, as dry runs, to change another Node's keys and address by its own token. It read its \
                 audit trail, and other nodes' records of it were compared. To each other node it sent packets through both tunnels: an \
                 answer is authenticated by keys that only the two daemons have."
            }
            p {
                "What it does not show: what left while no daemon looked (the time in the column “since” is that of an unbroken look), \
                 packets that root on a node sends by raw sockets, and that the nodes themselves are honest."
            }
            p { "Codes: " @for code in Code::ALL { code { (code.as_str()) } " " } "are explained in docs/verify.md." }
        }
    }
}

fn digests(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Digests" }
            p { "SHA-256 of the evidence of each node, and of the whole report, as written by " code { "kubectl meshd verify -o json" } ":" }
            table {
                tbody {
                    @for part in &report.nodes {
                        tr { td { (part.node) } td { code { (part.sha256.as_deref().unwrap_or("no evidence")) } } }
                    }
                    tr { td { "the whole" } td { code { (report.sha256) } } }
                }
            }
            pre {
                "jq -cj '.nodes[] | select(.node == \"NODE\").evidence' evidence.json | sha256sum\n"
                "jq -cj 'del(.sha256)' evidence.json | sha256sum"
            }
        }
    }
}

fn time(seconds: u64) -> String {
    let moment =
        i64::try_from(seconds).ok().and_then(|at| k8s_openapi::jiff::Timestamp::from_second(at).ok());
    moment.map_or_else(
        || "at an unknown time".to_owned(),
        |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use ::status::verify::Gathered;

    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_escapes_what_others_say() {
        let peer = PeerEvidence { node: "n2".into(), mtu: 1420, ..PeerEvidence::default() };
        let evidence = Evidence {
            node: "n1".into(),
            version: "<script>".into(),
            peers: vec![peer],
            ..Evidence::default()
        };
        let gathered = BTreeMap::from([
            ("n1".to_owned(), Gathered::Evidence(Box::new(evidence))),
            ("n2".to_owned(), Gathered::Nothing("<img src=x>".into())),
        ]);
        let report = Report::of_mesh(1_796_000_000, gathered);
        let page = render(&report);
        assert!(page.contains("NOT PROVEN 0/2 pairs, 2 nodes of which 1 gave no evidence"), "{page}");
        assert!(page.contains("Made 2026-11-30 "), "{page}");
        assert!(page.contains("&lt;script&gt;") && page.contains("&lt;img src=x&gt;"), "{page}");
        for foreign in ["http:", "https:", "<script", "<img", "url(", "@import"] {
            assert!(!page.contains(foreign), "{foreign} in {page}");
        }
        assert!(page.contains(&report.sha256) && page.contains("no-echo"), "{page}");
    }
}
