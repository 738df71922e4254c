//! The scenarios, one function each: what happens, and what is measured of it.

use std::time::{Duration, Instant};

use lab::{Connection, IpVersion, Signal, Stream};
use serde_json::{Value, json};

use crate::Failure;
use crate::network::{self, is_direct, relay_of};
use crate::performance::Performance;
use crate::run::{Pair, Run, seconds};

/// Pairs that have no direct path: one end is behind a symmetric NAT, the other behind one that filters by port.
const RELAYED: [(&str, &str); 3] = [("n4", "n7"), ("n5", "n7"), ("n6", "n7")];
/// Ordered pairs that have a direct path: all others.
const DIRECT: usize = 36;
/// Pairs that start over the relay and can punch.
const PUNCHED: [(&str, &str); 2] = [("n4", "n6"), ("n5", "n6")];

/// From the start of all daemons until every pair is up.
pub(crate) fn come_up(run: &mut Run<'_>) -> Result<(), Failure> {
    let goal = Duration::from_secs(15);
    run.mark("start of all daemons");
    let pairs = run.pairs();
    let first = |run: &Run<'_>, pair: &Pair| run.probes.first(&pair.0, &pair.1);
    let (since, limit) = (Instant::now(), run.settings.patience(Duration::from_secs(40)));
    while since.elapsed() < limit && !pairs.iter().all(|pair| first(run, pair).is_some()) {
        run.add_pods()?;
        run.pass(Duration::from_millis(100));
    }
    let times: Vec<_> = pairs.iter().filter_map(|pair| Some((pair.clone(), first(run, pair)?))).collect();
    let within = times.iter().filter(|(_, time)| run.settings.in_time(*time, goal)).count();
    let last = times.iter().map(|(_, time)| *time).max().unwrap_or_default();
    let details: serde_json::Map<_, _> =
        times.iter().map(|((from, to), time)| (format!("{from}-{to}"), json!(time.as_secs_f64()))).collect();
    let ready = run.mesh.node_names().into_iter().filter_map(|node| run.mesh.status(&node));
    let ready = ready.filter(|status| status["ready"] == true).count();
    let measured = format!(
        "{within} of {}; {} in the end, the last after {}; {ready} nodes ready",
        pairs.len(),
        times.len(),
        seconds(last)
    );
    run.row("ordered pairs up within 15 s", "42 of 42", measured, within == pairs.len(), json!(details));
    Ok(())
}

/// From a pair's first packet, over the relay, until both ends say that its path is direct, which only punching makes it;
/// then which pairs are direct.
pub(crate) fn become_direct(run: &mut Run<'_>) {
    let goal = Duration::from_secs(15);
    let is_punched = |run: &Run<'_>, (from, to): &(&str, &str)| {
        run.path(from, to).is_some_and(|path| path.into_iter().all(is_direct))
    };
    let reported = !run.paths.last.is_empty();
    if reported {
        run.wait(Duration::from_secs(40), |run| PUNCHED.iter().all(|pair| is_punched(run, pair)));
    }
    let punched_at = |run: &Run<'_>, (from, to): &(&str, &str)| {
        let of_pair = |pair: &Pair| (pair.0 == *from && pair.1 == *to) || (pair.0 == *to && pair.1 == *from);
        let changes = run.paths.changes.iter().filter(|(_, pair, path)| of_pair(pair) && is_direct(path));
        let at = changes.map(|(at, _, _)| *at).max()?;
        is_punched(run, &(*from, *to))
            .then(|| at.saturating_sub(run.probes.first(from, to).unwrap_or_default()))
    };
    let times: Vec<_> = PUNCHED.iter().map(|pair| punched_at(run, pair)).collect();
    let longest = times.iter().copied().collect::<Option<Vec<_>>>().and_then(|times| times.into_iter().max());
    let measured = match longest {
        Some(longest) => seconds(longest),
        None if reported => format!("{} of {} pairs", times.iter().flatten().count(), PUNCHED.len()),
        None => "no path in the status".to_owned(),
    };
    run.row(
        "relayed becomes punched",
        "15 s",
        measured,
        longest.is_some_and(|time| run.settings.in_time(time, goal)),
        json!(times.iter().map(|time| time.map(|time| time.as_secs_f64())).collect::<Vec<_>>()),
    );
    // A pair that has moved a moment ago is up once it has been for some seconds.
    let direct = |run: &Run<'_>| {
        let direct = run.paths.last.iter().filter(|(_, path)| is_direct(path));
        direct.filter(|((from, to), _)| run.probes.is_up(from, to)).count()
    };
    run.wait(goal, |run| direct(run) == DIRECT);
    let direct = direct(run);
    let said: Value =
        run.paths.last.iter().map(|((from, to), path)| (format!("{from}-{to}"), json!(path))).collect();
    let measured = if reported { direct.to_string() } else { "no path in the status".to_owned() };
    run.row("of these direct", DIRECT.to_string(), measured, direct == DIRECT, said);
}

