//! The control channel of a node that another program plays, for measurements of a mesh with many nodes: a real session with
//! real MACs, and the answers that a daemon gives at once.

use std::net::{IpAddr, SocketAddr};

use keyring::rotation::PeerId;
use keyring::{PerSlot, PrivateKey, PublicKey, Slot, pq};

use super::message::Message;
use super::peers::{Correspondent, Peers, Taken};

/// The end of a played node, with one peer: the daemon that is measured.
#[derive(Debug)]
pub struct PlayedEnd {
    peers: Peers,
    daemon: PeerId,
    /// The daemon's mesh address.
    address: IpAddr,
}

/// What the played node says about itself in its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand {
    /// The daemon's generation that the played node has applied.
    pub seen: u64,
    /// The slot on which it sends to the daemon.
    pub tx: Slot,
}

/// What arrived, as far as the played node has to act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Part of the session, refused, or of no concern to a node that is played.
    Nothing,
    /// A question or probe, which the returned datagrams answer.
    Answered,
    /// The daemon has answered the probe with this number.
    Echo(u64),
    /// A message of the preshared key exchange.
    Preshared(pq::Message),
}

impl PlayedEnd {
    /// No keys yet. `daemon` is the UID of the daemon's Node.
    pub fn new(daemon: PeerId, address: IpAddr) -> Self {
        Self { peers: Peers::new(), daemon, address }
    }

    /// Sets the keys of both ends.
    pub fn set_keys(&self, own: &PerSlot<PrivateKey>, daemon: PerSlot<PublicKey>) {
        let public = PerSlot::from_fn(|slot| own.get(slot).public());
        let private = |key: &PublicKey| {
            let slot = Slot::ALL.into_iter().find(|slot| public.get(*slot) == key)?;
            Some(own.get(slot))
        };
        let known = Correspondent { id: self.daemon.clone(), keys: daemon, unauthenticated: false };
        self.peers.set(private, &public, [(self.address, known)].into());
    }

    /// Takes a datagram of the daemon; returns what it was and the datagrams to send in turn.
    pub fn receive(&self, over: Slot, datagram: &[u8], stand: Stand) -> (Heard, Vec<Vec<u8>>) {
        let (taken, mut out) = self.peers.open(over, self.address, datagram);
        let Taken::Message(_, message) = taken else { return (Heard::Nothing, out) };
        let answer = match message {
            Message::Ask { nonce } => Message::Answer { nonce, seen: stand.seen, tx: stand.tx },
            Message::Probe { nonce, .. } => Message::Echo { nonce },
            Message::Echo { nonce } => return (Heard::Echo(nonce), out),
            Message::Pair(bytes) => {
                let heard = pq::Message::decode(&bytes).map_or(Heard::Nothing, Heard::Preshared);
                return (heard, out);
            }
            _ => return (Heard::Nothing, out),
        };
        out.extend(self.peers.seal(over, self.address, &answer));
        (Heard::Answered, out)
    }

    /// The datagrams that send a message of the preshared key exchange.
    pub fn preshared(&self, over: Slot, message: &pq::Message) -> Vec<Vec<u8>> {
        self.peers.seal(over, self.address, &Message::Pair(message.encode()))
    }

    /// The datagrams that ask for an echo; `len` is the length of the datagram in bytes, at least what it needs.
    pub fn probe(&self, over: Slot, nonce: u64, len: u16) -> Vec<Vec<u8>> {
        self.peers.seal(over, self.address, &Message::Probe { nonce, len })
    }

    /// The datagrams that tell the daemon where its own come from.
    pub fn seen(&self, over: Slot, endpoint: SocketAddr) -> Vec<Vec<u8>> {
        self.peers.seal(over, self.address, &Message::Seen(endpoint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes(&[byte; 32]).unwrap()
    }

    /// An end at mesh address 10.244.`number`.1 whose peer is the other of the two.
    fn end(number: u8) -> PlayedEnd {
        let other = 3 - number;
        let end = PlayedEnd::new(PeerId::new(format!("u{other}")), IpAddr::from([10, 244, other, 1]));
        let own = PerSlot { a: private(number), b: private(10 + number) };
        end.set_keys(&own, PerSlot { a: private(other).public(), b: private(10 + other).public() });
        end
    }

    #[test]
    fn a_probe_is_answered_over_a_session_that_both_ends_open() {
        let (one, two) = (end(1), end(2));
        let stand = Stand { seen: 1, tx: Slot::A };
        let mut flying: Vec<_> = one.probe(Slot::B, 7, 0).into_iter().map(|bytes| (2, bytes)).collect();
        let mut heard = Vec::new();
        while let Some((to, bytes)) = flying.pop() {
            let (what, out) = if to == 1 { &one } else { &two }.receive(Slot::B, &bytes, stand);
            heard.push(what);
            flying.extend(out.into_iter().map(|bytes| (3 - to, bytes)));
        }
        assert!(heard.contains(&Heard::Answered) && heard.contains(&Heard::Echo(7)), "{heard:?}");
        let other_slot = two.probe(Slot::A, 8, 0);
        assert_eq!(one.receive(Slot::B, &other_slot[0], stand), (Heard::Nothing, vec![]));
    }
}
