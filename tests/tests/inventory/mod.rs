//! The files that a node has in the directories that meshd writes to, and proof that none is overlooked.

use lab::Node;

/// Lists every file and socket below `directories`, except the lab's own, in the format of find(1). Fails if one of them
/// is a symbolic link or is reached through one: `find` would not follow it, and the list would be empty for ever.
#[track_caller]
pub(crate) fn files(node: &Node, directories: &[&str], format: &str) -> String {
    let script = r#"
        format=$1; shift
        for directory in "$@"; do
            if [ "$(readlink -f "$directory")" != "$directory" ] || [ ! -d "$directory" ]; then
                echo "$directory is a symbolic link or not a directory" >&2
                exit 1
            fi
        done
        find "$@" -path /run/lab -prune -o '(' -type f -o -type s ')' -printf "$format" | sort
    "#;
    node.command("sh").args(["-c", script, "sh", format]).args(directories).run().unwrap()
}

/// Positive control: a file planted in each directory, and one in a new directory below it, are in the inventory.
#[track_caller]
pub(crate) fn assert_sees_all(node: &Node, directories: &[&str], inventory: impl Fn() -> String) {
    let before = inventory();
    for directory in directories {
        let planted = [format!("{directory}/planted"), format!("{directory}/planted.d/below")];
        node.command("mkdir").arg(format!("{directory}/planted.d")).run().unwrap();
        for path in &planted {
            node.write(path, "planted").unwrap();
            assert!(inventory().contains(path.as_str()), "the inventory does not see {path}");
        }
        node.command("rm").arg("-r").arg(&planted[0]).arg(format!("{directory}/planted.d")).run().unwrap();
    }
    assert_eq!(inventory(), before, "the control left something");
}