/// Patches of Nodes while nothing happens.
#[expect(clippy::unnecessary_wraps, reason = "as all scenarios")]
pub(crate) fn idle(run: &mut Run<'_>) -> Result<(), Failure> {
    run.wait(Duration::from_mins(1), Run::is_steady);
    run.probes.pause();
    run.pass(Duration::from_secs(5));
    let patches = |run: &Run<'_>| {
        let requests = run.mesh.api().requests().unwrap_or_default();
        requests
            .iter()
            .filter(|(kind, _)| kind.starts_with("patch nodes"))
            .map(|(_, count)| *count)
            .sum::<u64>()
    };
    let time = if run.settings.quick { 20 } else { 60 };
    run.mark("idle");
    let before = patches(run);
    // Not looked at meanwhile: a status is a request to the daemon.
    std::thread::sleep(Duration::from_secs(time));
    let count = patches(run) - before;
    run.probes.resume();
    run.mark("pods send again");
    run.row(
        &format!("patches of all idle nodes in {time} s"),
        "0",
        count.to_string(),
        count == 0,
        Value::Null,
    );
    Ok(())
}

/// A cloud gives a node another public address.
pub(crate) fn public_address_changes(run: &mut Run<'_>) -> Result<(), Failure> {
    let pairs = run.pairs_of("n3");
    run.recovery("recovery: a public peer's address changes", Duration::from_secs(3), &pairs, |run| {
        let node = run.mesh.node("n3")?;
        run.mesh.backbone().renumber_public(node)?;
        Ok(run.mesh.report_addresses(node)?)
    })
}

/// A provider gives a home another address.
pub(crate) fn punched_address_changes(run: &mut Run<'_>) -> Result<(), Failure> {
    let pairs = run.pairs_of("n6");
    run.recovery("recovery: a punched peer's address changes", Duration::from_secs(8), &pairs, |run| {
        Ok(run.mesh.backbone().renumber("home2")?)
    })
}

/// A home's router restarts.
pub(crate) fn table_is_flushed(run: &mut Run<'_>) -> Result<(), Failure> {
    let pairs = run.pairs_of("n6");
    run.recovery("recovery: a NAT's table is flushed", Duration::from_secs(8), &pairs, |run| {
        Ok(run.mesh.backbone().router("home2")?.flush()?)
    })
}

/// The daemon of a relay is killed while another node may relay as well.
pub(crate) fn relay_dies(run: &mut Run<'_>) -> Result<(), Failure> {
    run.mesh.set_relay("n3", true)?;
    // The API server was away before: watches are opened again after some seconds.
    run.wait(Duration::from_secs(30), |run| {
        let listed =
            |name: &String| run.mesh.status(name).is_some_and(|status| status["api"]["error"].is_null());
        run.mesh.node_names().iter().all(listed)
            && run.mesh.status("n3").is_some_and(|status| !status["relay"].is_null())
    });
    run.pass(Duration::from_secs(5));
    let said = run.path("n6", "n7").and_then(|path| relay_of(path[0]).map(ToOwned::to_owned));
    let relay = said.unwrap_or_else(|| "n1".to_owned());
    let pairs: Vec<_> = RELAYED.iter().flat_map(both).collect();
    run.recovery("recovery: the relay is killed", Duration::from_secs(8), &pairs, |run| {
        Ok(run.mesh.stop(&relay, Signal::KILL)?)
    })?;
    network::start(&mut run.mesh, &relay, run.settings)?;
    let pairs = run.pairs_of(&relay);
    run.wait(Duration::from_secs(20), |run| run.are_up(&pairs));
    Ok(())
}

/// Both ends of a pair get other addresses while no API server could tell.
pub(crate) fn both_change_without_api(run: &mut Run<'_>) -> Result<(), Failure> {
    let pairs: Vec<_> = both(&("n3", "n6")).collect();
    let what = "recovery: both ends' addresses change, API server away";
    let measured = run.recovery(what, Duration::from_secs(10), &pairs, |run| {
        run.mesh.api().stop()?;
        run.mesh.backbone().renumber("home2")?;
        Ok(run.mesh.backbone().renumber_public(run.mesh.node("n3")?)?)
    });
    run.mesh.api().resume()?;
    run.mesh.report_addresses(run.mesh.node("n3")?)?;
    measured
}

