//! The documents: the commands, make targets and source files that they name exist.

use std::collections::BTreeSet;
use std::path::Path;

use super::{QUICKSTART, read, repository};

const DOCUMENTS: [&str; 19] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "RELEASING.md",
    "SECURITY.md",
    "deploy/README.md",
    "docs/distributions.md",
    "docs/faults.md",
    "docs/glossary.md",
    "docs/install.md",
    "docs/migrate.md",
    "docs/operate.md",
    "docs/problems.md",
    "docs/supported.md",
    "docs/threat-model.md",
    "docs/uninstall.md",
    "docs/upgrade.md",
    "docs/verify.md",
    "e2e/README.md",
];

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
    assert!(applied.remove(QUICKSTART) && applied.remove("OVERLAY"), "{applied:?}");
    let missing = |overlay: &&String| !repository(overlay).join("kustomization.yaml").is_file();
    assert_eq!(applied.iter().filter(missing).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(repository(QUICKSTART).join("kustomization.yaml").is_file());
}

#[test]
fn every_make_target_in_the_documents_exists() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> =
        makefile.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    for document in DOCUMENTS {
        for name in make_targets(&read(document)) {
            assert!(targets.contains(&*name), "{document}: make {name}");
        }
    }
}

#[test]
fn every_link_to_a_section_leads_to_a_heading() {
    let mut count = 0;
    for document in DOCUMENTS {
        let directory = Path::new(document).parent().unwrap();
        for (file, section) in section_links(&read(document)) {
            let file = if file.is_empty() { document.into() } else { directory.join(&file) };
            let page = read(file.to_str().unwrap());
            assert!(anchors(&page).contains(&section), "{document}: {}#{section}", file.display());
            count += 1;
        }
    }
    assert!(count > 10, "the threat model names the sections of SECURITY.md");
}

/// The links to a section, as pairs of file and anchor.
fn section_links(text: &str) -> Vec<(String, String)> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let sections = targets.filter_map(|(target, _)| target.split_once('#'));
    let local = sections.filter(|(file, _)| !file.contains("://"));
    local.map(|(file, section)| (file.to_owned(), section.to_owned())).collect()
}

/// The anchors that a forge gives to the headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn anchors_are_made_of_headings() {
    let page = "# One: two\n\n## 3. Assets, actors\ntext\n";
    assert_eq!(anchors(page), ["one-two".to_owned(), "3-assets-actors".to_owned()].into());
    let links = "[a](x.md#b), [c](#d), [e](https://example.org/#f), [g](h.md)";
    assert_eq!(section_links(links), [("x.md".to_owned(), "b".to_owned()), (String::new(), "d".to_owned())]);
}

/// The targets in code: after `make` at the start of a quotation, or of a line in a block.
fn make_targets(text: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let mut targets = BTreeSet::new();
    for line in text.lines() {
        let line = line.trim_start();
        in_block ^= line.starts_with("```");
        let quoted = line.split("`make ").skip(1);
        for rest in quoted.chain(line.strip_prefix("make ").filter(|_| in_block)) {
            let is_part =
                |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
            let name = rest.split(|letter| !is_part(letter)).next();
            targets.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    targets
}

#[test]
fn targets_are_found_in_code_and_not_in_prose() {
    let text =
        "Run `make test`, or `make\nprove-rotation`.\n```\nmake image   # comment\n```\nThese make sense.";
    assert_eq!(make_targets(text), ["test".to_owned(), "image".to_owned()].into());
}

#[test]
fn every_source_file_in_the_documents_exists() {
    for document in DOCUMENTS {
        let text = read(document);
        let missing: Vec<String> =
            source_files(&text).into_iter().filter(|path| !repository(path).is_file()).collect();
        assert_eq!(missing, Vec::<String>::new(), "{document}");
    }
    assert!(source_files(&read("ARCHITECTURE.md")).len() > 30, "the walk of one Node names its files");
}

/// The paths of Rust sources and scripts in code. One that does not start with a directory of the repository is in the
/// directory of the one before.
fn source_files(text: &str) -> Vec<String> {
    let mut directory = String::new();
    let mut paths = Vec::new();
    for code in text.split('`').skip(1).step_by(2) {
        let extension = Path::new(code).extension().and_then(|extension| extension.to_str());
        if code.contains(char::is_whitespace) || !matches!(extension, Some("rs" | "sh")) {
            continue;
        }
        let first = code.split('/').next().unwrap_or_default();
        if code.contains('/') && repository(first).is_dir() {
            directory = code.rsplit_once('/').map(|(directory, _)| directory.to_owned()).unwrap_or_default();
            paths.push(code.to_owned());
        } else {
            paths.push(format!("{directory}/{code}"));
        }
    }
    paths
}

#[test]
fn source_files_are_found_in_code_with_their_directories() {
    let text = "`tests/src/lab.rs`, `node.rs` and `kube/mod.rs`; `lab.rs x` is none, nor is lab.rs.";
    assert_eq!(source_files(text), ["tests/src/lab.rs", "tests/src/node.rs", "tests/src/kube/mod.rs"]);
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
