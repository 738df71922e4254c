//! The lab as a container runtime, against plugins that are not ours: Debian's `ptp`, `host-local` and `portmap`.
#![expect(clippy::unwrap_used, reason = "functions that tests share fail as tests do")]

use std::path::Path;

use lab::cni::{self, Attachment, Call, CniError, NetworkConfig};
use lab::require::{self, Need, REFERENCE_PLUGINS};
use lab::{ApiKind, Error, Family, Flow, IpVersion, Lab, Node, Protocol};
use serde_json::json;

fn lab() -> Lab {
    require::all(&[Need::Namespaces, Need::ReferencePlugins]);
    let lab = Lab::builder().nodes(1).family(Family::Dual).api(ApiKind::None).build().unwrap();
    for plugin in ["ptp", "host-local", "tuning"] {
        lab.nodes()[0].install_plugin(&Path::new(REFERENCE_PLUGINS).join(plugin)).unwrap();
    }
    lab
}

/// A chain of two plugins with both podCIDRs of the node.
fn configure(node: &Node) {
    let ranges: Vec<_> = node.pod_ranges().iter().map(|range| json!([{"subnet": range}])).collect();
    let list = json!({
        "name": "reference", "cniVersion": "1.0.0",
        "plugins": [
            {"type": "ptp", "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
            {"type": "tuning", "mac": "02:00:00:00:77:77"},
        ],
    });
    node.write("/etc/cni/net.d/20-reference.conflist", list.to_string()).unwrap();
}

fn leases(node: &Node) -> usize {
    let dir = Path::new("/var/lib/cni/networks/reference");
    node.run(|| std::fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.file_name() != "lock").count())
        .unwrap()
}

#[test]
fn pods_are_created_and_deleted_by_other_plugins() {
    let lab = lab();
    let node = &lab.nodes()[0];
    assert!(matches!(node.pod("a"), Err(Error::Cni(CniError::NotReady(_)))));
    configure(node);
    node.wait_network(std::time::Duration::from_secs(1)).unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    assert_eq!(node.pods().len(), 2);
    for (pod, other) in [(&a, &b), (&b, &a)] {
        assert_eq!(pod.addresses().len(), 2);
        assert!(
            pod.addresses().iter().zip(node.pod_ranges()).all(|(address, range)| range.contains(*address))
        );
        // The second plugin of the chain changed what the first one created.
        let link = pod.command("ip").args(["link", "show", "eth0"]).run().unwrap();
        assert!(link.contains("02:00:00:00:77:77"), "{link}");
        pod.check().unwrap();
        for &version in Family::Dual.versions() {
            let seen = Flow::new(&pod.end(), &other.end(), version, Protocol::Tcp).must_pass();
            assert_eq!(seen, pod.address(version).unwrap());
        }
    }
    assert_eq!(node.pod("a").unwrap().addresses(), a.addresses(), "the same pod");
    b.command("ip").args(["link", "del", "eth0"]).run().unwrap();
    assert!(b.check().is_err());
    b.delete().unwrap();
    // Each address has a file, and host-local keeps the last one given of each range as well.
    assert_eq!(leases(node), 2 + 2);
    a.delete().unwrap();
    assert_eq!((leases(node), node.pods().len()), (2, 0));
}

#[test]
fn a_failed_add_is_an_error_object_and_leaves_nothing() {
    let lab = lab();
    let node = &lab.nodes()[0];
    let broken = json!({"name": "broken", "cniVersion": "1.0.0", "plugins": [
        {"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "not-a-range"}]]}},
    ]});
    node.write("/etc/cni/net.d/10-broken.conflist", broken.to_string()).unwrap();
    let error = node.pod("a").unwrap_err();
    assert!(
        matches!(&error, Error::Cni(CniError::Plugin { plugin, command: "ADD", .. }) if plugin == "ptp"),
        "{error}"
    );
    assert!(node.pods().is_empty());
    assert_eq!(node.run(|| std::fs::read_dir("/run/netns").unwrap().count()).unwrap(), 0);

    let absent = json!({"name": "absent", "cniVersion": "1.0.0", "plugins": [{"type": "no-such-plugin"}]});
    node.write("/etc/cni/net.d/05-absent.conflist", absent.to_string()).unwrap();
    assert!(
        matches!(node.pod("a"), Err(Error::Cni(CniError::NoPlugin { .. }))),
        "the first list by name counts"
    );
}

#[test]
fn concurrent_calls_and_single_calls_succeed() {
    let lab = lab();
    let node = &lab.nodes()[0];
    configure(node);
    let names: Vec<String> = (0..8).map(|number| format!("p{number}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| node.pod(name).unwrap());
        }
    });
    let pods = node.pods();
    let mut addresses: Vec<_> = pods.iter().map(|pod| pod.address(IpVersion::V4).unwrap()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8);

    let binary = Path::new(cni::PLUGIN_DIR).join("host-local");
    let version = Call {
        command: "VERSION",
        binary: &binary,
        attachment: None,
        stdin: br#"{"cniVersion":"1.0.0"}"#.to_vec(),
    };
    let output = version.run(node).unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("supportedVersions"));
    // DEL for a pod that never existed, without a namespace, succeeds as the specification requires.
    let config = NetworkConfig::load(node).unwrap();
    let gone = Attachment { container_id: "never-was".into(), netns: None, ifname: "eth0".into() };
    config.del(node, &gone, None).unwrap();
}
