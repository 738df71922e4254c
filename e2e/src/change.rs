//! What happens to the cluster while a command of a row runs: kubectl, in a thread of its own.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::kubectl::{Kubectl, KubectlError};

/// Why rows that change something are not tried.
pub const NOT_ASKED_FOR: &str = "it restarts daemons or replaces keys, which was not asked for (--disturb)";

/// The command runs for so long before.
const AFTER: Duration = Duration::from_secs(2);

/// A change that has begun.
#[derive(Debug)]
pub struct Change(JoinHandle<Result<(), KubectlError>>);

impl Change {
    /// Begins to run kubectl with each list of arguments, one after the other.
    pub fn start(kubectl: Kubectl, steps: Vec<Vec<String>>) -> Self {
        Self(thread::spawn(move || {
            thread::sleep(AFTER);
            for step in steps {
                kubectl.run(&step.iter().map(String::as_str).collect::<Vec<_>>(), "")?;
            }
            Ok(())
        }))
    }

    /// What is wrong with it, once the command is over: it has to be complete by then, or the command shows little.
    pub fn complete(self) -> Result<(), String> {
        let in_time = self.0.is_finished();
        match self.0.join() {
            Ok(Ok(())) if in_time => Ok(()),
            Ok(Ok(())) => Err("the change was not complete when the command ended".to_owned()),
            Ok(Err(error)) => Err(format!("the change failed: {error}")),
            Err(_panic) => Err("the change failed".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside a command that takes so many seconds: `sh -c` in kubectl's place.
    fn beside(seconds: u64, script: &str) -> Result<(), String> {
        let kubectl = Kubectl { program: "sh".into(), kubeconfig: None };
        let change = Change::start(kubectl, vec![vec!["-c".to_owned(), script.to_owned()]]);
        thread::sleep(Duration::from_secs(seconds));
        change.complete()
    }

    #[test]
    fn a_change_has_to_succeed_before_the_command_ends() {
        assert_eq!(beside(4, "true"), Ok(()));
        assert!(beside(4, "echo refused >&2; false").unwrap_err().contains("refused"));
        assert!(beside(0, "true").unwrap_err().contains("not complete"));
    }
}
