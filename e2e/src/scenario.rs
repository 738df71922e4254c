//! Scenarios as data: what a row claims, and how it is tried.

use std::collections::BTreeSet;
use std::fmt;
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
    /// What is done while the command runs, one step after the other: it changes something, and meshd has to be there.
    #[serde(default)]
    pub meanwhile: Vec<Step>,
    /// The command is a stream that goes on until all steps are done, and that needs neither API server nor kubelet meanwhile.
    #[serde(default)]
    pub detached: bool,
    /// What there has to be in the cluster, or before it.
    #[serde(default)]
    pub needs: Vec<Need>,
}

/// What a row needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Rows that change something: it shows what has become of the change.
    Changes,
    /// Somebody who enforces network policies.
    Policies,
}

/// Something that changes the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Step {
    /// Arguments of kubectl.
    Kubectl(Vec<String>),
    /// A verb that the cluster itself carries out, and the node that it is about.
    Cluster {
        /// Both.
        cluster: Vec<String>,
    },
    /// kubectl again and again, until it prints a text.
    Until {
        /// Its arguments.
        until: Vec<String>,
        /// The text.
        contains: String,
    },
    /// A pause.
    Wait {
        /// Seconds.
        wait: u64,
    },
}

impl Step {
    /// Its words, with placeholders.
    pub fn words(&self) -> &[String] {
        match self {
            Self::Kubectl(words) | Self::Cluster { cluster: words } | Self::Until { until: words, .. } => {
                words
            }
            Self::Wait { .. } => &[],
        }
    }

    /// The same with other words; none if one of them can't be had.
    pub fn fill(&self, fill: impl Fn(&String) -> Option<String>) -> Option<Self> {
        let words: Option<Vec<String>> = self.words().iter().map(&fill).collect();
        Some(match self {
            Self::Kubectl(_) => Self::Kubectl(words?),
            Self::Cluster { .. } => Self::Cluster { cluster: words? },
            Self::Until { contains, .. } => Self::Until { until: words?, contains: fill(contains)? },
            Self::Wait { wait } => Self::Wait { wait: *wait },
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubectl(words) => write!(f, "kubectl {}", words.join(" ")),
            Self::Cluster { cluster } => write!(f, "cluster act {}", cluster.join(" ")),
            Self::Until { until, contains } => {
                write!(f, "kubectl {} | grep {contains:?}, until it is there", until.join(" "))
            }
            Self::Wait { wait } => write!(f, "sleep {wait}"),
        }
    }
}

/// Checks of what the API server says, or a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Addresses of pods are unique, and within the podCIDRs of their nodes.
    Addresses,
    /// No packet with a pod's address is in the clear on a node's uplink.
    Uplinks,
    /// A packet that comes through a node's tunnel with another node's source is dropped.
    Spoofed,
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
const PLACEHOLDERS: [&str; 22] = [
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
    "{namespace}",
    "{third-host}",
    "{third-name}",
];

/// How the command of a stream begins.
pub const STREAM: [&str; 2] = ["e2e-pod", "stream"];

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
            self.run.iter().chain(printed).chain(self.meanwhile.iter().flat_map(Step::words))
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
        if self.detached && (self.meanwhile.is_empty() || !self.run.starts_with(&STREAM.map(str::to_owned))) {
            return Some("`detached` is for streams, and ends with the last step of `meanwhile`");
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
        for number in (1..=16).chain([18]) {
            assert!(rows.iter().any(|known| known.row == format!("N{number}")), "N{number}");
        }
        for number in [2, 5, 6, 7, 9, 10] {
            let changes = |known: &Row| known.row == format!("E{number}") && !known.meanwhile.is_empty();
            assert!(rows.iter().any(changes), "E{number}");
        }
        for check in [Check::Uplinks, Check::Spoofed] {
            assert!(rows.iter().any(|known| known.check == Some(check)));
        }
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
        let detached = "    contains: x\n    detached: true\n";
        assert!(mistake(&format!("{command}{detached}")).contains("for streams"));
        let steps = "    contains: x\n    meanwhile: [{cluster: [reboot, \"{nobody}\"]}]\n";
        assert!(mistake(&format!("{command}{steps}")).contains("placeholder"));
        let unknown = "    contains: x\n    meanwhile: [{shell: reboot}]\n";
        assert!(mistake(&format!("{command}{unknown}")).contains("x.yaml"));
    }

    #[test]
    fn steps_are_for_kubectl_or_for_the_cluster_or_pauses() {
        let text = "rows:\n  - row: E2\n    claim: c\n    where: one-pair\n    from: one\n    to: one\n    \
                    run: [e2e-pod, stream, \"60\", \"0\", \"{to-port}\"]\n    contains: sent\n    detached: true\n    \
                    meanwhile:\n      - [get, nodes]\n      - cluster: [reboot, \"{third-host}\"]\n      - wait: 5\n";
        let rows = parse(Path::new("x.yaml"), text).unwrap();
        let steps: Vec<String> = rows[0].meanwhile.iter().map(Step::to_string).collect();
        assert_eq!(steps, ["kubectl get nodes", "cluster act reboot {third-host}", "sleep 5"]);
    }
}
