//! Every path of the repository that a source, a manifest or a document names exists.

use std::path::Path;

use crate::{files, has_extension, root};

/// The directories whose files are named by their path from the root.
const DIRECTORIES: [&str; 9] =
    ["crates/", "deploy/", "docs/", "fuzz/", "keyring/", "meshd/src/", "meshd/tests/", "scripts/", "tests/"];

/// The words of a text that look like a path from the repository's root.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || "/_.-*<>{}:".contains(letter)));
    words
        .map(|word| word.split(['*', '<', '{', ':']).next().unwrap_or_default())
        .map(|word| word.trim_end_matches(['.', '-', '_']))
        .filter(|word| DIRECTORIES.iter().any(|directory| word.starts_with(directory)))
}

/// The targets of a Markdown document's links to other files.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next());
    targets.filter(|target| !target.is_empty() && !target.contains("://"))
}

/// Whether a path exists, seen from the root or from a directory that the file which names it is in.
fn exists(root: &Path, file: &Path, path: &str) -> bool {
    let directories = file.ancestors().skip(1).take_while(|directory| directory.starts_with(root));
    directories.map(|directory| directory.join(path)).any(|found| found.exists())
}

#[test]
fn every_path_that_is_named_exists() {
    let root = root();
    let mut missing = Vec::new();
    for file in files(&root) {
        if !has_extension(&file, &["rs", "md", "yaml", "sh", "toml"]) {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let place = file.strip_prefix(&root).unwrap_or(&file).display();
        let named = paths(&text).filter(|path| !exists(&root, &file, path));
        missing.extend(named.map(|path| format!("{place}: {path}")));
        if has_extension(&file, &["md"]) {
            let linked = links(&text).filter(|target| !file.with_file_name(target).exists());
            missing.extend(linked.map(|target| format!("{place}: link to {target}")));
        }
    }
    assert!(missing.is_empty(), "named, but not there:\n{}", missing.join("\n"));
}

#[test]
fn paths_and_links_are_recognized() {
    // In two parts, so that this file does not name it.
    let none = concat!("deploy/", "base/none.yaml");
    let text = format!("apply {none}, see `docs/audit.md`. Not /etc/docs/x, not https://a.b/docs/c.");
    assert_eq!(paths(&text).collect::<Vec<_>>(), [none, "docs/audit.md"]);
    assert!(!exists(&root(), &root().join("README.md"), none));
    let text = "[a](audit.md#part), [b](https://example.org/x), [c](#here)";
    assert_eq!(links(text).collect::<Vec<_>>(), ["audit.md"]);
}
