use super::*;
use crate::capture::Control;
use crate::report::{CaptureFile, Carried, Cluster, Frames, tests::seen};

const HOSTILE: &str = "</body><script>alert(1)</script>\" onload=\"x' & \u{202e}\u{1b}[31m";

fn report(cases: Vec<Seen>) -> Report {
    let cluster = Cluster { families: vec!["ipv4"], ..Cluster::default() };
    Report::new(cases, &[], cluster, 1_000_000_000, 135)
}

#[test]
fn the_verdict_is_first_then_what_failed_then_the_rest() {
    let fail = Seen { command: "the command".into(), ..seen("N2", Verdict::Fail) };
    let page = html(&report(vec![seen("N1", Verdict::Pass), fail]));
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text:?} in {page}"));
    let order =
        ["✗ Failed", "Of 2 checks 1 passed and 1 failed.", "What did not pass", "the command", "The cluster"];
    let places = order.map(at);
    assert!(places.is_sorted(), "{places:?}");
    assert!(page.contains("2001-09-09 01:46 UTC, took 2\u{a0}min 15\u{a0}s"), "{page}");
    let page = html(&report(vec![seen("N1", Verdict::Pass)]));
    assert!(page.contains("✓ Passed") && !page.contains("What did not pass"), "{page}");
    assert!(html(&report(vec![])).contains("Nothing was tried"));
}

#[test]
fn each_cell_of_the_grid_leads_to_its_checks_and_says_why_it_was_skipped() {
    let skipped = Seen { reason: Some("no SCTP".into()), ..seen("N3", Verdict::Skipped) };
    let page = html(&report(vec![skipped, Seen { family: "", ..seen("E1", Verdict::Pass) }]));
    for text in [
        "href=\"#N3-ipv4\" title=\"no SCTP\"",
        "<dt>N3 IPv4</dt><dd>no SCTP</dd>",
        "id=\"N3-ipv4\"",
        "href=\"#E1\"",
        "id=\"E1\"",
    ] {
        assert!(page.contains(text), "{text} in {page}");
    }
}

#[test]
fn what_others_say_stays_text() {
    let case = |verdict| Seen {
        row: HOSTILE.into(),
        claim: HOSTILE.into(),
        about: HOSTILE.into(),
        command: HOSTILE.into(),
        expected: HOSTILE.into(),
        seen: HOSTILE.into(),
        reason: Some(HOSTILE.into()),
        ..seen("", verdict)
    };
    let mut report = report(vec![case(Verdict::Fail), case(Verdict::Skipped), case(Verdict::Pass)]);
    report.cluster.proxy_mode = HOSTILE.into();
    for set in [&mut report.cluster.versions.daemons, &mut report.cluster.versions.kernels] {
        set.insert(HOSTILE.into());
    }
    let controls = vec![Control { sent: HOSTILE.into(), seen: true, dropped: true }];
    let files = vec![CaptureFile { host: HOSTILE.into(), name: "report-x.pcap".into(), packets: 1 }];
    let (frames, missed) = (Frames::default(), 0);
    report.uplinks =
        Some(Uplinks { since_the_beginning: frames, in_this_run: frames, missed, controls, files });
    let page = html(&report);
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot; onload=&quot;"), "{page}");
    for foreign in ["<script", "\" onload", "\u{202e}", "\u{1b}"] {
        assert!(!page.contains(foreign), "{foreign:?} in {page}");
    }
    assert!(page.contains("\\u{202e}\\u{1b}[31m"), "{page}");
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let page = html(&report(vec![seen("N1", Verdict::Fail)]));
    for foreign in ["http:", "https:", "src=", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(foreign), "{foreign} in {page}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
}

#[test]
fn long_outputs_are_cut_off() {
    let long = "é".repeat(OUTPUT_SHOWN + 5);
    let page = html(&report(vec![Seen { seen: long, ..seen("N1", Verdict::Pass) }]));
    assert!(page.contains("... (5 more characters are in the JSON report)"), "{page}");
    assert_eq!(thousands(1_234_567), "1\u{202f}234\u{202f}567");
}

#[test]
fn packets_in_the_clear_are_linked_from_the_cells_that_they_are_of() {
    let cases = ["N2", "N4", "E1"].map(|row| seen(row, Verdict::Fail)).to_vec();
    let clear = Frames { clear: 1, tunnel: 0 };
    let carried = [Carried { row: "N4".into(), family: "ipv4", frames: clear }];
    let files = vec![CaptureFile { host: "n1".into(), name: "report-n1.pcap".into(), packets: 3 }];
    let uplinks =
        Uplinks { since_the_beginning: clear, in_this_run: clear, missed: 0, controls: vec![], files };
    let report = Report::new(cases, &carried, Cluster::default(), 0, 0);
    let page = html(&Report { uplinks: Some(uplinks), ..report });
    // What failed, the counts of the uplinks, and two cells.
    assert_eq!(page.matches("<a href=\"report-n1.pcap\">n1 (3, pcap)</a>").count(), 4, "{page}");
    let of_row = |row: &str| {
        page.split_once(&format!("id=\"{row}-ipv4\"")).unwrap().1.split_once("</details>").unwrap().0
    };
    assert!(!of_row("N2").contains("pcap") && of_row("N4").contains("pcap") && of_row("E1").contains("pcap"));
}
