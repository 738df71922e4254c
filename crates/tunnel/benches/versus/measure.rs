//! What is measured about a contender.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Instant;

use base64::Engine as _;
use serde_json::Value;

use crate::Plan;
use crate::contender::{Contender, Running, resident};
use crate::lab::{Family, Host, Lab, Process, eventually, key_file, unique};

/// One round of one contender.
pub(crate) struct Sample {
    /// Gbit/s that arrive over one TCP flow.
    pub(crate) tcp1: f64,
    /// The same over four.
    pub(crate) tcp4: f64,
    /// Datagrams of 1,300 bytes that arrive each second, thousands.
    pub(crate) udp1300: f64,
    /// The same with 64 bytes.
    pub(crate) udp64: f64,
    /// Median round trip less that of the cable alone, microseconds.
    pub(crate) added: f64,
    /// CPU seconds of both ends for each GB that arrives over one TCP flow.
    pub(crate) cpu: f64,
}

/// Peers that are configured and silent.
const CROWD: u32 = 1_000;

/// Measures everything about `contender` once.
pub(crate) fn sample(contender: &Contender, plan: &Plan) -> Sample {
    let running = Running::start(contender);
    let (a, b) = (&running.lab.a, &running.lab.b);
    let inner = b.inner(Family::V4);
    let added = round_trip(a, &inner, plan) - round_trip(a, &b.underlay(Family::V4), plan);
    let _server = serve(b);
    let before = running.cpu_seconds();
    let (tcp1, bytes) = tcp(a, &inner, plan.seconds, 1);
    let cpu = (running.cpu_seconds() - before) / (bytes / 1e9);
    let (tcp4, _) = tcp(a, &inner, plan.seconds, 4);
    let udp1300 = udp(a, &inner, plan.seconds, 1300);
    let udp64 = udp(a, &inner, plan.seconds, 64);
    Sample { tcp1, tcp4, udp1300, udp64, added, cpu }
}

/// Gbit/s over one TCP flow with one peer, and with 1,000 idle ones in addition.
pub(crate) fn crowd(contender: &Contender, plan: &Plan) -> (f64, f64) {
    let running = Running::start(contender);
    let inner = running.lab.b.inner(Family::V4);
    let _server = serve(&running.lab.b);
    // Before and after in turns, so that a machine that gets slower meanwhile slows both down.
    let before = tcp(&running.lab.a, &inner, plan.seconds, 1).0;
    for (host, device) in [&running.lab.a, &running.lab.b].into_iter().zip(&running.devices) {
        add_crowd(host, device);
    }
    let first = tcp(&running.lab.a, &inner, plan.seconds, 1).0;
    let second = tcp(&running.lab.a, &inner, plan.seconds, 1).0;
    let again = Running::start(contender);
    let inner = again.lab.b.inner(Family::V4);
    let _server = serve(&again.lab.b);
    let after = tcp(&again.lab.a, &inner, plan.seconds, 1).0;
    (f64::midpoint(before, after), f64::midpoint(first, second))
}

/// Resident memory in MB with 1,000 peers that have never sent anything.
pub(crate) fn memory(contender: &Contender) -> f64 {
    let lab = Lab::new();
    let device = unique("tv");
    let process = contender.start(&lab.a, &device);
    let (file, _) = key_file();
    lab.a.wg(&format!("set {device} private-key {} listen-port 51840", file.path().display()));
    lab.a.configure(&device);
    add_crowd(&lab.a, &device);
    std::thread::sleep(std::time::Duration::from_millis(500));
    resident(&process)
}

fn add_crowd(host: &Host, device: &str) {
    let mut lines = String::new();
    for number in 0..CROWD {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&(number + 1).to_le_bytes());
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        let (high, low) = (number / 250, number % 250);
        let _ = write!(lines, "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.77.{high}.{low}/32\n");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    host.wg(&format!("addconf {device} {}", file.path().display()));
}

/// Starts an iperf3 server that goes with its value.
fn serve(host: &Host) -> Process {
    let mut command = host.command("iperf3", "-s");
    let server = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    eventually("iperf3 listens", || {
        let sockets = host.command("ss", "-Hltn sport = :5201").output().unwrap();
        (!sockets.stdout.is_empty()).then_some(())
    });
    server
}

/// The sums that iperf3 prints at its end.
fn iperf(host: &Host, arguments: &str) -> Value {
    for _ in 0..3 {
        let output =
            host.command("iperf3", &format!("-J --connect-timeout 5000 {arguments}")).output().unwrap();
        let mut all: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if all["error"].is_null() && all["end"].is_object() {
            return all["end"].take();
        }
        // A server that has lost its client in a flood needs a moment.
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    panic!("iperf3 {arguments} failed three times");
}

/// Gbit/s and bytes that arrived.
fn tcp(host: &Host, to: &str, seconds: u32, flows: u32) -> (f64, f64) {
    let end = iperf(host, &format!("-c {to} -t {seconds} -P {flows}"));
    let received = &end["sum_received"];
    (received["bits_per_second"].as_f64().unwrap() / 1e9, received["bytes"].as_f64().unwrap())
}

/// Thousands of datagrams per second that arrived while as many as possible were sent.
fn udp(host: &Host, to: &str, seconds: u32, length: u32) -> f64 {
    let end = iperf(host, &format!("-c {to} -t {seconds} -u -b 0 -l {length}"));
    let sum = &end["sum"];
    let arrived = sum["packets"].as_f64().unwrap() - sum["lost_packets"].as_f64().unwrap();
    arrived / sum["seconds"].as_f64().unwrap() / 1e3
}

/// The median round trip in microseconds.
fn round_trip(host: &Host, to: &str, plan: &Plan) -> f64 {
    let begin = Instant::now();
    let output = host.command("ping", &format!("-c {} -i 0.005 -W 1 {to}", plan.pings)).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let times =
        text.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok());
    let times: Vec<f64> = times.map(|milliseconds| milliseconds * 1e3).collect();
    assert!(times.len() * 2 > plan.pings as usize, "{} answers in {:?}", times.len(), begin.elapsed());
    median(times)
}

/// The middle value; of an even number the mean of the middle two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}
