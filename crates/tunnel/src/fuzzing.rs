//! Bodies of the fuzz targets, so that their corpora also run as an ordinary test.

use std::convert::Infallible;
use std::net::SocketAddr;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use keyring::PrivateKey;

use crate::batch::{Datagrams, Packets};
use crate::engine::{ClockReading, Engine, EngineOptions};
use crate::offload::{Coalescer, VNET_HEADER, VnetHeader, split};
use wireguard::{PeerChange, PeerOp};

/// Reads `bytes` as a configuration request.
pub fn uapi(bytes: &[u8]) {
    crate::uapi::check(bytes);
}

/// Splits a packet as the header in front of it says, puts the parts together again, and splits those: whatever the
/// first split makes must come out of the second, flow by flow.
pub fn offload(bytes: &[u8]) {
    let Some((header, packet)) = bytes.split_first_chunk::<VNET_HEADER>() else { return };
    let Some(header) = VnetHeader::parse(*header) else { return };
    let mut parts = Packets::new();
    // As much as the TUN ever hands over.
    if split(header, &packet[..packet.len().min(65_535)], &mut parts).is_err() {
        return;
    }
    let before: usize = parts.iter().map(<[u8]>::len).sum();
    let mut again = Packets::new();
    let written: Result<(), Infallible> =
        Coalescer::default().write(&mut parts.view(), true, |header, parts| {
            let whole: Vec<u8> = parts.flatten().copied().collect();
            assert!(split(header, &whole, &mut again).is_ok(), "we refuse what we wrote");
            Ok(())
        });
    assert_eq!(written, Ok(()));
    assert_eq!(again.iter().map(<[u8]>::len).sum::<usize>(), before, "every byte is still there");
}

/// Delivers what `bytes` describes to an engine that has a session with one peer.
///
/// The bytes are records of `[kind, length low, length high, content...]`. By kind, the content is a datagram as
/// it is, a mutation of a genuine one (`[offset low, offset high, flip]...`), what the peer puts into the tunnel,
/// or a packet from the TUN. What comes out must be a packet from the peer's own prefix, and honest traffic has
/// to pass at the end.
pub fn datagram(bytes: &[u8]) {
    let mut bench = Bench::new();
    let mut rest = bytes;
    while let [kind, low, high, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (content, after) = tail.split_at(len);
        rest = after;
        match kind % 5 {
            0 => bench.open(content),
            1 => {
                let genuine = bench.initiation();
                bench.handshake(&mutated(genuine, content));
            }
            2 => {
                let genuine = bench.sealed(&PACKET);
                bench.open(&mutated(genuine, content));
            }
            3 => {
                let datagram = bench.sealed(content);
                bench.open(&datagram);
            }
            _ => bench.seal(content),
        }
    }
    bench.honest_traffic_passes();
}

/// An IPv4 header without payload from 10.66.0.1, which is the peer's, to 10.0.0.1.
const PACKET: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0, 10, 66, 0, 1, 10, 0, 0, 1];

struct Bench {
    engine: Engine,
    peer: Tunn,
    address: SocketAddr,
    delivered: usize,
}

impl Bench {
    fn new() -> Self {
        let [ours, theirs] = [[1; 32], [2; 32]].map(|bytes| PrivateKey::from_bytes(&bytes));
        let (Ok(ours), Ok(theirs)) = (ours, theirs) else { unreachable!("neither is all zeros") };
        let engine = Engine::new(EngineOptions::default());
        let secret = x25519::StaticSecret::from(*theirs.expose());
        let own = x25519::PublicKey::from(*ours.public().as_bytes());
        let peer = Tunn::new(secret, own, None, None, 77, None);
        let settings = PeerChange {
            allow: ["10.66.0.0/16"].iter().flat_map(|text| text.parse()).collect(),
            ..Default::default()
        };
        engine.set_private_key(Some(ours));
        let added = engine.apply(vec![PeerOp::add(theirs.public(), settings)]);
        assert_eq!(added, Ok(()));
        let mut bench = Self { engine, peer, address: SocketAddr::from(([192, 0, 2, 1], 1)), delivered: 0 };
        bench.connect();
        bench
    }

