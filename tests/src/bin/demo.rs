//! `make demo`: three nodes find each other and carry pods' traffic, on this machine, in namespaces of their own.
//!
//! Prints what an operator would want to see with their own eyes, and writes the same to `target/demo/report.json`.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::capture::Report;
use lab::mesh::{Mesh, NamedEnd, promised_sources};
use lab::{ApiKind, Capture, Family, Flow, IpVersion, Lab, Protocol, Signal, Stream, sandbox};
use serde_json::{Value, json};

/// How long the daemon is down in the demonstration.
const DEAD_FOR: Duration = Duration::from_secs(2);
/// Packets a second of the stream that runs over the kill.
const PACE: u32 = 200;

fn main() -> ExitCode {
    // Before anything else: a process with threads can't change its namespaces.
    let entered = sandbox::enter();
    let keep = std::env::var("KEEP").is_ok_and(|value| value == "1");
    let shown = entered.map_err(Into::into).and_then(|_| demonstrate(keep));
    match shown {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            say("\nSome checks failed; see above.");
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("\ndemo: {}", lab::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

/// Runs the whole demonstration; returns whether every check passed.
fn demonstrate(keep: bool) -> Result<bool, Box<dyn std::error::Error>> {
    let since = Instant::now();
    let step = |what: &str| say(&format!("[{:5.1} s] {what}", since.elapsed().as_secs_f32()));
    step("three nodes, a host outside and a Node API, each in namespaces of its own");
    let lab = Lab::builder().nodes(3).family(Family::Dual).api(ApiKind::Fake).keep(keep).build()?;
    let capture = lab.capture()?;
    step("meshd on each node: keys, annotations, tunnels, guard");
    let mut mesh = Mesh::form(lab)?;
    step("two pods on each node, by the CNI plugin");
    mesh.pods(&["a", "b"])?;
    step("every flow between pods, nodes and the outside, over IPv4 and IPv6");
    let flows = flows(&mesh)?;
    step("a stream between two pods while one meshd is killed and started again");
    let kill = kill(&mut mesh, &capture)?;
    step("done\n");

    let report = capture.report();
    say("What n1 sees (meshd status):\n");
    say(&mesh.node("n1")?.command(lab::bin("meshd")?).arg("status").run()?);
    print_flows(&flows);
    print_capture(&report);
    print_kill(&kill);

    let good = flows.iter().all(|flow| flow["ok"] == true)
        && report.pod_addresses() == 0
        && report.dropped == 0
        && report.wireguard() > 0
        && kill["leaked"] == 0
        && kill["recovered_ms"].is_u64();
    write_report(&json!({
        "flows": flows,
        "capture": {
            "wireguard_packets": report.wireguard(),
            "pod_address_outside_wireguard": report.pod_addresses(),
            "missed_by_the_capture": report.dropped,
        },
        "kill": kill,
        "seconds": since.elapsed().as_secs_f32(),
        "ok": good,
    }))?;
    if keep {
        say("\nThe nodes stay up. From another terminal:");
        for line in mesh.how_to_enter() {
            say(&format!("  {line}"));
        }
        say("End it with Ctrl-C.");
        mesh.hold();
    }
    Ok(good)
}

/// Every flow of the design that applies: between pods, between pods and nodes, and to the outside.
fn flows(mesh: &Mesh) -> Result<Vec<Value>, lab::Error> {
    let ends = mesh.ends();
    let mut flows = Vec::new();
    let inside = ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
    for (from, to) in inside.filter(|(from, to)| from.name != to.name && (from.is_pod || to.is_pod)) {
        let path = match (from.node == to.node, from.is_pod, to.is_pod) {
            (true, ..) => "veth",
            (false, ..) => "tunnel",
        };
        for version in mesh.family().versions() {
            let expected = promised_sources(from, to, *version)?;
            for protocol in Protocol::ALL {
                let seen = Flow::new(&from.end, &to.end, *version, protocol).probe()?;
                let ok = seen.answered && seen.source.is_some_and(|source| expected.contains(&source));
                flows.push(row(from, &to.name, *version, protocol, path, &expected, seen.source, ok));
            }
        }
    }
    let internet = mesh.internet();
    for from in ends.iter().filter(|from| from.is_pod) {
        for version in mesh.family().versions() {
            let node = mesh.node(from.node.as_deref().unwrap_or_default())?;
            let expected = vec![node.address(*version)?];
            for protocol in Protocol::ALL {
                let seen = Flow::new(&from.end, &internet, *version, protocol).probe()?;
                let ok = seen.answered && seen.source.is_some_and(|source| expected.contains(&source));
                flows.push(row(
                    from,
                    "outside",
                    *version,
                    protocol,
                    "masqueraded",
                    &expected,
                    seen.source,
                    ok,
                ));
            }
        }
    }
    Ok(flows)
}

#[expect(clippy::too_many_arguments, reason = "the columns of a row of the report")]
fn row(
    from: &NamedEnd,
    to: &str,
    version: IpVersion,
    protocol: Protocol,
    path: &str,
    expected: &[std::net::IpAddr],
    seen: Option<std::net::IpAddr>,
    ok: bool,
) -> Value {
    json!({
        "from": from.name, "to": to, "family": version.as_str(), "protocol": protocol.as_str(), "path": path,
        "expected_source": expected, "seen_source": seen, "ok": ok,
    })
}

/// Kills the daemon of n1 under a stream from one of its pods, and starts it again.
fn kill(mesh: &mut Mesh, capture: &Capture) -> Result<Value, lab::Error> {
    let (from, to) = (mesh.node("n1")?.pod("a")?.end(), mesh.node("n2")?.pod("a")?.end());
    let before = capture.report();
    let stream = Stream::start(&from, &to, IpVersion::V4, PACE)?;
    stream.wait_arrival(Instant::now(), Duration::from_secs(10))?;
    mesh.stop("n1", Signal::KILL)?;
    let sent_before = stream.sent();
    std::thread::sleep(DEAD_FOR);
    let sent = stream.sent() - sent_before;
    let leaked = capture.report().pod_addresses() - before.pod_addresses();
    let started = Instant::now();
    mesh.start("n1")?;
    let recovered = stream.wait_arrival(started, Duration::from_secs(30)).ok();
    let report = stream.stop();
    Ok(json!({
        "sent": sent,
        "leaked": leaked,
        "recovered_ms": recovered.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX)),
        "lost": report.lost,
    }))
}

/// A kind of flow: its name, its path, and which flows belong to it.
type Kind<'a> = (&'a str, &'a str, &'a dyn Fn(&Value) -> bool);

