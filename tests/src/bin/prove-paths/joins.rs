//! Nodes that join a mesh: the time from what they publish to the first packet to a peer.

use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use serde_json::{Value, json};

use crate::network::{self, Settings, wait};
use crate::probes::Probes;
use crate::run::{Row, seconds};
use crate::{Failure, say};

/// Who joins, whom it sends to, what that is, and within how many seconds it should arrive.
const FIRST: [(&str, &str, &str, u64); 3] =
    [("n2", "n1", "public", 2), ("n4", "n1", "NAT to public", 3), ("n4", "n3", "relayed", 5)];
/// How long a first packet is waited for.
const LIMIT: Duration = Duration::from_secs(25);

/// Measures the first packets of two nodes that join a mesh of two others.
pub(crate) fn first_packets(settings: &Settings) -> Result<Vec<Row>, Failure> {
    say("first packets: n1 (relay) and n3 (home) stand, n2 (public) and n4 (symmetric NAT) join");
    let limit = settings.patience(LIMIT);
    let mut mesh = network::mesh(network::four_nodes()?, settings, "joins")?;
    let capture = mesh.capture()?;
    let mut probes = Probes::new(Instant::now(), settings.period());
    for name in ["n1", "n3"] {
        network::start(&mut mesh, name, settings)?;
        join(&mesh, &mut probes, name, limit)?;
    }
    wait(limit, || probes.is_up("n3", "n1"));
    let mut published = Vec::new();
    for name in ["n2", "n4"] {
        network::start(&mut mesh, name, settings)?;
        published.push((name, join(&mesh, &mut probes, name, limit)?));
        let own = FIRST.iter().filter(|(from, ..)| *from == name);
        wait(limit, || own.clone().all(|(from, to, ..)| probes.first(from, to).is_some()));
    }
    let rows = FIRST.iter().map(|(from, to, kind, goal)| {
        let since = published.iter().find(|(name, _)| name == from).map(|(_, at)| *at).unwrap_or_default();
        let time = probes.first(from, to).map(|at| at.saturating_sub(since));
        let goal = Duration::from_secs(*goal);
        Row {
            what: format!("first packet: {kind}"),
            goal: format!("{} s", goal.as_secs()),
            measured: time.map_or_else(|| format!("none in {} s", limit.as_secs()), seconds),
            met: time.is_some_and(|time| settings.in_time(time, goal)),
            details: time.map_or(Value::Null, |time| json!(time.as_secs_f64())),
        }
    });
    let mut rows: Vec<Row> = rows.collect();
    let seen = capture.report();
    rows.push(Row {
        what: "packets with pods' addresses while nodes join".to_owned(),
        goal: "0".to_owned(),
        measured: format!("{} of {} packets", seen.pod_addresses(), seen.wireguard() + seen.other),
        met: seen.pod_addresses() == 0 && seen.dropped == 0 && seen.wireguard() > 0,
        details: json!({"missed": seen.dropped}),
    });
    Ok(rows)
}

/// Waits until a node has published its keys, and creates its pod; returns when it had published.
fn join(mesh: &Mesh, probes: &mut Probes, name: &str, limit: Duration) -> Result<Duration, Failure> {
    let published = || mesh.status(name).is_some_and(|status| status["api"]["published"] == true);
    if wait(limit, published).is_none() {
        return Err(format!("{name} published nothing").into());
    }
    let at = probes.now();
    let node = mesh.node(name)?;
    node.wait_network(limit)?;
    probes.add(&node.pod("a")?)?;
    Ok(at)
}
