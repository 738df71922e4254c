//! What is measured, in the order of [`all`]. Each scenario leaves the mesh as it was, but for `join`, the last one.

use std::thread;
use std::time::{Duration, Instant};

use keyring::{PrivateKey, Slot};
use serde_json::{Value, json};

use crate::Failure;
use crate::bench::{Bench, NODE, Repair};
use crate::cluster;
use crate::played::PlayedNode;
use crate::simulator::Shared;
use crate::{fleet, simulator};

/// Pause after a change of load, until what it has caused is over.
const REST: Duration = Duration::from_secs(3);
/// How long one change may take to show.
const SHOWS_WITHIN: Duration = Duration::from_secs(10);
/// After how many changes that do not show the rest is left out.
const FAILURES: usize = 3;
/// How long a whole scenario may take.
const ENDS_WITHIN: Duration = Duration::from_mins(5);
/// How often the simulator is asked: costs the daemon nothing.
const ASK: Duration = Duration::from_millis(2);

/// Runs all scenarios that are wanted.
pub(crate) fn all(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let created = Instant::now();
    let identities = cluster::create(bench.lab.api(), 0..bench.size)?;
    let seconds = created.elapsed().as_secs_f64();
    bench.row("Nodes created, s", Some(seconds), Value::Null);
    bench.kubelets.set_nodes(bench.size);
    bench.scenario("start", |bench| {
        let ready = bench.start()?;
        bench.row("cold start until ready, s", Some(ready.as_secs_f64()), Value::Null);
        // The daemon's Node is read every 100 ms.
        bench.wait("the daemon's keys", SHOWS_WITHIN, Duration::from_millis(50), |bench| {
            Ok(bench.simulator.knows_daemon())
        })?;
        bench.simulator.add(identities)
    });
    settle(bench)?;
    bench.scenario("idle", idle);
    bench.scenario("rss", rss);
    bench.scenario("scrape", scrape);
    bench.scenario("change", change);
    bench.scenario("drift", |bench| {
        drift(bench);
        Ok(())
    });
    bench.scenario("storm", storm);
    bench.scenario("rotate_own", rotate_own);
    if bench.settings.runs("join") {
        bench.scenario("start", warm_start);
    }
    bench.scenario("join", join);
    bench.stop()
}

/// Waits until every preshared key of every peer is proven, as the played nodes see it.
fn settle(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let (size, within) = (bench.size, bench.settings.settle);
    let since = Instant::now();
    let every = Duration::from_millis(500);
    let proven = |bench: &Bench<'_>| bench.simulator.count(PlayedNode::is_proven);
    let settled = bench.wait("settled", within, every, |bench| Ok(proven(bench) == size));
    let details = json!({"proven": proven(bench), "peers": size, "waited_s": since.elapsed().as_secs_f64()});
    bench.row("settled, s", settled.ok().map(|time| time.as_secs_f64()), details);
    thread::sleep(REST);
    // Fails if the daemon has ended.
    bench
        .wait("the daemon", Duration::ZERO, ASK, |_| Ok(false))
        .err()
        .map_or(Ok(()), |error| if error.to_string().starts_with("not within") { Ok(()) } else { Err(error) })
}