/// One line for each kind of flow, and one for each flow that failed.
fn print_flows(flows: &[Value]) {
    say("Flows, with the source address that the server saw (IPv4 and IPv6; TCP, UDP, ICMP):\n");
    say(&format!("  {:<34} {:<12} {:>8}  {}", "flow", "path", "ok", "example of a source seen"));
    let is_pod = |name: &Value| name.as_str().is_some_and(|name| name.contains('/'));
    let kinds: [Kind<'_>; 7] = [
        ("pod -> pod, same node", "veth", &|flow| is_pod(&flow["from"]) && is_pod(&flow["to"])),
        ("pod -> pod, other node", "tunnel", &|flow| is_pod(&flow["from"]) && is_pod(&flow["to"])),
        ("host -> pod, same node", "veth", &|flow| !is_pod(&flow["from"])),
        ("host -> pod, other node", "tunnel", &|flow| !is_pod(&flow["from"])),
        ("pod -> host, same node", "veth", &|flow| is_pod(&flow["from"]) && !is_pod(&flow["to"])),
        ("pod -> host, other node", "tunnel", &|flow| is_pod(&flow["from"]) && !is_pod(&flow["to"])),
        ("pod -> outside the cluster", "masqueraded", &|_| true),
    ];
    for (kind, path, belongs) in kinds {
        let rows: Vec<&Value> = flows.iter().filter(|flow| flow["path"] == path && belongs(flow)).collect();
        let good = rows.iter().filter(|flow| flow["ok"] == true).count();
        let example = rows.first().map(|flow| {
            let text = |name: &str| flow[name].as_str().unwrap_or("nothing").to_owned();
            format!("{} -> {}: {}", text("from"), text("to"), text("seen_source"))
        });
        say(&format!(
            "  {kind:<34} {path:<12} {:>8}  {}",
            format!("{good}/{}", rows.len()),
            example.unwrap_or_default()
        ));
    }
    for flow in flows.iter().filter(|flow| flow["ok"] != true) {
        say(&format!("  FAILED: {flow}"));
    }
}

fn print_capture(report: &Report) {
    say("\nCaptured on every node's underlay interface since before the first daemon was started:\n");
    say(&format!("  WireGuard packets                      {}", report.wireguard()));
    say(&format!("  unencrypted packets with a pod address {}", report.pod_addresses()));
}

fn print_kill(kill: &Value) {
    say(&format!("\nWhile meshd on n1 was down for {} s (SIGKILL):\n", DEAD_FOR.as_secs()));
    say(&format!("  packets sent by the pod meanwhile    {}", kill["sent"]));
    say(&format!("  captured unencrypted                 {}", kill["leaked"]));
    say(&format!("  traffic back after the restart       {} ms", kill["recovered_ms"]));
}

fn write_report(report: &Value) -> Result<(), Box<dyn std::error::Error>> {
    let directory = lab::target_dir()?.join("demo");
    std::fs::create_dir_all(&directory)?;
    let path = directory.join("report.json");
    std::fs::write(&path, format!("{report:#}\n"))?;
    let shown =
        std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf));
    say(&format!("\nThe same as data: {}", shown.unwrap_or(path).display()));
    Ok(())
}

fn say(line: &str) {
    // The terminal may be closed.
    let _ = writeln!(std::io::stdout(), "{line}");
}
