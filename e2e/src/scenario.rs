//! Scenarios as data: what a row claims, and how it is tried.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A file of scenarios can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It can't be read.
    #[error("read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not what this program reads.
    #[error("read {}: {said}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        said: String,
    },
    /// A row says too little or too much.
    #[error("{}: row {row}: {what}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row.
        row: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// A file of scenarios.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rows: Vec<Row>,
}

/// One row: a claim, and the commands that show whether it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Row {
    /// Its name in the report, such as `N4`. Several may have the same.
    pub row: String,
    /// What holds if it passes, for a reader who does not know the suite.
    pub claim: String,
    /// Something that no command in a pod shows.
    #[serde(default)]
    pub check: Option<Check>,
    /// Which pods the command runs in, and towards which.
    #[serde(rename = "where", default)]
    pub place: Option<Place>,
    /// The `DaemonSet` of the pods that the command runs in, or [`OUTSIDE`](crate::cases::OUTSIDE).
    #[serde(default)]
    pub from: String,
    /// The `DaemonSet` of the pods that it is about, or [`OUTSIDE`](crate::cases::OUTSIDE).
    #[serde(default)]
    pub to: String,
    /// Fills in `{protocol}`.
    #[serde(default)]
    pub protocols: Vec<String>,
    /// The command.
    #[serde(default)]
    pub run: Vec<String>,
    /// All that it prints.
    #[serde(default)]
    pub expect: Option<String>,
    /// A part of what it prints.
    #[serde(default)]
    pub contains: Option<String>,
    /// One of the words of this text, and nothing else.
    #[serde(default)]
    pub one_of: Option<String>,
    /// It fails, because what it asks for does not answer.
    #[serde(default)]
    pub fails: bool,
    /// Arguments of kubectl, one list after the other, while the command runs: they change something, and meshd has to be there.
    #[serde(default)]
    pub meanwhile: Vec<Vec<String>>,
}

/// Checks of what the API server says, or a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Addresses of pods are unique, and within the podCIDRs of their nodes.
    Addresses,
    /// No packet with a pod's address is in the clear on a node's uplink.
    Uplinks,
}

/// Which pods a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Each pod alone.
    EachPod,
    /// Each pod, towards itself.
    Itself,
    /// Two pods of a node, on each node.
    SameNode,
    /// Each ordered pair of nodes.
    BetweenNodes,
    /// The first of these pairs.
    OnePair,
}

/// The placeholders of commands and expectations.
const PLACEHOLDERS: [&str; 19] = [
    "{protocol}",
    "{from}",
    "{to}",
    "{to-port}",
    "{from-name}",
    "{to-name}",
    "{from-node}",
    "{from-any}",
    "{loopback}",
    "{to-service}",
    "{to-host-port}",
    "{to-local-port}",
    "{via-port}",
    "{via-local-port}",
    "{all-service}",
    "{sticky-service}",
    "{all-names}",
    "{asks}",
    "{to-host}",
];

/// Reads all files of a directory, in the order of their names.
pub fn load(directory: &Path) -> Result<Vec<Row>, ScenarioError> {
    let failed = |path: &Path, source| ScenarioError::File { path: path.into(), source };
    let entries = std::fs::read_dir(directory).map_err(|source| failed(directory, source))?;
    let paths: Result<BTreeSet<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut rows = Vec::new();
    for path in paths.map_err(|source| failed(directory, source))? {
        let text = std::fs::read_to_string(&path).map_err(|source| failed(&path, source))?;
        rows.extend(parse(&path, &text)?);
    }
    Ok(rows)
}

/// Reads one file.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Row>, ScenarioError> {
    let file: File = serde_saphyr::from_str(text)
        .map_err(|error| ScenarioError::Syntax { path: path.into(), said: error.to_string() })?;
    for row in &file.rows {
        if let Some(what) = row.mistake() {
            return Err(ScenarioError::Row { path: path.into(), row: row.row.clone(), what });
        }
    }
    Ok(file.rows)
}

impl Row {
    fn mistake(&self) -> Option<&'static str> {
        if self.check.is_some() {
            let alone = Self {
                row: self.row.clone(),
                claim: self.claim.clone(),
                check: self.check,
                ..Self::default()
            };
            return (*self != alone).then_some("a row with `check` has no command");
        }
        let pair = matches!(
            self.place,
            Some(Place::Itself | Place::SameNode | Place::BetweenNodes | Place::OnePair)
        );
        let words = || {
            let printed = self.expect.iter().chain(&self.contains).chain(&self.one_of);
            self.run.iter().chain(printed).chain(self.meanwhile.iter().flatten())
        };
        if self.place.is_none() || self.run.is_empty() || self.from.is_empty() {
            return Some("it needs `where`, `from` and `run`, or `check`");
        }
        let expectations =
            [self.expect.is_some(), self.contains.is_some(), self.one_of.is_some(), self.fails];
        if expectations.iter().filter(|&&stated| stated).count() != 1 {
            return Some("it needs one of `expect`, `contains`, `one-of` and `fails`");
        }
        if pair == self.to.is_empty() {
            return Some("a row about pairs needs `to`, one about each pod has none");
        }
        if words().any(|word| has_unknown_placeholder(word)) {
            return Some("a placeholder is not known");
        }
        let uses = |name: &str| words().any(|word| word.contains(name));
        let by_protocol = ["{protocol}", "{via-port}", "{via-local-port}"];
        if by_protocol.into_iter().any(uses) && self.protocols.is_empty() {
            return Some("{protocol} and node ports need `protocols`");
        }
        None
    }
}

fn has_unknown_placeholder(word: &str) -> bool {
    let rest = PLACEHOLDERS.iter().fold(word.to_owned(), |word, known| word.replace(known, ""));
    rest.contains(['{', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str) -> String {
        let text = format!("rows:\n  - row: N9\n    claim: It works.\n{text}");
        parse(Path::new("x.yaml"), &text).unwrap_err().to_string()
    }

    #[test]
    fn the_scenarios_of_this_repository_are_read() {
        let rows = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap();
        for number in 1..=16 {
            assert!(rows.iter().any(|known| known.row == format!("N{number}")), "N{number}");
        }
        for number in [2, 6] {
            let changes = |known: &Row| known.row == format!("E{number}") && !known.meanwhile.is_empty();
            assert!(rows.iter().any(changes), "E{number}");
        }
        assert!(rows.iter().any(|known| known.check == Some(Check::Uplinks)));
    }

    #[test]
    fn a_row_that_would_show_nothing_is_refused() {
        let command = "    where: each-pod\n    from: one\n    run: [ip]\n";
        assert!(mistake("").contains("`check`"));
        assert!(mistake(command).contains("one of `expect`, `contains`, `one-of` and `fails`"));
        assert!(mistake(&format!("{command}    expect: \"{{other}}\"\n")).contains("placeholder"));
        assert!(mistake(&format!("{command}    expect: x\n    to: one\n")).contains("pairs"));
        assert!(mistake(&format!("{command}    expect: \"{{protocol}}\"\n")).contains("need `protocols`"));
        assert!(mistake(&format!("{command}    expect: x\n    unknown: y\n")).contains("unknown"));
        assert!(mistake("    check: addresses\n    from: one\n").contains("no command"));
    }
}
