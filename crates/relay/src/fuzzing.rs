//! Body of the fuzz target for datagrams at leased ports, so that its corpus also runs as an ordinary test.

use std::net::SocketAddr;
use std::time::Duration;

use keyring::Slot;
use keyring::rotation::PeerId;

use crate::table::{Limits, Relay};

/// Sends what `bytes` describes to the ports of a lease whose ends the relay sees.
///
/// The bytes are records of `[kind, length low, length high, content...]`. By kind, the content arrives at the port of one
/// end or the other, from where that end is or from one of three other places, and time passes.
///
/// # Panics
///
/// If a datagram goes to a place from which none was sent, or out of another port than that of the other end: that is what
/// a fuzzer looks for.
pub fn leased_port(bytes: &[u8]) {
    let limits = Limits { ports: 24_000..=24_003, bytes_per_second: 1 << 20, pair_bytes_per_second: 1 << 20 };
    let mut relay = Relay::new(Duration::ZERO, limits);
    let names = [PeerId::new("u1"), PeerId::new("u2")];
    let place = |number: u8| SocketAddr::from(([192, 0, 2, number], 51_840));
    let mut ports = [0; 2];
    for end in 0..2_usize {
        let at = place(u8::from(end == 1));
        if let Ok(grant) = relay.ask(Duration::ZERO, &names[end], &names[1 - end], Slot::A, Some(at)) {
            ports[end] = grant.port;
        }
    }
    let (mut rest, mut now) = (bytes, Duration::ZERO);
    while let [kind, low, high, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (content, after) = tail.split_at(len);
        rest = after;
        now += Duration::from_millis(u64::from(kind >> 4));
        let end = usize::from(kind & 1);
        let from = match kind >> 1 & 3 {
            0 => place(*kind & 1),
            other => place(1 + other),
        };
        if let Ok(forward) = relay.handle(now, ports[end], from, content) {
            assert_eq!(forward.from_port, ports[1 - end]);
            assert!((0..5).any(|number| place(number) == forward.to), "{forward:?}");
        }
    }
    let saved = relay.saved();
    relay.restore(now, saved.clone());
    assert_eq!(relay.saved(), saved, "what is leased is not leased again");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_leased_port_corpus_passes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/leased_port");
        let mut count = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            super::leased_port(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 4, "only {count} files in the corpus");
    }
}
