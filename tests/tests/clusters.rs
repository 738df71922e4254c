//! `cluster check`, by which `.ci/run` tells a machine that can't run a cluster from one on which it fails. Clusters themselves
//! are `make prove-cluster`'s.

use std::process::Command;

#[test]
fn a_cluster_that_can_never_run_is_told_by_a_code_of_its_own() {
    // In a user namespace without a mapping nobody is root.
    let program = lab::bin("cluster").unwrap();
    let said = Command::new("unshare").arg("--user").arg(program).arg("check").output().unwrap();
    let errors = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(69), "{errors}");
    assert!(errors.contains("a cluster needs root"), "{errors}");
    // Anything else is a failure.
    let said = Command::new(lab::bin("cluster").unwrap()).args(["check", "more"]).output().unwrap();
    assert_eq!(said.status.code(), Some(2));
}
