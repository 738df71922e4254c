//! docs/logging.md lists every event and every field that the daemon logs.

use std::collections::BTreeSet;
use std::fmt;

use crate::{files, has_extension, root};

/// Where the daemon's log lines are.
const SOURCES: [&str; 5] = ["meshd/src", "keyring/src", "crates", "cni/src", "tests/src"];
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// One log line in the sources.
#[derive(Debug, PartialEq, Eq)]
struct LogLine {
    level: &'static str,
    event: Option<String>,
    fields: Vec<String>,
}

/// Finds the macros of `tracing` in a source file.
fn log_lines(source: &str) -> Vec<LogLine> {
    let mut lines = Vec::new();
    for level in LEVELS {
        let call = format!("{level}!(");
        for (start, _) in source.match_indices(&call) {
            let before = source[..start].chars().next_back();
            if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_') {
                continue;
            }
            let arguments = arguments(&source[start + call.len()..]);
            let fields = arguments.iter().filter(|argument| !argument.starts_with('"'));
            let (mut event, mut names) = (None, Vec::new());
            for field in fields {
                let (name, value) = field.split_once('=').unwrap_or((field, ""));
                let name = name.trim().trim_start_matches(['%', '?']).to_owned();
                if name == "event" {
                    event = Some(value.trim().trim_matches('"').to_owned());
                }
                names.push(name);
            }
            lines.push(LogLine { level, event, fields: names });
        }
    }
    lines
}

/// The arguments of a call, from after its opening parenthesis.
fn arguments(text: &str) -> Vec<String> {
    let mut arguments = vec![String::new()];
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    for letter in text.chars() {
        match letter {
            '"' if !escaped => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' if !quoted && depth == 0 => break,
            ')' | ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        escaped = quoted && letter == '\\' && !escaped;
        arguments.last_mut().unwrap().push(letter);
    }
    let trimmed = arguments.iter().map(|argument| argument.trim().to_owned());
    trimmed.filter(|argument| !argument.is_empty()).collect()
}

/// An event with its level.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event(String, String);

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` at {}", self.0, self.1)
    }
}

/// The rows of the page's tables: those with four columns are events, those with two are fields.
fn documented(page: &str) -> (BTreeSet<Event>, BTreeSet<String>) {
    let (mut events, mut fields) = (BTreeSet::new(), BTreeSet::new());
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<&str> = row.trim_end_matches('|').split('|').map(str::trim).collect();
        let name = cells[0].trim_end_matches('`').to_owned();
        match cells[..] {
            [_, level, _, _] => assert!(events.insert(Event(name.clone(), level.to_owned())), "{name} twice"),
            [_, _] => assert!(fields.insert(name.clone()), "{name} twice"),
            _ => panic!("{row}: expected two or four columns"),
        }
    }
    (events, fields)
}

#[test]
fn the_page_of_log_lines_lists_each_event_and_field() {
    let page = std::fs::read_to_string(root().join("docs/logging.md")).unwrap();
    let (mut unlogged, mut unused) = documented(&page);
    let (events, fields) = (unlogged.clone(), unused.clone());
    let mut problems = Vec::new();
    for file in SOURCES.iter().flat_map(|directory| files(&root().join(directory))) {
        if !has_extension(&file, &["rs"]) {
            continue;
        }
        for line in log_lines(&std::fs::read_to_string(&file).unwrap()) {
            let place = file.strip_prefix(root()).unwrap_or(&file).display();
            let Some(name) = line.event else {
                problems.push(format!("{place}: {} with {:?}: no event", line.level, line.fields));
                continue;
            };
            let event = Event(name, line.level.to_owned());
            unlogged.remove(&event);
            if !events.contains(&event) {
                problems.push(format!("{place}: event {event} is not in the page"));
            }
            for field in line.fields {
                unused.remove(&field);
                if !fields.contains(&field) {
                    problems.push(format!("{place}: field `{field}` of {event} is not in the page"));
                }
            }
        }
    }
    problems.extend(unlogged.iter().map(|event| format!("docs/logging.md: event {event} is never logged")));
    problems.extend(unused.iter().map(|field| format!("docs/logging.md: field `{field}` is never logged")));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn log_lines_are_found_with_their_fields() {
    let source = r#"
        warn!(
            event = "StepFailed", step = %op, error = %Chain(&error), stays,
            "failed, (again): \"{}\"", 7
        );
        tracing::info!("no event");
    "#;
    let fields = ["event", "step", "error", "stays", "7"].map(ToOwned::to_owned).to_vec();
    let failed = LogLine { level: "warn", event: Some("StepFailed".to_owned()), fields };
    let nameless = LogLine { level: "info", event: None, fields: vec![] };
    assert_eq!(log_lines(source), [failed, nameless]);
}
