//! The container image: the name that the `DaemonSet` uses is the one that `make image` writes into the archive.

use std::process::Command;

use super::kustomization::rendered;
use super::{repository, string};

#[test]
fn the_archive_has_the_image_under_the_name_that_the_daemonset_uses() {
    assert_eq!(name_of_the_archive(None).as_deref(), Ok(&*image()));
}

#[test]
fn the_image_has_a_fully_qualified_name_that_no_registry_serves() {
    // A kubelet that does not find it on the node must not pull an image from somebody who owns the name elsewhere.
    assert_eq!(image(), format!("localhost/meshd:{}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_operator_can_choose_the_name_but_not_one_that_a_kubelet_would_not_find() {
    for name in ["registry.example/meshd:1", "registry.example:5000/team/meshd:1"] {
        assert_eq!(name_of_the_archive(Some(name)).as_deref(), Ok(name));
    }
    for name in ["meshd", "meshd:1", "team/meshd:1", "registry.example/meshd"] {
        let error = name_of_the_archive(Some(name)).unwrap_err();
        assert!(error.contains("expected an image name with registry and tag"), "{name}: {error}");
    }
}

/// The image of the `DaemonSet` as the README applies it.
fn image() -> String {
    let daemonset = rendered().into_iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    string(&daemonset, "/spec/template/spec/containers/0/image").to_owned()
}

/// The name that `scripts/image.sh` gives the image with this setting of `IMAGE`, or its error. The script itself
/// checks that the archive has it.
fn name_of_the_archive(setting: Option<&str>) -> Result<String, String> {
    let mut script = Command::new(repository("scripts/image.sh"));
    script.arg("--name").env_remove("IMAGE");
    if let Some(name) = setting {
        script.env("IMAGE", name);
    }
    let output = script.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
