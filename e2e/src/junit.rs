//! The report as `JUnit` XML, as systems for CI read it: a suite for each row, a case for each command.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report as Document, SerializeError, TestCase, TestCaseStatus, TestSuite};

use crate::page;
use crate::report::{Report, Seen, Verdict};

/// Writes it.
pub fn xml(report: &Report) -> Result<String, SerializeError> {
    let mut document = Document::new("e2e");
    document.set_time(Duration::from_secs(report.seconds));
    if let Some(started) = page::time(report.started) {
        document.set_timestamp(started);
    }
    for row in report.rows() {
        let mut suite = TestSuite::new(row);
        suite.add_test_cases(report.cases.iter().filter(|case| case.row == row).map(test_case));
        document.add_test_suite(suite);
    }
    document.to_string()
}

fn test_case(case: &Seen) -> TestCase {
    let status = match case.verdict {
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Skipped => TestCaseStatus::skipped(),
        Verdict::NotDetermined => TestCaseStatus::non_success(NonSuccessKind::Error),
        Verdict::Fail => TestCaseStatus::non_success(NonSuccessKind::Failure),
    };
    let parts = [case.family, &case.about, &case.claim];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let mut test = TestCase::new(parts.join(", "), status);
    test.set_classname(&*case.row);
    test.set_time(Duration::from_millis(u64::try_from(case.milliseconds).unwrap_or(u64::MAX)));
    match case.verdict {
        Verdict::Pass => {}
        Verdict::Skipped => {
            test.status.set_message(case.reason.as_deref().unwrap_or_default());
        }
        Verdict::Fail | Verdict::NotDetermined => {
            test.status.set_message(format!("expected {}", case.expected));
            let said = format!("{}\nexpected {}\nseen     {}\n", case.command, case.expected, case.seen);
            test.status.set_description(said);
        }
    }
    test
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Cluster, tests::seen};

    #[test]
    fn each_command_is_a_case_of_its_row_and_says_why_it_did_not_pass() {
        let cases = vec![
            seen("N1", Verdict::Pass),
            Seen { seen: "]]> & <b> \u{1b}[31m\u{0}".into(), ..seen("N2", Verdict::Fail) },
            Seen { reason: Some("no \"SCTP\"".into()), ..seen("N1", Verdict::Skipped) },
            seen("E1", Verdict::NotDetermined),
        ];
        let xml = xml(&Report::new(cases, &[], Cluster::default(), 1_000_000_000, 7)).unwrap();
        let read = Document::deserialize_from_str(&xml).unwrap();
        let suites: Vec<_> =
            read.test_suites.iter().map(|suite| (suite.name.as_str(), suite.tests)).collect();
        assert_eq!(suites, [("N1", 2), ("N2", 1), ("E1", 1)]);
        assert_eq!((read.tests, read.failures, read.errors), (4, 1, 1));
        assert!(xml.contains("timestamp=\"2001-09-09T01:46:40"), "{xml}");
        assert!(xml.contains("no &quot;SCTP&quot;"), "{xml}");
        // What XML can't contain is left out.
        assert!(!xml.contains('\u{1b}') && !xml.contains('\u{0}'), "{xml}");
    }
}
