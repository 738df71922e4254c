//! Pods that an earlier version attached, which left host ports to `portmap`.

use std::path::Path;

use lab::cni::Call;
use lab::mesh::Mesh;
use lab::require::{self, Need, REFERENCE_PLUGINS};
use lab::{Lab, Node};
use serde_json::{Map, Value, json};

use crate::{POD_PORT, Served, output};

fn rules(node: &Node) -> String {
    output(node, "iptables", &["-w", "-t", "nat", "-S"])
}

/// The file of the only attachment, as an earlier version wrote it: without host ports.
fn age_attachment(node: &Node) {
    let age = || {
        let directory = Path::new("/var/lib/cni/meshd/attachments");
        let path = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
        let mut contents: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        contents.as_object_mut().unwrap().remove("ports").expect("the file names the ports");
        let name = path.to_str().unwrap().trim_end_matches("@ports");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(name, contents.to_string()).unwrap();
    };
    node.run(age).unwrap();
}

#[test]
fn rules_of_portmap_go_with_the_pod_and_a_bandwidth_plugin_is_chained() {
    require::all(&[Need::Namespaces, Need::ReferencePlugins]);
    let lab = Lab::builder().nodes(1).build().unwrap();
    let plugins = Path::new(REFERENCE_PLUGINS);
    for plugin in ["portmap", "bandwidth"] {
        lab.nodes()[0].install_plugin(&plugins.join(plugin)).unwrap();
    }
    let mesh = Mesh::form(lab).unwrap();
    let node = mesh.node("n1").unwrap();
    let ports = json!([{"hostPort": 8080, "containerPort": POD_PORT, "protocol": "tcp"}]);
    let pod = Served::with(node, "former", &ports);
    let types: Vec<&str> = pod.config.plugins.iter().filter_map(|plugin| plugin["type"].as_str()).collect();
    assert_eq!(types, ["mesh-cni", "bandwidth"]);

    let mut conf = Map::new();
    conf.insert("type".to_owned(), json!("portmap"));
    let extra = [("prevResult", pod.result.clone()), ("runtimeConfig", json!({"portMappings": ports}))];
    let call = Call {
        command: "ADD",
        binary: &plugins.join("portmap"),
        attachment: Some(&pod.attachment),
        stdin: pod.config.stdin(&conf, &extra),
    };
    let added = call.run(node).unwrap();
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stdout));
    age_attachment(node);
    assert!(rules(node).contains("CNI-DN-"), "{}", rules(node));

    pod.delete();
    assert!(!rules(node).contains("CNI-DN-"), "rules of portmap are left:\n{}", rules(node));
}
