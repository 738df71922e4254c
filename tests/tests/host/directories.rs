//! Directories of the container runtime that belong to another user than root.

use std::os::unix::fs::PermissionsExt as _;

use lab::mesh::{FORMED_WITHIN, Mesh};
use lab::{ApiKind, Family, Lab};

use crate::shell;

/// As the `DaemonSet` has it: root without the capability to write to what belongs to others.
#[test]
fn a_plugin_directory_of_another_user_is_named_with_the_command_that_gives_it_to_root() {
    let lab = Lab::builder().nodes(1).family(Family::V4).api(ApiKind::Fake).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    let program = mesh.dir().join("meshd-without-override");
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-dac_override,-dac_read_search {} \"$@\"\n",
        lab::bin("meshd").unwrap().display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    shell(mesh.node("n1").unwrap(), "chown 998 /opt/cni/bin; chmod 755 /opt/cni/bin");
    mesh.start_program(&program, "n1", &[], &[]).unwrap();
    mesh.wait("n1", "the directory is found", FORMED_WITHIN, |status| {
        status["findings"][0]["code"] == "cni-dir-owner"
    });
    let status = mesh.status("n1").unwrap();
    assert_eq!(status["ready"], false, "{status:#}");
    assert_eq!(
        status["findings"][0]["sentence"],
        "/opt/cni/bin belongs to user 998, and meshd may not write to it"
    );
    shell(mesh.node("n1").unwrap(), status["findings"][0]["fix"].as_str().unwrap());
    mesh.wait("n1", "ready without a finding", FORMED_WITHIN, |status| {
        status["ready"] == true && status["findings"].as_array().is_some_and(Vec::is_empty)
    });
    mesh.node("n1").unwrap().pod("a").unwrap();
}
