//! `meshd status` as text: short lines and one table that fits a terminal.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use crate::{Fence, NameStatus, PeerSlotStatus, PeerStatus, Status};

/// How many names a list has, and how many lines of one kind there are, unless all are wanted.
const FEW: usize = 10;

/// Renders a status: its peers, and no more than ten names or lines of each kind unless `all` are wanted.
pub fn render(status: &Status, all: bool) -> String {
    let mut text = String::new();
    // Writing into a String can't fail.
    let _ = head(&mut text, status);
    if !status.peers.is_empty() {
        let _ = writeln!(text, "\n{}", peers(&status.peers));
    }
    let hidden = status.summary.reach.all().saturating_sub(status.peers.len() as u64);
    if hidden > 0 {
        let which =
            if status.peers.is_empty() { "no peer has a problem" } else { "shown: those with a problem" };
        let _ = writeln!(text, "\n{which}; {hidden} more: meshd status --all");
    }
    let _ = tail(&mut text, status, if all { usize::MAX } else { FEW });
    text
}

/// The first of these names, and how many more there are.
pub(crate) fn names(names: &[impl AsRef<str>], most: usize) -> String {
    let first = names.iter().take(most).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Writes the first of these lines, and how many more there are.
fn lines(text: &mut String, lines: impl Iterator<Item = String>, most: usize) -> std::fmt::Result {
    let mut more = 0_usize;
    for (number, line) in lines.enumerate() {
        if number < most {
            writeln!(text, "\n{line}")?;
        } else {
            more += 1;
        }
    }
    if more > 0 { writeln!(text, "and {more} more: meshd status --all") } else { Ok(()) }
}

fn head(text: &mut String, status: &Status) -> std::fmt::Result {
    let state = if status.ready {
        "ready".to_owned()
    } else {
        format!("not ready: {}", status.waiting_for.join("; "))
    };
    writeln!(text, "node      {} ({state})", status.node)?;
    let cidrs: Vec<String> = status.pod_cidrs.iter().map(ToString::to_string).collect();
    writeln!(text, "podCIDRs  {}", if cidrs.is_empty() { "none yet".to_owned() } else { cidrs.join(", ") })?;
    for (slot, device) in status.slots.iter() {
        if let Some(device) = device {
            let (link, key, port, mtu) = (&device.link, device.key.fingerprint(), device.port, device.mtu);
            writeln!(text, "slot {slot}    {link}, key {key}, port {port}, MTU {mtu}, {}", device.backend)?;
        }
    }
    writeln!(text, "backend   {} ({})", status.backend, status.backend_reason)?;
    if status.summary.reach.all() > 0 {
        writeln!(text, "peers     {}", status.summary.reach)?;
    }
    writeln!(text, "keys      {}", super::rotation::line(&status.rotation))?;
    if let Some(seconds) = status.stretched_pq_interval {
        let every = super::rotation::age(seconds);
        writeln!(
            text,
            "preshared keys are renewed every {every}, not every `pq-interval`, because there are many peers"
        )?;
    }
    let guard = &status.guard;
    writeln!(
        text,
        "guard     {}; dropped {} outgoing, {} incoming, {} spoofed, {} to closed addresses",
        match (guard.in_place, guard.owned) {
            (true, true) => "in place, owned",
            (true, false) => "in place",
            (false, _) => "MISSING",
        },
        guard.dropped_out,
        guard.dropped_in,
        guard.dropped_spoofed,
        guard.dropped_closed
    )?;
    if guard.closed_addresses > 0 || !guard.open_node_cidrs.is_empty() {
        let open: Vec<String> = guard.open_node_cidrs.iter().map(ToString::to_string).collect();
        let open = if open.is_empty() { String::new() } else { format!("; OPEN {}", open.join(", ")) };
        writeln!(
            text,
            "nodes     {} addresses outside the mesh closed to pods{open}",
            guard.closed_addresses
        )?;
    }
    let policy = match status.api.trust_policy {
        Fence::InPlace => "trust policy in place",
        Fence::Missing => "TRUST POLICY MISSING",
        Fence::Unknown => "trust policy not tested yet",
    };
    let connection = match (&status.api.error, status.api.listed) {
        (Some(error), _) => format!("unreachable: {error}"),
        (None, true) => "connected".to_owned(),
        (None, false) => "not connected yet".to_owned(),
    };
    let published = if status.api.published { "published" } else { "not published" };
    writeln!(text, "API       {connection}; keys {published}; {policy}")
}

fn peers(peers: &[PeerStatus]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "PEER",
        "STATE",
        "PODCIDR",
        "SLOT",
        "ENDPOINT",
        "PATH",
        "HANDSHAKE",
        "RECEIVED",
        "SENT",
        "MTU, RTT",
        "PQ",
    ]);
    for peer in peers {
        for (slot, state) in peer.slots.iter() {
            let Some(state) = state else { continue };
            let first = slot == keyring::Slot::A;
            let cidrs: Vec<String> = peer.pod_cidrs.iter().map(ToString::to_string).collect();
            let mark = if peer.active == Some(slot) { "*" } else { " " };
            table.add_row([
                if first { peer.node.clone() } else { String::new() },
                if first { peer.state.as_str().to_owned() } else { String::new() },
                if first { cidrs.join("\n") } else { String::new() },
                format!("{mark}{slot}"),
                state.endpoint.map_or_else(|| "unknown".to_owned(), |endpoint| endpoint.to_string()),
                state.path.clone().unwrap_or_else(|| "searching".to_owned()),
                handshake(state),
                bytes(state.received),
                bytes(state.sent),
                if first { mtu(peer) } else { round_trip(peer) },
                state.pq.text().to_owned(),
            ]);
        }
    }
    table
}

