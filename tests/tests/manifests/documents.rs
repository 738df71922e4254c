//! What the documents tell an operator to type: it names what exists.

use std::collections::BTreeSet;

use super::{QUICKSTART, read, repository};

const DOCUMENTS: [&str; 2] = ["README.md", "deploy/README.md"];

#[test]
fn what_the_documents_apply_is_an_overlay_of_this_repository_or_the_readers_own() {
    let mut applied = BTreeSet::new();
    for document in DOCUMENTS {
        let text = read(document);
        for command in ["kubectl apply -k ", "kubectl delete -k "] {
            for rest in text.split(command).skip(1) {
                applied.insert(rest.split([' ', '\n', '`', '.']).next().unwrap().to_owned());
            }
        }
    }
    assert_eq!(applied, BTreeSet::from([QUICKSTART.to_owned(), "OVERLAY".to_owned()]));
    assert!(repository(QUICKSTART).join("kustomization.yaml").is_file());
}

#[test]
fn every_make_target_in_the_documents_exists() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> =
        makefile.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    for document in ["README.md", "deploy/README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md"] {
        for name in make_targets(&read(document)) {
            assert!(targets.contains(&*name), "{document}: make {name}");
        }
    }
}

/// The targets in code: after `make` at the start of a line or of a quotation.
fn make_targets(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("make ").filter(|(at, _)| text[..*at].ends_with(['`', '\n']));
    let names = starts.map(|(at, make)| {
        let rest = text[at + make.len()..].trim_start();
        rest.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '-').collect::<String>()
    });
    names.filter(|name| !name.is_empty()).collect()
}

#[test]
fn targets_are_found_in_code_and_not_in_prose() {
    let text =
        "Run `make test`, or `make\nprove-rotation`.\n```\nmake image   # comment\n```\nThese make sense.";
    assert_eq!(make_targets(text), ["test".to_owned(), "image".to_owned()].into());
}

#[test]
fn the_workflow_builds_with_the_compiler_of_the_toolchain_file() {
    let pinned = read("rust-toolchain.toml");
    let version =
        pinned.lines().find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"')).unwrap();
    let workflow = read(".github/workflows/ci.yml");
    assert!(workflow.contains(&format!("image: rust:{version}-bookworm\n")), "expected rust:{version}");
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    assert!(version == oldest || version.starts_with(&format!("{oldest}.")), "{version}, but {oldest}");
}
