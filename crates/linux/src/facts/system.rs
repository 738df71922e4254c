//! Files, directories, clock and other programs of the node.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use plan::host::NetworkManager;
use plan::network::LinkName;
use rustix::fs::Access;
use rustix::io::Errno;

/// Extensions of network configurations (`libcni` and go-cni read these).
const CONFIGURATIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Names of the network configurations in the container runtime's directory.
pub(super) fn cni_files(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_configuration = |name: &String| {
        Path::new(name).extension().is_some_and(|found| CONFIGURATIONS.iter().any(|known| found == *known))
    };
    names.filter(is_configuration).collect()
}

/// A directory that this process may not write to, with its owner.
pub(super) fn closed_to_this_process(directory: &Path) -> Option<(PathBuf, u32)> {
    match rustix::fs::access(directory, Access::WRITE_OK) {
        Err(Errno::ACCESS) => Some((directory.to_owned(), std::fs::metadata(directory).ok()?.uid())),
        _ => None,
    }
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Programs that manage networks, and are not told to leave the daemon's routes, rules and links alone. `root` is the
/// node's root directory.
pub(super) fn managers(root: &Path, mesh_links: &[&LinkName]) -> BTreeSet<NetworkManager> {
    let mut found = BTreeSet::new();
    let networkd = ["etc/systemd", "run/systemd", "usr/lib/systemd"].map(|directory| root.join(directory));
    if root.join("run/systemd/netif").is_dir() {
        let settings = lines(&networkd, "networkd.conf", "networkd.conf.d");
        let keeps = |name: &str| {
            let values = settings.iter().filter_map(|line| line.split_once('='));
            let mut values = values.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
            values.any(|value| ["no", "false", "off", "0"].contains(&value))
        };
        if !(keeps("ManageForeignRoutes") && keeps("ManageForeignRoutingPolicyRules")) {
            found.insert(NetworkManager::SystemdNetworkd);
        }
    }
    let manager = ["etc", "run", "usr/lib"].map(|directory| root.join(directory).join("NetworkManager"));
    if root.join("run/NetworkManager").is_dir() {
        let settings = lines(&manager, "NetworkManager.conf", "conf.d");
        let unmanaged: Vec<&String> =
            settings.iter().filter(|line| line.starts_with("unmanaged-devices")).collect();
        let names = |text: &str| unmanaged.iter().any(|line| line.contains(text));
        let links = mesh_links.iter().all(|link| names(link.as_str()) || names("interface-name:mesh-*"));
        if !(names("interface-name:mveth*") && links) {
            found.insert(NetworkManager::NetworkManager);
        }
    }
    found
}

/// The lines of a program's configuration: of a file, and of the files of a directory.
fn lines(directories: &[PathBuf], file: &str, more: &str) -> Vec<String> {
    let mut files: Vec<PathBuf> = directories.iter().map(|directory| directory.join(file)).collect();
    for directory in directories {
        let entries = std::fs::read_dir(directory.join(more)).into_iter().flatten().flatten();
        files.extend(
            entries
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|found| found == "conf")),
        );
    }
    let texts = files.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts.flat_map(|text| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()).collect()
}

/// The `SELinux` context of this process, if that enforces its policy.
pub(super) fn selinux_context() -> Option<String> {
    let enforcing = std::fs::read_to_string("/sys/fs/selinux/enforce").ok()?;
    if enforcing.trim() != "1" {
        return None;
    }
    let context = std::fs::read_to_string("/proc/self/attr/current").ok()?;
    Some(context.trim_end_matches(['\0', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn found(files: &[(&str, &str)]) -> Vec<NetworkManager> {
        let (a, b) = ("mesh-a".parse().unwrap(), "mesh-b".parse().unwrap());
        managers(root(files).path(), &[&a, &b]).into_iter().collect()
    }

    #[test]
    fn programs_that_are_told_to_leave_others_alone_are_not_reported() {
        use NetworkManager as Manager;
        let (networkd, manager) = (("run/systemd/netif/state", ""), ("run/NetworkManager/resolv.conf", ""));
        assert_eq!(found(&[]), []);
        assert_eq!(found(&[networkd, manager]), [Manager::SystemdNetworkd, Manager::NetworkManager]);
        let routes = ("etc/systemd/networkd.conf", "[Network]\n ManageForeignRoutes = no\n");
        let rules = ("usr/lib/systemd/networkd.conf.d/10.conf", "ManageForeignRoutingPolicyRules=false");
        assert_eq!(found(&[networkd, routes]), [Manager::SystemdNetworkd]);
        assert_eq!(found(&[networkd, routes, rules]), []);
        let commented = ("etc/systemd/networkd.conf", "#ManageForeignRoutes=no");
        assert_eq!(found(&[networkd, commented, rules]), [Manager::SystemdNetworkd]);
        let pods = ("etc/NetworkManager/conf.d/a.conf", "unmanaged-devices=interface-name:mveth*");
        let all = (
            "etc/NetworkManager/conf.d/b.conf",
            "unmanaged-devices=interface-name:mesh-a;interface-name:mesh-b",
        );
        assert_eq!(found(&[manager, pods]), [Manager::NetworkManager]);
        assert_eq!(found(&[manager, pods, all]), []);
    }

    #[test]
    fn configurations_are_found_by_their_extension() {
        let root =
            root(&[("10-a.conflist", ""), ("05-b.conf", ""), (".10-a.conflist.new", ""), ("README", "")]);
        assert_eq!(Vec::from_iter(cni_files(root.path())), ["05-b.conf", "10-a.conflist"]);
        assert_eq!(cni_files(&root.path().join("none")), BTreeSet::new());
    }
}