/// The MTU of the routes, marked if it is less than the route allows, and if packets of that size are lost.
fn mtu(peer: &PeerStatus) -> String {
    let mark = match peer.mtu_source.as_str() {
        _ if peer.full_size_passes == Some(false) => " LOST",
        "probed" => " probed",
        "floor" => " floor",
        _ => "",
    };
    peer.mtu.map(|mtu| format!("{mtu}{mark}")).unwrap_or_default()
}

fn round_trip(peer: &PeerStatus) -> String {
    peer.round_trip_microseconds.map(round_trip_text).unwrap_or_default()
}

/// A time in microseconds, in milliseconds.
pub(crate) fn round_trip_text(took: u64) -> String {
    format!("{}.{} ms", took / 1000, took % 1000 / 100)
}

fn handshake(state: &PeerSlotStatus) -> String {
    match state.handshake_age {
        None => "never".to_owned(),
        Some(age @ 0..120) => format!("{age} s ago"),
        Some(age @ 120..7200) => format!("{} min ago", age / 60),
        Some(age) => format!("{} h ago", age / 3600),
    }
}

/// A byte count in a binary unit, at most three digits before the decimal point.
pub(crate) fn bytes(count: u64) -> String {
    let mut whole = count;
    let mut rest = 0;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if whole < 1000 {
            return if unit == "B" {
                format!("{whole} B")
            } else {
                format!("{whole}.{} {unit}", rest * 10 / 1024)
            };
        }
        rest = whole % 1024;
        whole /= 1024;
    }
    format!("{whole} PiB")
}

