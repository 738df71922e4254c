//! Body of the fuzz target for the control channel: two ends of a session, and a network that belongs to an attacker.

use std::collections::BTreeSet;
use std::time::Duration;

use keyring::{ChannelKeys, KeyError, PrivateKey, Slot};

use super::message::{MAX_PROBE_LEN, Message};
use super::session::{Opened, Session};

/// Bytes at the beginning of a datagram that say what it is and for which session.
const ADDRESSED: usize = 10;

struct End {
    session: Session,
    keys: ChannelKeys,
    /// What was opened: nothing may be opened twice.
    opened: BTreeSet<Vec<u8>>,
}

struct World {
    ends: [End; 2],
    now: Duration,
    random: u64,
    /// Datagrams under way, with the end that they are for.
    flying: Vec<(usize, Vec<u8>)>,
    /// All that an end has sent.
    sent: Vec<(usize, Vec<u8>)>,
}

/// Plays what `bytes` describes.
///
/// The bytes are records of `[kind, length low, length high, content...]`. By kind, an end sends the content, as a message if
/// it is one; a datagram under way arrives, is lost or damaged; one that was sent arrives again; the content arrives as it is,
/// or with a valid MAC, as from a peer that does not keep to the protocol.
///
/// # Panics
///
/// If a datagram without a valid MAC is opened or answered, one is opened twice, or a message that was read is not written
/// and read again the same: that is what a fuzzer looks for.
pub fn channel(bytes: &[u8]) {
    let Ok(mut world) = World::new() else { return };
    let mut rest = bytes;
    while let [kind, low, high, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (content, after) = tail.split_at(len);
        rest = after;
        world.play(*kind, content);
    }
}

impl World {
    fn new() -> Result<Self, KeyError> {
        let [one, two] = [[1; 32], [2; 32]].map(|bytes| PrivateKey::from_bytes(&bytes));
        let (one, two) = (one?, two?);
        let mut random = 1;
        let mut end = |own: &PrivateKey, peer: &PrivateKey| {
            Ok::<_, KeyError>(End {
                session: Session::new(&mut || Some(next(&mut random))).ok_or(KeyError::Zero)?,
                keys: ChannelKeys::derive(own, &peer.public(), Slot::A)?,
                opened: BTreeSet::new(),
            })
        };
        let ends = [end(&one, &two)?, end(&two, &one)?];
        Ok(Self { ends, now: Duration::ZERO, random, flying: Vec::new(), sent: Vec::new() })
    }

    fn play(&mut self, kind: u8, content: &[u8]) {
        self.now += Duration::from_millis(u64::from(kind >> 4) * 100);
        let end = usize::from(kind & 1);
        match kind >> 1 & 7 {
            0 => self.send(end, content),
            1 => self.deliver(|_| {}),
            2 => drop(self.flying.pop()),
            3 => self.deliver(|datagram| {
                for (byte, change) in datagram.iter_mut().zip(content) {
                    *byte ^= change;
                }
            }),
            4 => {
                let at = content.first().map_or(0, |at| usize::from(*at));
                if let Some((to, datagram)) = self.sent.get(at).cloned() {
                    self.arrive(to, &datagram);
                }
            }
            5 => self.arrive(end, content),
            6 => {
                let datagram = self.forged(end, content);
                self.arrive(end, &datagram);
            }
            _ => {
                let random = &mut self.random;
                if let Some(session) = Session::new(&mut || Some(next(random))) {
                    self.ends[end].session = session;
                }
            }
        }
    }

    fn send(&mut self, from: usize, content: &[u8]) {
        if content.len() > MAX_PROBE_LEN {
            return;
        }
        if let Ok(message) = Message::decode(content, 0) {
            let again = message.encode(&[]);
            // A probe may state more than a datagram can have; then it is answered, but never sent.
            if !matches!(message, Message::Probe { len, .. } if usize::from(len) > MAX_PROBE_LEN) {
                assert_eq!(Message::decode(&again, 0), Ok(message));
            }
        }
        let (now, random) = (self.now, &mut self.random);
        let End { session, keys, .. } = &mut self.ends[from];
        let datagrams = session.seal(now, keys, content, &mut || Some(next(random)));
        self.fly(from, datagrams);
    }

    fn fly(&mut self, from: usize, datagrams: Vec<Vec<u8>>) {
        for datagram in datagrams {
            self.sent.push((1 - from, datagram.clone()));
            self.flying.push((1 - from, datagram));
        }
    }

    fn deliver(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let Some((to, mut datagram)) = self.flying.pop() else { return };
        change(&mut datagram);
        self.arrive(to, &datagram);
    }

    /// The content under a valid MAC, for the session that the last datagram to that end was for.
    fn forged(&self, to: usize, content: &[u8]) -> Vec<u8> {
        let mut datagram = content.to_vec();
        let last = self.sent.iter().rev().find(|(of, _)| *of == to);
        if let Some((_, last)) = last
            && let (Some(head), Some(addressed)) = (datagram.get_mut(..ADDRESSED), last.get(..ADDRESSED))
        {
            head.copy_from_slice(addressed);
        }
        let mac = self.ends[1 - to].keys.send.mac(&[&datagram]);
        datagram.extend(mac);
        datagram
    }

    fn arrive(&mut self, to: usize, datagram: &[u8]) {
        let (now, random) = (self.now, &mut self.random);
        let End { session, keys, opened } = &mut self.ends[to];
        let valid =
            datagram.split_last_chunk().is_some_and(|(signed, mac)| keys.receive.verify(&[signed], mac));
        let Opened { body, reply } = session.open(now, keys, datagram, &mut || Some(next(random)));
        assert!(valid || (body.is_err() && reply.is_empty()), "not authentic, and opened or answered");
        // An answer and a question, or what waited for the answer.
        assert!(reply.len() <= 4, "{} datagrams in answer to one", reply.len());
        if let Ok(Some(body)) = body {
            assert!(opened.insert(datagram.to_vec()), "opened twice");
            if let Ok(message) = Message::decode(body, 0)
                && !matches!(message, Message::Probe { len, .. } if usize::from(len) > MAX_PROBE_LEN)
            {
                assert_eq!(Message::decode(&message.encode(&[]), 0), Ok(message));
            }
        }
        self.fly(to, reply);
    }
}

/// Numbers that never repeat, as random ones of 64 bits do in practice.
const fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    *state
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_channel_corpus_passes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/channel");
        let mut count = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            channel(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 10, "only {count} files in the corpus");
    }
}
