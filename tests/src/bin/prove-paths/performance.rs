//! What a relayed path costs beside a direct one: throughput, round trip, CPU of the relay.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use lab::{End, IpVersion, stream};
use serde_json::{Value, json};

use crate::Failure;
use crate::network::relay_of;
use crate::run::Run;

/// Payload of an echo that measures a round trip, in bytes.
const ECHO: usize = 64;

/// What passes between two pods.
pub(crate) struct Performance {
    round_trip: Duration,
    bytes_per_second: f64,
    /// CPU seconds for each GB: of the relay's thread that forwards, and of its whole daemon.
    relay_cpu: Option<(f64, f64)>,
}

impl Performance {
    pub(crate) fn measure(run: &Run<'_>, from: &End, to: &End) -> Result<Self, Failure> {
        run.probes.pause();
        let round_trip = round_trip(from, to)?;
        let bytes: u64 = match run.settings {
            settings if settings.is_emulated() => 20_000_000,
            settings if settings.quick => 200_000_000,
            _ => 1_000_000_000,
        };
        let relay = run.path("n4", "n6").and_then(|path| relay_of(path[0]).map(ToOwned::to_owned));
        let cpu = |relay: &Option<String>| forwarding_seconds(run.mesh.daemon(relay.as_deref()?).pid());
        let before = cpu(&relay);
        let took = stream::transfer(from, to, IpVersion::V4, bytes)?;
        #[expect(clippy::cast_precision_loss, reason = "far below what a float holds")]
        let bytes = bytes as f64;
        let per_gb = |after: f64, before: f64| (after - before) / bytes * 1e9;
        let relay_cpu = cpu(&relay)
            .zip(before)
            .map(|(after, before)| (per_gb(after.0, before.0), per_gb(after.1, before.1)));
        run.probes.resume();
        Ok(Self { round_trip, bytes_per_second: bytes / took.as_secs_f64(), relay_cpu })
    }

    /// Rows for a relayed path beside a direct one. In an emulated machine they are shown, and no goals.
    pub(crate) fn compare(&self, run: &mut Run<'_>, direct: &Self) {
        let emulated = run.settings.is_emulated();
        let share = 100.0 * self.bytes_per_second / direct.bytes_per_second;
        let megabits = |performance: &Self| (performance.bytes_per_second * 8e-6).round();
        let details = json!({"relayed_mbit": megabits(self), "direct_mbit": megabits(direct)});
        run.row(
            "relay: throughput beside the direct path",
            "60 %",
            format!("{share:.0} %"),
            share >= 60.0 || emulated,
            details,
        );
        let cpu = self.relay_cpu.map_or_else(|| "unknown relay".to_owned(), |(cpu, _)| format!("{cpu:.2} s"));
        let met = self.relay_cpu.is_some_and(|(cpu, _)| cpu <= 1.3) || emulated;
        let details = json!({"whole_daemon": self.relay_cpu.map(|(_, daemon)| daemon)});
        run.row("relay: CPU for each GB", "1.3 s", cpu, met, details);
        let added = self.round_trip.saturating_sub(direct.round_trip);
        let met = added <= Duration::from_micros(100) || emulated;
        run.row("relay: added round trip", "100 us", format!("{} us", added.as_micros()), met, Value::Null);
    }
}

/// Median of the round trip of some hundred small datagrams.
fn round_trip(from: &End, to: &End) -> Result<Duration, Failure> {
    let target = to.net().run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    let end = (to.address(IpVersion::V4)?, target.local_addr()?.port());
    let source = from.net().run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    source.set_read_timeout(Some(Duration::from_secs(1)))?;
    target.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut times = Vec::new();
    let mut buffer = [0; ECHO];
    for _ in 0..300 {
        let since = Instant::now();
        source.send_to(&[0; ECHO], end)?;
        // One thread for both ends: a second one would have to be woken up.
        let Ok((_, back)) = target.recv_from(&mut buffer) else { continue };
        target.send_to(&buffer, back)?;
        if source.recv_from(&mut buffer).is_ok() {
            times.push(since.elapsed());
        }
    }
    times.sort();
    times.get(times.len() / 2).copied().ok_or_else(|| "no echo came back".into())
}

/// CPU time in seconds of the thread that forwards, and of all threads of a relay's daemon. What the kernel counts as the
/// sender's is everything that a send causes on the way to the receiver: in this lab the routers in between too.
fn forwarding_seconds(pid: u32) -> Option<(f64, f64)> {
    let times = lab::threads::cpu_times(pid);
    let forwarding = times.get("relay")?.as_secs_f64();
    Some((forwarding, times.values().sum::<Duration>().as_secs_f64()))
}
