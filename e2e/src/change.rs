//! What happens to the cluster while a command of a row runs, in a thread of its own.

use std::error::Error;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::acting::Acting;
use crate::kubectl::Kubectl;
use crate::scenario::Step;

/// Why rows that change something are not tried.
pub const NOT_ASKED_FOR: &str =
    "it restarts daemons, replaces keys or changes nodes, which was not asked for (--disturb)";

/// The command runs for so long before.
const AFTER: Duration = Duration::from_secs(2);

/// What has to be printed is by then.
const PRINTED_WITHIN: Duration = Duration::from_mins(1);

/// A change that has begun.
#[derive(Debug)]
pub struct Change(JoinHandle<Result<(), String>>);

impl Change {
    /// Begins to take the steps, one after the other. After one that failed no other of kubectl is taken, but those of the
    /// cluster are: they may give back what one before has taken away.
    pub fn start(kubectl: Kubectl, acting: Option<Acting>, steps: Vec<Step>) -> Self {
        Self(thread::spawn(move || {
            thread::sleep(AFTER);
            let mut failed = Ok(());
            for step in &steps {
                let taken = match step {
                    Step::Cluster { cluster } => act(acting.as_ref(), cluster),
                    _ if failed.is_err() => continue,
                    Step::Kubectl(words) => {
                        let words: Vec<&str> = words.iter().map(String::as_str).collect();
                        kubectl.run(&words, "").map(drop).map_err(|error| chain(&error))
                    }
                    Step::Until { until, contains } => self::until(&kubectl, until, contains),
                    Step::Wait { wait } => {
                        thread::sleep(Duration::from_secs(*wait));
                        Ok(())
                    }
                };
                failed = failed.and(taken);
            }
            failed
        }))
    }

    /// What is wrong with it, once the command is over: it has to be complete by then, or the command shows little.
    pub fn complete(self) -> Result<(), String> {
        if self.0.is_finished() {
            return self.wait();
        }
        self.wait()?;
        Err("the change was not complete when the command ended".to_owned())
    }

    /// What is wrong with it, once it is over.
    pub fn wait(self) -> Result<(), String> {
        let outcome = self.0.join().unwrap_or_else(|_panic| Err("a step panicked".to_owned()));
        outcome.map_err(|error| format!("the change failed: {error}"))
    }
}

/// Runs kubectl until it prints a text.
fn until(kubectl: &Kubectl, words: &[String], text: &str) -> Result<(), String> {
    let since = Instant::now();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    loop {
        let said = kubectl.run(&words, "").unwrap_or_else(|error| chain(&error));
        if said.contains(text) {
            return Ok(());
        }
        if since.elapsed() >= PRINTED_WITHIN {
            return Err(format!("kubectl {} does not print {text:?}, but {said}", words.join(" ")));
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn act(acting: Option<&Acting>, words: &[String]) -> Result<(), String> {
    let acting = acting.ok_or("the cluster carries out no verbs")?;
    acting.act(words).map_err(|error| chain(&error))
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(steps: Vec<Step>) -> Change {
        // `sh -c` in kubectl's place.
        Change::start(Kubectl { program: "sh".into(), kubeconfig: None }, None, steps)
    }

    fn script(script: &str) -> Step {
        Step::Kubectl(vec!["-c".to_owned(), script.to_owned()])
    }

    /// Beside a command that takes so many seconds.
    fn beside(seconds: u64, step: &str) -> Result<(), String> {
        let change = start(vec![script(step)]);
        thread::sleep(Duration::from_secs(seconds));
        change.complete()
    }

    #[test]
    fn a_change_has_to_succeed_before_the_command_ends() {
        assert_eq!(beside(4, "true"), Ok(()));
        assert!(beside(4, "echo refused >&2; false").unwrap_err().contains("refused"));
        assert!(beside(0, "true").unwrap_err().contains("not complete"));
    }

    #[test]
    fn after_a_failure_only_the_cluster_goes_on() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let written = format!("echo more > {}", file.path().display());
        let verb = Step::Cluster { cluster: vec!["start-api".to_owned()] };
        let said = start(vec![script("exit 1"), script(&written), verb.clone()]).wait().unwrap_err();
        // The first failure is told.
        assert!(said.contains("kubectl"), "{said}");
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "");
        let said = start(vec![verb]).wait().unwrap_err();
        assert!(said.contains("carries out no verbs"), "{said}");
        start(vec![Step::Wait { wait: 0 }, script(&written)]).wait().unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "more\n");
    }
}
