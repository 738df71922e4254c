//! `make prove-rotation`: keys are replaced again and again under traffic between all pairs of nodes, and every packet
//! is counted. Writes `target/rotation/report.json` and a picture of one rotation over time.

mod picture;

use std::io::Write as _;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::{ApiKind, Capture, Connection, Family, IpVersion, Lab, Node, Stream, sandbox};
use picture::Sample;
use serde_json::{Value, json};

/// Nodes of the mesh.
const NODES: u8 = 4;
/// Packets a second between each ordered pair of nodes.
const PACE: u32 = 500;
/// Packets a second of the long flow of larger packets, and their size in bytes.
const LONG: (u32, usize) = (200, 1200);
/// Bytes a second of the long TCP connection.
const TCP_PACE: u32 = 500_000;
/// Rotations of one node at a time, and of two neighbours at once.
const SINGLE: usize = 20;
const DOUBLE: usize = 3;
/// Short steps, so that many rotations fit into minutes. What they wait for is the same as with the defaults.
const QUICK: [&str; 4] = ["--rotation-drain", "1s", "--rotation-timeout", "20s"];

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    // Before anything else: a process with threads can't change its namespaces.
    let proved = sandbox::enter().map_err(Into::into).and_then(|_| prove());
    match proved {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            say("\nNot proven; see above.");
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("\nprove-rotation: {}", lab::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

/// All that runs while keys are replaced.
struct Traffic {
    pairs: Vec<Stream>,
    long: Stream,
    connection: Connection,
}

fn prove() -> Result<bool, Failure> {
    let since = Instant::now();
    let step = |what: &str| say(&format!("[{:5.1} s] {what}", since.elapsed().as_secs_f32()));
    step("four nodes, one pod on each");
    let lab = Lab::builder().nodes(NODES).family(Family::V4).api(ApiKind::Fake).build()?;
    let capture = lab.capture()?;
    let mut mesh = Mesh::idle(lab);
    for node in mesh.node_names() {
        mesh.start_with(&node, &QUICK)?;
    }
    mesh.wait_formed();
    mesh.pods(&["a"])?;
    let traffic = start(&mesh)?;
    step(&format!(
        "{} streams of {PACE} packets a second, a long UDP flow, a long TCP connection",
        traffic.pairs.len()
    ));

    let mut times = Vec::new();
    let mut oldest = 0;
    let mut rolled_back = 0;
    let mut samples = Vec::new();
    // The same order each time; which node comes next is random as far as the nodes are concerned.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for turn in 0..SINGLE + DOUBLE {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let first = usize::try_from(random % u64::from(NODES)).unwrap_or_default();
        let neighbour = (first + 1) % usize::from(NODES);
        let names = mesh.node_names();
        let who: Vec<&str> = match turn {
            turn if turn < SINGLE => vec![&names[first]],
            _ => vec![&names[first], &names[neighbour]],
        };
        let watched = (turn == 0).then(|| who[0].to_owned());
        let (reports, seen) = rotate(&mesh, &who, watched.as_deref(), &traffic)?;
        samples.extend(seen);
        for report in &reports {
            let milliseconds = report["last_milliseconds"].as_u64().unwrap_or_default();
            times.push(Duration::from_millis(milliseconds));
            rolled_back += report["rolled_back"].as_u64().unwrap_or_default();
        }
        oldest = oldest.max(oldest_key(&mesh));
        let took = times.last().copied().unwrap_or_default();
        step(&format!(
            "{:2} of {}: {} in {:.1} s",
            turn + 1,
            SINGLE + DOUBLE,
            who.join(" and "),
            took.as_secs_f32()
        ));
    }
    thread::sleep(Duration::from_millis(500));
    let report = conclude(traffic, &capture, &times, oldest, rolled_back);
    write(&report, &samples)?;
    let passed = print(&report);
    Ok(passed)
}

fn start(mesh: &Mesh) -> Result<Traffic, Failure> {
    let ends: Vec<_> = mesh.nodes().iter().flat_map(Node::pods).map(|pod| pod.end()).collect();
    let mut pairs = Vec::new();
    for (from_at, from) in ends.iter().enumerate() {
        for (_, to) in ends.iter().enumerate().filter(|(to_at, _)| *to_at != from_at) {
            pairs.push(Stream::start(from, to, IpVersion::V4, PACE)?);
        }
    }
    Ok(Traffic {
        pairs,
        long: Stream::start_sized(&ends[0], &ends[2], IpVersion::V4, LONG.0, LONG.1)?,
        connection: Connection::open(&ends[1], &ends[3], IpVersion::V4, Some(TCP_PACE))?,
    })
}

/// Rotates these nodes at once, and polls one of them meanwhile.
fn rotate(
    mesh: &Mesh,
    who: &[&str],
    watched: Option<&str>,
    traffic: &Traffic,
) -> Result<(Vec<Value>, Vec<Sample>), Failure> {
    thread::scope(|scope| {
        let mut samples = Vec::new();
        let begin = Instant::now();
        if let Some(node) = watched {
            // A second of calm before and after shows what is usual.
            watch(mesh, node, traffic, begin, &mut samples, || begin.elapsed() > Duration::from_secs(1));
        }
        let rotations: Vec<_> = who.iter().map(|node| scope.spawn(|| rotate_one(mesh, node))).collect();
        if let Some(node) = watched {
            let over = || rotations.iter().all(thread::ScopedJoinHandle::is_finished);
            watch(mesh, node, traffic, begin, &mut samples, over);
            let end = Instant::now();
            watch(mesh, node, traffic, begin, &mut samples, || end.elapsed() > Duration::from_secs(1));
        }
        let mut reports = Vec::new();
        for rotation in rotations {
            reports.push(rotation.join().unwrap_or_else(|_| Err("a rotation's thread panicked".into()))?);
        }
        Ok((reports, samples))
    })
}

fn rotate_one(mesh: &Mesh, node: &str) -> Result<Value, Failure> {
    let command = mesh.node(node)?.command(lab::bin("meshd")?).args(["rotate", "-o", "json"]);
    Ok(serde_json::from_slice(&command.output()?.stdout)?)
}

fn watch(
    mesh: &Mesh,
    node: &str,
    traffic: &Traffic,
    begin: Instant,
    samples: &mut Vec<Sample>,
    over: impl Fn() -> bool,
) {
    while !over() {
        if let Some(status) = mesh.status(node) {
            let received = |slot: &str| {
                let peers = status["peers"].as_array().cloned().unwrap_or_default();
                peers.iter().filter_map(|peer| peer["slots"][slot]["received"].as_u64()).sum()
            };
            samples.push(Sample {
                at: begin.elapsed(),
                step: status["rotation"]["step"].as_str().unwrap_or_default().to_owned(),
                slot: status["rotation"]["slot"].as_str().map(ToOwned::to_owned),
                received: [received("a"), received("b")],
                sent: traffic.pairs.iter().map(Stream::sent).sum(),
                arrived: traffic.pairs.iter().map(Stream::arrived).sum(),
            });
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Age in seconds of the oldest key that any node uses.
fn oldest_key(mesh: &Mesh) -> u64 {
    let statuses = mesh.node_names().into_iter().filter_map(|node| mesh.status(&node));
    let ages = statuses.flat_map(|status| {
        let keys = status["rotation"]["keys"].as_array().cloned().unwrap_or_default();
        keys.into_iter().filter_map(|key| key["age_seconds"].as_u64()).collect::<Vec<_>>()
    });
    ages.max().unwrap_or_default()
}

fn conclude(traffic: Traffic, capture: &Capture, times: &[Duration], oldest: u64, rolled_back: u64) -> Value {
    let pairs = traffic.pairs.len();
    let streams: Vec<_> = traffic.pairs.into_iter().chain([traffic.long]).map(Stream::stop).collect();
    let connection = traffic.connection.close();
    let sum = |value: &dyn Fn(&lab::stream::StreamReport) -> u64| streams.iter().map(value).sum::<u64>();
    let mut sorted: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    sorted.sort_by(f64::total_cmp);
    let captured = capture.report();
    let full = sum(&|report| report.overflowed);
    json!({
        "rotations": times.len(),
        "pairs": pairs,
        "sent": sum(&|report| report.sent),
        // What reached the receiver's socket and found it full was lost by this program, not by the mesh.
        "lost": sum(&|report| report.lost) - full,
        "receiver_was_full": full,
        "duplicated": sum(&|report| report.duplicated),
        "longest_silence_ms": streams.iter().map(|report| report.longest_silence.as_millis()).max(),
        "tcp_bytes": connection.received,
        "tcp_resets": u64::from(connection.broken.is_some()),
        "plaintext": captured.pod_addresses(),
        "wireguard_packets": captured.wireguard(),
        "capture_missed": captured.dropped,
        "rolled_back": rolled_back,
        "seconds_per_rotation": {
            "median": sorted.get(sorted.len() / 2),
            "longest": sorted.last(),
            "all": times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
        },
        "oldest_key_seen": oldest,
    })
}

fn write(report: &Value, samples: &[Sample]) -> Result<(), Failure> {
    let directory = lab::target_dir()?.join("rotation");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("report.json"), serde_json::to_string_pretty(report)? + "\n")?;
    std::fs::write(directory.join("rotation.svg"), picture::draw(samples))?;
    say(&format!(
        "\nwritten: {}, {}",
        directory.join("report.json").display(),
        directory.join("rotation.svg").display()
    ));
    Ok(())
}

/// Shows the result; says whether it is what was promised.
fn print(report: &Value) -> bool {
    let number = |name: &str| report[name].as_u64().unwrap_or(u64::MAX);
    let rows = [
        ("rotations", format!("{} (of these {DOUBLE} pairs at once)", number("rotations"))),
        ("packets sent", format!("{} between {} pairs", number("sent"), number("pairs"))),
        ("lost", number("lost").to_string()),
        ("duplicated", number("duplicated").to_string()),
        ("TCP resets", format!("{} ({} bytes)", number("tcp_resets"), number("tcp_bytes"))),
        ("unencrypted", format!("{} of {} captured", number("plaintext"), number("wireguard_packets"))),
        (
            "seconds per rotation",
            format!(
                "{:.1} (median), {:.1} (longest)",
                report["seconds_per_rotation"]["median"].as_f64().unwrap_or_default(),
                report["seconds_per_rotation"]["longest"].as_f64().unwrap_or_default()
            ),
        ),
        ("oldest key seen", format!("{} s", number("oldest_key_seen"))),
    ];
    for (name, value) in rows {
        say(&format!("  {name:22} {value}"));
    }
    let none = ["lost", "duplicated", "tcp_resets", "plaintext", "capture_missed", "rolled_back"];
    none.iter().all(|name| number(name) == 0)
        && number("rotations") == u64::try_from(SINGLE + 2 * DOUBLE).unwrap_or_default()
        && number("sent") > 100_000
        && number("wireguard_packets") > 0
}

fn say(text: &str) {
    // The terminal may be closed.
    let _ = writeln!(std::io::stdout(), "{text}");
}
