//! Pods that an earlier version attached, which left host ports to a chained `portmap`: a script stands for it here.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::node::{Call, Node, Pod};

/// Two addresses for pods.
const SMALL: [&str; 1] = ["10.244.1.0/30"];

/// A directory with a `portmap` that writes what it was called for, then does this.
fn portmap(then: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (path, calls) = (directory.path().join("portmap"), directory.path().join("calls"));
    let calls = calls.display();
    let script = format!("#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $(cat)\" >>{calls}\n{then}\n");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn calls(directory: &tempfile::TempDir) -> String {
    std::fs::read_to_string(directory.path().join("calls")).unwrap_or_default()
}

/// Attaches a pod as the earlier version did: its file names no ports.
fn attach_former(node: &Node, pod: &Pod) {
    node.add(pod).addresses();
    for name in node.reservations() {
        let path = node.outside(&node.state_dir()).join("attachments").join(name);
        let mut contents: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        if contents["container"] == pod.name {
            contents.as_object_mut().unwrap().remove("ports");
            std::fs::write(&path, contents.to_string()).unwrap();
        }
    }
}

fn with<'a>(call: Call<'a>, portmap: &tempfile::TempDir) -> Call<'a> {
    call.env("CNI_PATH", portmap.path().to_str().unwrap())
}

/// A DEL that names a host port, as the runtime does for a pod that has one.
fn del_with_ports<'a>(node: &'a Node, pod: &'a Pod) -> Call<'a> {
    let ports = json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]});
    node.pod_call("DEL", pod).conf("runtimeConfig", ports)
}

/// What a `portmap` does that hangs until [`end`], and works then.
const HANGS: &str = "until [ -e \"${0%/*}/end\" ]; do sleep 0.05; done; exit 0";

fn end(hanging: &tempfile::TempDir) {
    std::fs::write(hanging.path().join("end"), "").unwrap();
}

fn await_call(hanging: &tempfile::TempDir) {
    let since = Instant::now();
    while calls(hanging).is_empty() {
        assert!(since.elapsed() < Duration::from_secs(10), "portmap is not called");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_pod_that_is_attached_during_a_gc_stays() {
    let node = Node::new(&["10.244.1.0/24"]);
    let hanging = portmap(HANGS);
    let (former, added) = (Pod::new("former"), Pod::new("added"));
    attach_former(&node, &former);
    let gc = with(node.bare_call("GC").conf("cni.dev/valid-attachments", json!([])), &hanging);
    let address = std::thread::scope(|scope| {
        let gc = scope.spawn(|| gc.run());
        await_call(&hanging);
        let address = node.add(&added).addresses()[0];
        end(&hanging);
        gc.join().unwrap().silent();
        address
    });
    assert!(node.pings(address));
    assert_eq!(node.reservations().len(), 1, "the former one's is released");
}

#[test]
fn an_attachment_that_is_made_anew_during_its_del_stays() {
    let node = Node::new(&["10.244.1.0/24"]);
    let hanging = portmap(HANGS);
    let pod = Pod::new("former");
    attach_former(&node, &pod);
    let del = with(del_with_ports(&node, &pod), &hanging);
    std::thread::scope(|scope| {
        let del = scope.spawn(|| del.run());
        await_call(&hanging);
        node.add(&pod).addresses();
        end(&hanging);
        del.join().unwrap().silent();
    });
    assert_eq!(node.reservations().len(), 1);
}

#[test]
fn a_portmap_that_hangs_delays_no_other_pod() {
    let node = Node::new(&["10.244.1.0/24"]);
    let hanging = portmap("until [ -e \"${0%/*}/end\" ]; do sleep 0.05; done; echo slow; exit 1");
    let former = Pod::new("former");
    attach_former(&node, &former);
    let del = with(del_with_ports(&node, &former), &hanging);
    std::thread::scope(|scope| {
        let del = scope.spawn(|| del.run());
        await_call(&hanging);
        let other = Pod::new("other");
        node.add(&other).addresses();
        node.del(&other);
        assert!(!del.is_finished(), "another pod waited for portmap's end");
        end(&hanging);
        let refused = del.join().unwrap();
        assert_eq!(refused.code(), 106);
        assert!(refused.json["msg"].as_str().unwrap().contains("slow"), "{refused:?}");
    });
    assert_eq!(node.reservations().len(), 1, "its addresses are not free: a port may lead to them");
}

#[test]
fn gc_and_a_full_range_unmap_what_portmap_had() {
    let node = Node::new(&SMALL);
    let works = portmap("exit 0");
    let fails = portmap("echo broken; exit 1");
    let former = Pod::new("former");
    attach_former(&node, &former);
    let gc = || node.bare_call("GC").conf("cni.dev/valid-attachments", json!([]));
    assert_eq!(with(gc(), &fails).run().code(), 106);
    assert_eq!(node.reservations().len(), 1, "tried again by the next GC");
    with(gc(), &works).run().silent();
    assert!(calls(&works).starts_with("DEL former {"), "{}", calls(&works));
    assert!(calls(&works).contains("\"name\":\"meshd\"") && calls(&works).contains("\"portMappings\":[{"));
    assert_eq!(node.reservations(), Vec::<String>::new());

    let dead = Pod::new("dead");
    attach_former(&node, &dead);
    drop(dead);
    let next = Pod::new("next");
    let since = Instant::now();
    while !with(node.pod_call("ADD", &next), &works).run().success {
        assert!(since.elapsed() < Duration::from_secs(10), "the address of the dead pod stays");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(calls(&works).contains("DEL dead {"), "{}", calls(&works));
}