fn idle(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let api = bench.lab.api();
    let version = |node: &Value| node["metadata"]["resourceVersion"].as_str().map(ToOwned::to_owned);
    let requests = cluster::requests(api)?;
    let reports = || bench.kubelets.reports.load(std::sync::atomic::Ordering::Relaxed);
    let (own, reported) = (version(&api.node(NODE)?), reports());
    let process = bench.process()?;
    let (began, cpu, threads, waited) = (Instant::now(), process.cpu(), process.threads(), process.waited());
    thread::sleep(bench.settings.idle);
    let (wall, used) = (began.elapsed(), process.cpu().saturating_sub(cpu));
    let share = used.as_secs_f64() / wall.as_secs_f64();
    let by_thread: serde_json::Map<String, Value> = process
        .threads()
        .into_iter()
        .map(|(name, time)| {
            let spent = time.saturating_sub(threads.get(&name).copied().unwrap_or_default());
            (name, json!(spent.as_secs_f64() * 1e3 / wall.as_secs_f64()))
        })
        .collect();
    let waited = process.waited().saturating_sub(waited).as_secs_f64() / wall.as_secs_f64();
    let written = reports() - reported;
    let after = cluster::requests(api)?;
    let served: serde_json::Map<String, Value> = after
        .iter()
        .map(|(verb, count)| {
            (verb.clone(), json!(count.saturating_sub(requests.get(verb).copied().unwrap_or_default())))
        })
        .collect();
    // Only the daemon and the played kubelets patch, and nobody else the daemon's Node.
    let patches = served.get("PATCH").and_then(Value::as_u64).unwrap_or_default();
    let changed = u64::from(version(&api.node(NODE)?) != own);
    let writes = patches.saturating_sub(written + 1).max(changed);
    let details = json!({
        "seconds": wall.as_secs_f64(), "millicores_by_thread": by_thread, "cpu_from": process.source(),
        "main_thread_waited_for_cpu": waited, "kubelets_reports": written, "requests_of_all_about_nodes": served,
        "proven": bench.simulator.count(PlayedNode::is_proven),
    });
    bench.row("idle, millicores", Some(share * 1e3), details);
    let details = json!({"own_node_changed": changed == 1, "seconds": wall.as_secs_f64()});
    bench.row("idle, API writes", Some(number(writes)), details);
    Ok(())
}

fn rss(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let (now, most) = bench.process()?.memory();
    let details = json!({"highest_MiB": number(most) / 1024.0});
    bench.row("RSS, MiB", Some(number(now) / 1024.0), details);
    Ok(())
}

fn scrape(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let began = Instant::now();
    let page = bench.node()?.run(lab::metrics)??;
    let took = began.elapsed();
    let (lines, bytes) = (page.lines().count(), page.len());
    bench.row("scrape, lines", Some(number(u64::try_from(lines)?)), json!({"bytes": bytes}));
    bench.row("scrape, ms", Some(took.as_secs_f64() * 1e3), json!({"bytes": bytes}));
    Ok(())
}

/// Changes of three kinds, one at a time: one without a meaning for the mesh, an endpoint, a key.
fn change(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let count = bench.settings.changes.min(bench.size);
    // As fast as the API server takes them, and many: one by one they cost less than what the idle cost varies by.
    let reports = bench.settings.changes * 20;
    let cost = changes(bench, reports, |bench, number| {
        cluster::report(bench.lab.api(), number % bench.size)?;
        Ok(None)
    })?;
    cost.rows(bench, "change without meaning");
    let cost = changes(bench, count, |bench, index| {
        let node = bench.simulator.node(index).ok_or("no such node")?;
        simulator::lock(&node).change_address();
        let moved = simulator::lock(&node).identity.moved;
        bench.lab.api().patch_node_status(&fleet::name(index), &fleet::addresses(index, moved))?;
        publish(bench, &node)?;
        bench
            .wait("an endpoint", SHOWS_WITHIN, ASK, |_| Ok(simulator::lock(&node).seen.at_second.is_some()))
            .map(Some)
    })?;
    cost.rows(bench, "change of an endpoint");
    let cost = changes(bench, count, |bench, index| {
        let node = bench.simulator.node(index).ok_or("no such node")?;
        let key = PrivateKey::generate()?;
        bench.simulator.with(&node, |node, now, out| node.replace_key(Slot::B, key, now, out));
        publish(bench, &node)?;
        let shows = |bench: &Bench<'_>| {
            bench.simulator.with(&node, |node, now, _| node.since_handshake(now, Slot::B).is_some())
        };
        bench.wait("a key", SHOWS_WITHIN, ASK, |bench| Ok(shows(bench))).map(Some)
    })?;
    cost.rows(bench, "change of a key");
    Ok(())
}

/// Publishes what a node announces. It goes on answering meanwhile.
fn publish(bench: &Bench<'_>, node: &Shared) -> Result<(), Failure> {
    let (name, patch) = {
        let node = simulator::lock(node);
        (fleet::name(node.identity.index), node.identity.annotations())
    };
    bench.lab.api().patch_node(&name, &patch)?;
    Ok(())
}

/// What changes cost.
struct Cost {
    milliseconds: f64,
    count: usize,
    latencies: Vec<Duration>,
    failed: Vec<String>,
    /// What was used when nothing was changed, just before.
    idle_millicores: f64,
}

