//! A cluster that carries out verbs: adds nodes, reboots them, stops its API server. Asked over a socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::capture::exchange;

/// A node is added or rebooted within so long, also on a busy machine.
const DONE_WITHIN: Duration = Duration::from_mins(12);

/// The cluster did not do it.
#[derive(Debug, thiserror::Error)]
#[error("cluster act {}", words.join(" "))]
pub struct ActError {
    words: Vec<String>,
    #[source]
    source: io::Error,
}

/// The cluster that answers at a socket.
#[derive(Clone, Debug)]
pub struct Acting(PathBuf);

impl Acting {
    /// That which answers at a socket.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Has it carry out a verb about a node, or about none, and waits until it has.
    pub fn act(&self, words: &[String]) -> Result<(), ActError> {
        let done: io::Result<Value> = exchange(&self.0, &question(words), DONE_WITHIN);
        done.map(drop).map_err(|source| ActError { words: words.to_vec(), source })
    }
}

/// What is asked: the verb, and the node if there is one.
fn question(words: &[String]) -> Value {
    match words {
        [verb, node, ..] => json!({"ask": "act", "verb": verb, "node": node}),
        [verb] => json!({"ask": "act", "verb": verb}),
        [] => json!({"ask": "act"}),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_verb_is_done_when_the_cluster_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in ["{}", r#"{"error": "no node n9"}"#] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                asked.push(line.trim().parse::<Value>().unwrap());
                writeln!(stream, "{answer}").unwrap();
            }
            asked
        });
        let acting = Acting::at(path);
        acting.act(&["stop-api".to_owned()]).unwrap();
        let error = acting.act(&["reboot".to_owned(), "n9".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "cluster act reboot n9");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no node n9");
        let asked = serving.join().unwrap();
        assert_eq!(asked[0], json!({"ask": "act", "verb": "stop-api"}));
        assert_eq!(asked[1], json!({"ask": "act", "verb": "reboot", "node": "n9"}));
    }
}
