//! Keys that others copy, and announcements that a thief writes with a node's credentials.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use keyring::{NOISE, PerSlot, PrivateKey, Proof, Slot};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use lab::kube::ADMIN;
use lab::mesh::{Mesh, refusals};
use lab::{Family, Lab, Signal};
use plan::annotation::{Phase, SlotState, State, names};
use plan::node::NodeUid;
use serde_json::json;

use super::{QUICK, WITHIN, keys, must_pass, quick, rotate, wait_whole};

fn state_of(node: &Node) -> Option<State> {
    State::parse(node.metadata.annotations.as_ref()?.get(names::STATE)?).ok()
}

fn annotated(state: &State) -> serde_json::Value {
    json!({"metadata": {"annotations": {names::STATE: state.render()}}})
}

/// Copies the keys of every announcement that it sees onto Node n9, as fast as it can, until told to stop.
async fn copy_keys(client: kube::Client, liar: NodeUid, stop: &AtomicBool) -> u64 {
    let nodes: Api<Node> = Api::all(client);
    let mut changes = watcher(nodes.clone(), watcher::Config::default()).boxed();
    let mut copies = 0;
    while !stop.load(Ordering::Relaxed) {
        let change = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
        let Ok(Some(Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)))) = change else {
            continue;
        };
        if node.metadata.name.as_deref() == Some("n9") {
            continue;
        }
        let Some(mut copy) = state_of(&node) else { continue };
        copies += 1;
        copy.uid = liar.clone();
        copy.generation = copies;
        if copies % 2 == 0 {
            copy.proofs = None;
        }
        nodes.patch("n9", &PatchParams::default(), &Patch::Merge(annotated(&copy))).await.unwrap();
    }
    copies
}

/// An older Node copies the new keys of each emergency rotation into its own announcement at once.
#[test]
fn keys_that_are_copied_stay_with_their_owners() {
    let rotations: usize = std::env::var("EMERGENCIES").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let lab = Lab::builder().nodes(5).family(Family::V4).register(false).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    let liar = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9"},
        "spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]},
    });
    let liar = mesh.api().create_node(liar).unwrap();
    let liar = NodeUid::new(liar["metadata"]["uid"].as_str().unwrap());
    // Ages are compared in seconds.
    thread::sleep(Duration::from_millis(1100));
    for node in mesh.nodes() {
        mesh.register(node).unwrap();
    }
    for node in mesh.node_names() {
        mesh.start_with(&node, &QUICK).unwrap();
    }
    mesh.wait_formed();
    let (stop, mesh) = (AtomicBool::new(false), &mesh);
    let names = mesh.node_names();
    let copies = thread::scope(|scope| {
        let watcher = scope.spawn(|| mesh.api().run(ADMIN, |client| copy_keys(client, liar, &stop)).unwrap());
        for number in 0..rotations {
            let node = &names[number % names.len()];
            let (done, report) = rotate(mesh, node, &["--emergency"]);
            assert!(done, "{report:#}");
        }
        wait_whole(mesh);
        // The last copy as well has been read by all.
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert!(copies >= rotations as u64, "{copies} copies of {rotations} rotations");
    wait_whole(mesh);
    for observer in &names {
        let status = mesh.status(observer).unwrap();
        for node in &names {
            assert_eq!(refusals(&status, node), [""; 0], "{observer} refuses {node}");
        }
        let codes = refusals(&status, "n9");
        assert!(codes == ["proof-missing"] || codes == ["proof-invalid"], "{observer}: {codes:?}");
    }
}

/// An announcement with keys of a thief, for the Node with this UID, and with valid proofs.
fn thiefs(uid: &NodeUid, generation: u64) -> State {
    let private = |slot| PrivateKey::from_bytes(&[if slot == Slot::A { 7 } else { 8 }; 32]).unwrap();
    let slot = |slot, port| SlotState { key: private(slot).public(), generation: 1, port };
    let state = State {
        uid: uid.clone(),
        generation,
        slots: PerSlot { a: slot(Slot::A, 51840), b: slot(Slot::B, 51841) },
        prefer: Slot::A,
        drain: None,
        phase: Phase::Steady,
        proofs: None,
    };
    state.prove(|slot, statement| Some(Proof::sign(&private(slot), statement, &[3; NOISE]))).unwrap()
}

fn generation(mesh: &Mesh, observer: &str, of: &str) -> u64 {
    let status = mesh.status(observer).unwrap();
    let peers = status["peers"].as_array().unwrap();
    peers.iter().find(|peer| peer["node"] == of).unwrap()["generation"].as_u64().unwrap()
}

/// A thief of a node's token announces the highest generation: when the thief is gone, the node is back within 30 s,
/// whether its daemon ran meanwhile or not, and after restarts and rotations.
#[test]
fn the_highest_generation_by_a_thief_does_not_outlast_the_thief() {
    let mut mesh = quick(3);
    mesh.pods(&["a"]).unwrap();
    let uid = mesh.api().node("n2").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let uid = NodeUid::new(uid);
    let highest = 1 << 53;
    let steal = |mesh: &Mesh, generation| {
        mesh.api().patch_node("n2", &annotated(&thiefs(&uid, generation))).unwrap();
    };
    // The daemon runs: it overwrites what it finds.
    for turn in 0..10 {
        steal(&mesh, if turn % 2 == 0 { highest } else { 20 + turn });
        thread::sleep(Duration::from_millis(300));
    }
    let gone = Instant::now();
    wait_whole(&mesh);
    assert!(gone.elapsed() < WITHIN, "{:?}", gone.elapsed());
    // It does not run: the thief's announcement stands until it is accepted.
    mesh.stop("n2", Signal::TERM).unwrap();
    steal(&mesh, highest);
    for observer in ["n1", "n3"] {
        mesh.wait(observer, "accepts what stands", WITHIN, |_| generation(&mesh, observer, "n2") == highest);
    }
    let gone = Instant::now();
    mesh.start_with("n2", &QUICK).unwrap();
    mesh.wait("n2", "published", WITHIN, |status| status["api"]["published"] == true);
    wait_whole(&mesh);
    assert!(gone.elapsed() < WITHIN, "{:?}", gone.elapsed());
    assert!(generation(&mesh, "n1", "n2") < highest / 2);
    must_pass(&mesh);
    // Nothing of it is left for later.
    let before = keys(&mesh, "n2");
    assert!(rotate(&mesh, "n2", &["--emergency"]).0);
    wait_whole(&mesh);
    assert!(keys(&mesh, "n2").iter().all(|key| !before.contains(key)));
    mesh.stop("n1", Signal::TERM).unwrap();
    mesh.start_with("n1", &QUICK).unwrap();
    wait_whole(&mesh);
    must_pass(&mesh);
}