/// Makes changes to one node after the other. What the daemon uses beyond its idle cost is theirs; latencies start when the
/// API server has answered.
fn changes(
    bench: &mut Bench<'_>,
    count: usize,
    mut change: impl FnMut(&Bench<'_>, usize) -> Result<Option<Duration>, Failure>,
) -> Result<Cost, Failure> {
    // The idle cost of this moment: what was measured at the start of the run is another one by now.
    let (began, cpu) = (Instant::now(), bench.process()?.cpu());
    thread::sleep(REST);
    let idle_share = bench.process()?.cpu().saturating_sub(cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    let (began, cpu) = (Instant::now(), bench.process()?.cpu());
    let (mut latencies, mut failed) = (Vec::new(), Vec::new());
    for index in 0..count {
        match change(bench, index) {
            Ok(latency) => latencies.extend(latency),
            Err(error) => failed.push(format!("node {index}: {error}")),
        }
        if failed.len() > FAILURES {
            break;
        }
    }
    let count =
        latencies.len() + failed.len() + if latencies.is_empty() && failed.is_empty() { count } else { 0 };
    // What the last one has caused belongs to it.
    thread::sleep(REST);
    let used = bench.process()?.cpu().saturating_sub(cpu).as_secs_f64();
    let idle = idle_share * began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    // Not cut off at zero: a figure below it says that the changes cost less than what the idle cost varies by.
    let milliseconds = (used - idle) * 1e3 / number(u64::try_from(count.max(1))?);
    Ok(Cost { milliseconds, count, latencies, failed, idle_millicores: idle_share * 1e3 })
}

impl Cost {
    fn rows(&self, bench: &mut Bench<'_>, what: &str) {
        let details = json!({
            "changes": self.count, "not_seen": self.failed, "idle_millicores_before": self.idle_millicores,
        });
        bench.row(format!("{what}, CPU ms"), Some(self.milliseconds), details.clone());
        if self.latencies.is_empty() && self.failed.is_empty() {
            return;
        }
        let at = |percent: usize| {
            let index = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
            self.latencies.get(index).map(|time| time.as_secs_f64() * 1e3)
        };
        bench.row(format!("{what}, p50 ms"), at(50), details.clone());
        // One that was not seen at all is not below any limit.
        bench.row(format!("{what}, p99 ms"), at(99).filter(|_| self.failed.is_empty()), details);
    }
}

/// Hand-made changes of nine kinds, each with what shows it.
fn drift(bench: &mut Bench<'_>) {
    let range = fleet::pod_range(bench.size - 1);
    let route = format!("ip route show {range}");
    let kinds: [(String, &str); 9] = [
        (format!("ip route del {range}"), &route),
        ("ip route flush table 5184".into(), "ip route show table 5184 | wc -l"),
        (format!("ip route replace {range} dev mesh-b metric 84 proto 84"), &route),
        ("ip rule del from 10.244.1.0/24 table 5184".into(), "ip rule show | grep -c 518[45]"),
        ("ip addr flush dev mesh-a".into(), "ip -br addr show mesh-a | grep -o '10.244[^ ]*'"),
        ("ip link set mesh-a mtu 1300".into(), "ip link show mesh-a | grep -o 'mtu [0-9]*'"),
        ("ip link set mesh-b down".into(), "ip link show mesh-b | grep -c ',UP'"),
        ("nft delete table inet meshd".into(), "nft list table inet meshd | grep -c ' chain '"),
        ("ip route add 10.99.0.0/16 dev mesh-a proto 84".into(), "ip route show 10.99.0.0/16"),
    ];
    let (mut times, mut worst) = (serde_json::Map::new(), Some(0.0_f64));
    for (change, shows) in kinds {
        let mut found = bench.repair(&change, shows, SHOWS_WITHIN);
        // A turn that was due anyway may have repaired it before the first look, which says little.
        for _ in 1..5 {
            if found.as_ref().map_or(true, |repair| repair.was_seen) {
                break;
            }
            thread::sleep(Duration::from_millis(330));
            found = bench.repair(&change, shows, SHOWS_WITHIN);
        }
        let (took, details) = match found {
            Ok(Repair { was_seen, took }) => {
                let took = took.map(|took| took.as_secs_f64());
                (took, json!({"s": took, "seen": was_seen}))
            }
            // Nothing was there to be repaired.
            Err(error) => (None, json!({"failed": lab::chain(&*error)})),
        };
        worst = worst.zip(took).map(|(worst, took)| worst.max(took));
        times.insert(change, details);
        thread::sleep(Duration::from_millis(500));
    }
    bench.row("hand-made change repaired, s", worst, json!({"longest_of": times}));
}

/// All peers begin a handshake at once, as after a partition.
fn storm(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let began = Instant::now();
    let cpu = bench.process()?.cpu();
    for node in bench.simulator.nodes() {
        bench.simulator.with(&node, |node, now, out| node.initiate(now, Slot::A, out));
    }
    let done = |bench: &Bench<'_>| {
        let (now, since) = (bench.simulator.now(), began.elapsed());
        bench.simulator.count(|node| node.since_handshake(now, Slot::A).is_some_and(|age| age < since))
    };
    let nodes = bench.simulator.nodes().len();
    let over = bench
        .wait("all handshakes", ENDS_WITHIN, Duration::from_millis(50), |bench| Ok(done(bench) == nodes));
    let used = bench.process()?.cpu().saturating_sub(cpu).as_secs_f64();
    let details = json!({"cpu_s": used, "completed": done(bench), "peers": nodes});
    bench.row("storm of handshakes over, s", over.ok().map(|time| time.as_secs_f64()), details);
    Ok(())
}

/// The daemon replaces both of its keys.
fn rotate_own(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let messages = |bench: &Bench<'_>| -> u64 {
        bench.simulator.nodes().iter().map(|node| simulator::lock(node).seen.messages).sum()
    };
    let (before, began, cpu) = (messages(bench), Instant::now(), bench.process()?.cpu());
    let rotated = bench.node()?.command(bench.program()).arg("rotate").output()?;
    let took = began.elapsed().as_secs_f64();
    let used = bench.process()?.cpu().saturating_sub(cpu).as_secs_f64();
    let nodes = u64::try_from(bench.simulator.nodes().len())?;
    let each = number(messages(bench) - before) / number(nodes.max(1));
    let said = String::from_utf8_lossy(&rotated.stdout).lines().next().unwrap_or_default().to_owned();
    let details =
        json!({"seconds": took, "cpu_s": used, "said": said, "completed": rotated.status.success()});
    let completed = rotated.status.success();
    bench.row("rotation of one node, messages a peer", completed.then_some(each), details.clone());
    bench.row("rotation of one node, s", completed.then_some(took), details);
    Ok(())
}