/// A path becomes narrower and says nothing, while a TCP connection uses it.
pub(crate) fn path_narrows(run: &mut Run<'_>) -> Result<(), Failure> {
    let what = "a path becomes narrower: TCP goes on after";
    let pairs: Vec<_> = both(&("n1", "n6")).collect();
    if !run.wait(Duration::from_secs(20), |run| run.are_up(&pairs)) {
        run.row(what, "60 s", "the pair was not up before", false, Value::Null);
        return Ok(());
    }
    let (from, to) = (run.pod("n1")?.end(), run.pod("n6")?.end());
    let connection = Connection::open(&from, &to, IpVersion::V4, Some(500_000))?;
    run.pass(Duration::from_secs(2));
    let at = run.mark("home2's path becomes 1,400 bytes");
    run.mesh.backbone().narrow("home2", 1400)?;
    let (mut last, mut moved, mut longest) = (connection.received(), Instant::now(), Duration::ZERO);
    let since = Instant::now();
    // Ten seconds without a stall of more than one are enough.
    let limit = run.settings.patience(Duration::from_secs(65));
    while since.elapsed() < limit {
        run.pass(Duration::from_millis(200));
        if connection.received() > last {
            longest = longest.max(moved.elapsed());
            (last, moved) = (connection.received(), Instant::now());
        }
        let calm = run.probes.now().saturating_sub(at) > longest + Duration::from_secs(10);
        if calm && moved.elapsed() < Duration::from_secs(1) {
            break;
        }
    }
    longest = longest.max(moved.elapsed());
    let mtu = run.mesh.status("n1").and_then(|status| {
        let peers = status["peers"].as_array()?.clone();
        peers.iter().find(|peer| peer["node"] == "n6")?["mtu"].as_u64()
    });
    let report = connection.close();
    run.mesh.backbone().widen("home2")?;
    run.mark("home2's path is 1,500 bytes again");
    let broken = report.broken.map(|error| error.to_string());
    let measured = match &broken {
        Some(error) => format!("broken: {error}"),
        None => seconds(longest),
    };
    let met = broken.is_none() && run.settings.in_time(longest, Duration::from_mins(1)) && longest < limit;
    run.row(what, "60 s", measured, met, json!({"mtu_of_the_route": mtu, "bytes": report.received}));
    Ok(())
}

/// A direct path becomes possible between two homes whose nodes use a relay, under traffic: the move must lose nothing.
/// Before and after it, relayed and direct path are compared.
pub(crate) fn moves_under_traffic(run: &mut Run<'_>) -> Result<(), Failure> {
    let what = "a voluntary move under traffic: packets lost, TCP resets";
    let pairs: Vec<_> = both(&("n4", "n6")).collect();
    run.mark("no UDP between both homes");
    run.mesh.backbone().set_blocked("home1", "home2", true)?;
    run.pass(Duration::from_secs(4));
    if !run.wait(Duration::from_secs(20), |run| run.are_up(&pairs)) {
        run.mesh.backbone().set_blocked("home1", "home2", false)?;
        run.row(what, "0, 0", "no relayed path to move from", false, Value::Null);
        return Ok(());
    }
    let (from, to) = (run.pod("n4")?.end(), run.pod("n6")?.end());
    let relayed = Performance::measure(run, &from, &to)?;
    let (packets, bytes) = run.settings.load();
    let streams = [
        Stream::start(&from, &to, IpVersion::V4, packets)?,
        Stream::start(&to, &from, IpVersion::V4, packets)?,
    ];
    let connection = Connection::open(&from, &to, IpVersion::V4, Some(bytes))?;
    run.pass(Duration::from_secs(3));
    let underway = streams.each_ref().map(|stream| stream.sent().saturating_sub(stream.arrived()));
    run.mark("UDP between both homes");
    run.mesh.backbone().set_blocked("home1", "home2", false)?;
    let carried = |run: &Run<'_>| {
        let count = |from, to| run.mesh.backbone().forwarded(from, to).unwrap_or_default();
        [count("home1", "home2"), count("home2", "home1")]
    };
    // Both directions carry what the streams send.
    let mut before = carried(run);
    let moved = run.wait(Duration::from_secs(100), |run| {
        let now = carried(run);
        let grown = [0, 1].map(|at: usize| now[at].saturating_sub(before[at]));
        before = now;
        grown.iter().all(|grown| *grown > u64::from(packets) / 10)
    });
    run.pass(Duration::from_secs(3));
    let reports = streams.map(Stream::stop);
    let closed = connection.close();
    let lost: u64 = reports.iter().map(|report| report.lost - report.overflowed).sum();
    let sent: u64 = reports.iter().map(|report| report.sent).sum();
    let resets = u64::from(closed.broken.is_some());
    let measured = if moved {
        format!("{lost} of {sent}, {resets}")
    } else {
        format!("no move; {lost} of {sent}, {resets}")
    };
    let broken = closed.broken.map(|error| error.to_string());
    let details = json!({"tcp": broken, "each_way_per_second": packets, "underway_before": underway});
    run.row(what, "0, 0", measured, moved && lost == 0 && resets == 0, details);
    if moved {
        let direct = Performance::measure(run, &from, &to)?;
        relayed.compare(run, &direct);
    }
    Ok(())
}

fn both(pair: &(&str, &str)) -> impl Iterator<Item = Pair> + use<> {
    let (one, other) = (pair.0.to_owned(), pair.1.to_owned());
    [(one.clone(), other.clone()), (other, one)].into_iter()
}