fn tail(text: &mut String, status: &Status, most: usize) -> std::fmt::Result {
    relays(text, status, most)?;
    if !status.pending.is_empty() {
        writeln!(text, "\nno keys published yet: {}", names(&status.pending, most))?;
    }
    if !status.kept.is_empty() {
        writeln!(text, "\nno longer listed by the API server, kept for now: {}", names(&status.kept, most))?;
    }
    let too_small = status.peers.iter().filter(|peer| peer.full_size_passes == Some(false)).map(|peer| {
        let mtu = peer.mtu.unwrap_or_default();
        format!(
            "{}: too-small: packets of {mtu} bytes are lost, smaller ones arrive: the path must let UDP datagrams of {} \
             bytes pass",
            peer.node,
            mtu + wireguard::OVERHEAD
        )
    });
    lines(text, too_small, most)?;
    let blocked = status.peers.iter().filter(|peer| peer.pq.blocked).map(|peer| {
        let why = peer.pq.reason();
        format!("{}: pod traffic blocked: a preshared key is required, and {why}", peer.node)
    });
    lines(text, blocked, most)?;
    let stripped = status.peers.iter().filter_map(|peer| {
        let seconds = peer.pq.stripped_seconds?;
        Some(format!(
            "{}: pods' packets have passed without a preshared key for {seconds} s, although both nodes want one: check \
             that both UDP ports are open",
            peer.node
        ))
    });
    lines(text, stripped, most)?;
    let rejected = status.rejected.iter().map(|rejected| {
        let effect = if rejected.stays { "rejected in part" } else { "rejected" };
        format!("{} {effect}: {} [{}]", rejected.node, rejected.reason, rejected.code)
    });
    lines(text, rejected, most)?;
    for found in &status.findings {
        writeln!(text, "\nhost      {} [{}]\n          fix: {}", found.sentence, found.code, found.fix)?;
    }
    if !status.cni_limited_by.is_empty() {
        writeln!(
            text,
            "\nCNI 1.1.0 is not offered, so the runtime calls neither GC nor STATUS: {} supports 1.0.0 at most: update it",
            status.cni_limited_by.join(", ")
        )?;
    }
    for protection in &status.missing_protections {
        writeln!(text, "\n{protection}")?;
    }
    for file in &status.damaged_files {
        writeln!(text, "\ndamaged file: {file}")?;
    }
    lines(text, status.failures.iter().map(|failure| format!("failed, will retry: {failure}")), most)?;
    let unresolved = status.names.iter().filter_map(|NameStatus { name, addresses, trouble }| {
        let used: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let used = if used.is_empty() { "none".to_owned() } else { used.join(" ") };
        let trouble = trouble.as_ref()?;
        Some(format!("name {name} can't be resolved, last known addresses: {used}; {trouble}"))
    });
    lines(text, unresolved, most)
}

/// This node as a relay, and its leases at others.
fn relays(text: &mut String, status: &Status, most: usize) -> std::fmt::Result {
    if let Some(relay) = &status.relay {
        let (leases, waiting) = (relay.leases, relay.waiting);
        let dropped: u64 = relay.dropped.values().sum();
        writeln!(
            text,
            "\nrelay for other nodes: {leases} leases, {waiting} wait for the other end; forwarded {} in {} datagrams, \
             dropped {dropped}",
            bytes(relay.bytes),
            relay.datagrams,
        )?;
        for (port, error) in &relay.closed_ports {
            writeln!(text, "\nrelay: port {port} can't be opened: {error}")?;
        }
    }
    let leases = status.leases.iter().filter_map(|lease| {
        let (node, slot) = (&lease.node, lease.slot);
        if let (Some(relay), Some(port)) = (&lease.relay, lease.port) {
            Some(format!("{node}, slot {slot}: port {port} of relay {relay}"))
        } else {
            Some(format!("{node}, slot {slot}: {}", lease.trouble.as_ref()?))
        }
    });
    lines(text, leases, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RejectedStatus;

    #[test]
    fn the_table_of_a_large_mesh_is_short_unless_all_is_wanted() {
        let name = |number: usize| format!("n{number}");
        let mut status = Status { pending: (0..3000).map(name).collect(), ..Status::default() };
        status.summary.reach.up = 5000;
        let rejected = |number| RejectedStatus {
            node: name(number),
            code: "address".to_owned(),
            reason: "listed by another Node".to_owned(),
            stays: true,
        };
        status.rejected = (0..5000).map(rejected).collect();
        let short = render(&status, false);
        assert!(short.lines().count() < 50, "{short}");
        for part in [
            "peers     5000 of 5000 reached (5000 up, 0 idle, 0 down)\n",
            "no peer has a problem; 5000 more: meshd status --all\n",
            "n8, n9 and 2990 more\n",
            "n9 rejected in part: listed by another Node [address]\n",
            "and 4990 more: meshd status --all\n",
        ] {
            assert!(short.contains(part), "{part:?} in\n{short}");
        }
        let whole = render(&status, true);
        assert!(whole.contains("n4999 rejected in part") && whole.contains("n2999\n"), "{whole}");
    }

    #[test]
    fn byte_counts_have_at_most_three_digits_before_the_point() {
        for (count, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "0.9 KiB"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