fn warm_start(bench: &mut Bench<'_>) -> Result<(), Failure> {
    bench.stop()?;
    let ready = bench.start()?;
    bench.row("warm start until ready, s", Some(ready.as_secs_f64()), Value::Null);
    thread::sleep(REST);
    Ok(())
}

/// A quarter more nodes join at once.
fn join(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let joining = (bench.size / 4).max(10);
    let (first, after) = (bench.size, bench.size + joining);
    let identities = cluster::create(bench.lab.api(), first..after)?;
    let last = Instant::now();
    bench.simulator.add(identities)?;
    bench.kubelets.set_nodes(after);
    let details = json!({"joining": joining, "before": first});
    let every = Duration::from_millis(100);
    let known = bench.wait("all known", ENDS_WITHIN, every, |bench| {
        let routes = bench.shell("ip -4 route show | grep -c '^100\\.'")?;
        Ok(routes.parse::<usize>().is_ok_and(|routes| routes >= after))
    });
    bench.row(
        "join: all known after the last, s",
        known.ok().map(|time| time.as_secs_f64()),
        details.clone(),
    );
    let talks = |node: &PlayedNode| node.identity.index < first || node.seen.messages > 0;
    let up = bench.wait("sessions", ENDS_WITHIN, every, |bench| Ok(bench.simulator.count(talks) == after));
    let up = up.ok().map(|_| last.elapsed().as_secs_f64());
    bench.row("join: sessions with traffic, s", up, details);
    cluster::delete(bench.lab.api(), first..after)
}

/// Counts and sizes are far below what a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "counts")]
const fn number(count: u64) -> f64 {
    count as f64
}