    fn connect(&mut self) {
        let initiation = self.initiation();
        self.handshake(&initiation);
    }

    /// Hands over an initiation and lets the peer go on with what is answered: a peer that begins again and again
    /// without ever going on makes boringtun forget the session in use with the eighth.
    fn handshake(&mut self, initiation: &[u8]) {
        let (mut packets, mut replies) = (Packets::new(), Datagrams::new());
        self.engine.open(ClockReading::now(), [(self.address, initiation)], &mut packets, &mut replies);
        let answers: Vec<Vec<u8>> = replies.iter().map(|(_, bytes)| bytes.to_vec()).collect();
        for answer in answers {
            let confirmation = written(&self.peer.decapsulate(None, &answer, &mut [0; 256]));
            self.open(&confirmation);
        }
    }

    fn initiation(&mut self) -> Vec<u8> {
        written(&self.peer.format_handshake_initiation(&mut [0; 256], true))
    }

    fn sealed(&mut self, inner: &[u8]) -> Vec<u8> {
        written(&self.peer.encapsulate(inner, &mut vec![0; inner.len() + 256]))
    }

    fn open(&mut self, datagram: &[u8]) {
        let (mut packets, mut replies) = (Packets::new(), Datagrams::new());
        self.engine.open(ClockReading::now(), [(self.address, datagram)], &mut packets, &mut replies);
        for packet in packets.iter() {
            assert_eq!(packet[0] >> 4, 4, "the peer has no IPv6 prefix");
            assert_eq!(packet[12..14], [10, 66], "the peer's prefix");
            assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
        }
        self.delivered += packets.len();
    }

    fn seal(&self, packet: &[u8]) {
        let (mut packets, mut out) = (Packets::new(), Datagrams::new());
        packets.push(packet);
        self.engine.seal(ClockReading::now(), &mut packets, &mut out);
        assert!(out.len() <= 1, "one packet is one datagram");
    }

    fn honest_traffic_passes(&mut self) {
        let before = self.delivered;
        let datagram = self.sealed(&PACKET);
        self.open(&datagram);
        assert_eq!(self.delivered, before + 1);
    }
}

fn written(result: &TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
        _ => Vec::new(),
    }
}

fn mutated(mut genuine: Vec<u8>, flips: &[u8]) -> Vec<u8> {
    for flip in flips.as_chunks::<3>().0 {
        let at = usize::from(u16::from_le_bytes([flip[0], flip[1]]));
        match genuine.get_mut(at) {
            Some(byte) => *byte ^= flip[2],
            // Beyond the end: cut instead.
            None => genuine.truncate(at % (genuine.len() + 1)),
        }
    }
    genuine
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn corpus(target: &str, body: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut files = 0;
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            body(&std::fs::read(entry.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 5, "{} holds {files} files", dir.display());
    }

    #[test]
    fn the_datagram_corpus_passes() {
        corpus("datagram", super::datagram);
    }

    #[test]
    fn the_offload_corpus_passes() {
        corpus("offload", super::offload);
    }

    #[test]
    fn the_uapi_corpus_passes() {
        corpus("uapi", super::uapi);
    }

    proptest::proptest! {
        #[test]
        fn any_records_pass(
            records in proptest::collection::vec((0u8..5, proptest::collection::vec(proptest::num::u8::ANY, 0..120)), 0..12),
        ) {
            let mut bytes = Vec::new();
            for (kind, content) in records {
                bytes.push(kind);
                bytes.extend(u16::try_from(content.len()).unwrap().to_le_bytes());
                bytes.extend(content);
            }
            super::datagram(&bytes);
        }
    }
}
