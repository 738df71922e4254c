//! The tests that `SECURITY.md` and `docs/field-cases.md` name exist.

#![expect(clippy::unwrap_used, reason = "a source that can't be read fails the test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How a promise names its test: the file or its module, then the function.
const MARK: &str = "[test: ";

#[test]
fn every_test_named_by_the_security_page_exists() {
    let page = std::fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let named = named_tests(&page);
    assert!(named.len() > 20, "the page names few tests: {named:?}");
    let existing = tests_below(&root());
    let missing: Vec<_> = named.iter().filter(|name| !existing.contains(*name)).collect();
    assert!(missing.is_empty(), "named, but missing: {missing:?}");
}

/// Cases 13 and 17 were dropped.
#[test]
fn every_case_from_the_field_has_a_test_that_exists() {
    let page = std::fs::read_to_string(root().join("docs/field-cases.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let (number, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
        Some((number.parse::<u8>().ok()?, named_tests(rest)))
    });
    let rows: Vec<_> = rows.collect();
    let numbers: Vec<u8> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=19).filter(|number| ![13, 17].contains(number)).collect::<Vec<_>>());
    let existing = tests_below(&root());
    for (number, named) in rows {
        let missing: Vec<_> = named.iter().filter(|name| !existing.contains(*name)).collect();
        assert!(!named.is_empty() && missing.is_empty(), "case {number}: {named:?}, missing {missing:?}");
    }
}

#[test]
fn names_are_found_in_text_and_in_source() {
    let page = "Sealed. `[test: sealed::nothing_leaks]` `[test: key::two]`, and\n[test: broken off";
    assert_eq!(named_tests(page), [pair("sealed", "nothing_leaks"), pair("key", "two")].into());
    let source = "#[test]\nfn alone() {\n}\n\n    #[test]\n    #[should_panic]\n    fn inner() {}\n\nfn no_test() {}\n";
    assert_eq!(tests_in(source), ["alone".to_owned(), "inner".to_owned()].into());
}

fn named_tests(page: &str) -> BTreeSet<(String, String)> {
    page.split(MARK)
        .skip(1)
        .filter_map(|rest| rest.split_once(']')?.0.split_once("::"))
        .map(|(file, test)| pair(file, test))
        .collect()
}

/// The tests in all sources, by the name of the file or, for `tests.rs` and `mod.rs`, of its directory.
fn tests_below(directory: &Path) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(tests_below(&path));
        } else if let Some(stem) = name.strip_suffix(".rs") {
            let module = if ["tests", "mod"].contains(&stem) {
                directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
            } else {
                stem.to_owned()
            };
            let source = std::fs::read_to_string(&path).unwrap();
            found.extend(tests_in(&source).into_iter().map(|test| (module.clone(), test)));
        }
    }
    found
}

/// The functions that are marked as tests.
fn tests_in(source: &str) -> BTreeSet<String> {
    source
        .split("#[test]")
        .skip(1)
        .filter_map(|rest| {
            let line =
                rest.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("#["))?;
            Some(line.strip_prefix("fn ")?.split_once('(')?.0.to_owned())
        })
        .collect()
}

fn pair(file: &str, test: &str) -> (String, String) {
    (file.to_owned(), test.to_owned())
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
