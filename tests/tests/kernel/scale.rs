//! The cost of a change does not depend on the number of peers.

use std::time::{Duration, Instant};

use kernel_wireguard::Kernel;
use keyring::PrivateKey;
use lab::netlink::Monitor;
use lab::require::{self, Need};
use lab::{ApiKind, Lab};
use wireguard::{Device as _, Peer, PeerChange};

/// Median time of a change with this many peers, and the number of messages that it takes.
fn change_among(peers: u32) -> (Duration, usize, usize) {
    let lab = Lab::builder().nodes(1).api(ApiKind::None).build().unwrap();
    let node = lab.node("n1").unwrap();
    let mut device = node.run(|| Kernel::create(&"mesh-a".parse().unwrap()).unwrap()).unwrap();
    device.set_key(&PrivateKey::generate().unwrap()).unwrap();
    let keys: Vec<_> = (0..peers).map(|_| PrivateKey::generate().unwrap().public()).collect();
    for (n, key) in keys.iter().enumerate() {
        let peer = Peer {
            endpoint: Some(format!("198.18.{}.{}:51840", n / 250, n % 250).parse().unwrap()),
            allowed_ips: [format!("10.{}.{}.0/24", n / 250, n % 250).parse().unwrap()].into(),
            ..Peer::default()
        };
        device.add_peer(*key, &peer).unwrap();
    }
    assert_eq!(device.state().unwrap().peers.len(), keys.len());
    let monitor = Monitor::start(node).unwrap();
    let changed = keys[keys.len() / 2];
    let change = |port: u16| PeerChange {
        endpoint: Some(([198, 18, 9, 9], port).into()),
        allow: ["10.200.0.0/24".parse().unwrap()].into(),
        ..PeerChange::default()
    };
    device.update_peer(changed, &change(1)).unwrap();
    let seen = monitor.stop(node).unwrap();
    let mut times: Vec<Duration> = (2..52)
        .map(|port| {
            let since = Instant::now();
            device.update_peer(changed, &change(port)).unwrap();
            since.elapsed()
        })
        .collect();
    times.sort();
    let entries = seen.iter().map(|message| message.peers).sum();
    (times[times.len() / 2], seen.len(), entries)
}

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn one_of_a_thousand_peers_is_changed_by_one_message_in_no_more_than_twice_the_time() {
    require::all(&[Need::Namespaces, Need::KernelWireguard]);
    let (few, messages, entries) = change_among(10);
    assert_eq!((messages, entries), (1, 1));
    let (many, messages, entries) = change_among(1000);
    assert_eq!((messages, entries), (1, 1));
    println!("one of 10: {few:?}, one of 1,000: {many:?}");
    assert!(many <= few * 2, "one of 10: {few:?}, one of 1,000: {many:?}");
}
