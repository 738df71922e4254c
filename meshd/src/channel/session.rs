//! Authenticates the messages of one peer on one slot, and refuses those that were accepted before. Pure: time
//! and randomness are arguments.
//!
//! ```text
//!  message   2 | 0 | receiver 8 | sender 8 | counter 8 | body | MAC 16
//!  hello     2 | 1 | nonce 8    | receiver 8                  | MAC 16    "what is your receiver number?"
//!  welcome   2 | 2 | nonce 8    | receiver 8                  | MAC 16    "this"; repeats the nonce
//! ```
//!
//! Each end chooses two numbers at random whenever it starts. A message names the *receiver* number of the end
//! that it is for, so none from before that end's start is accepted. It also names a *sender* number and a
//! counter, which the receiver accepts once, and not long after a higher one. The receiver never forgets a sender
//! number as long as it has the same receiver number: once it knows [`MAX_SENDERS`] of them it chooses a new
//! receiver number instead.
//!
//! A node learns the peer's receiver number from a welcome that repeats the nonce of its own last hello, so a
//! recorded welcome teaches it nothing; a hello changes nothing at the end that answers it. Both may therefore be
//! replayed. A hello also tells the sender's own receiver number: if that is not the known one, the peer may have
//! restarted, and is asked in turn. The known one stays in use until the answer arrives.
//!
//! The keys belong to the pair of static keys of the slot and are those of the present: the numbers outlive a
//! rotation, the keys do not.

use std::collections::VecDeque;
use std::time::Duration;

use keyring::{ChannelKeys, ChannelMac, MAC_LEN};

use super::window::Window;

/// The version of these datagrams.
pub(super) const VERSION: u8 = 2;
/// Bytes that a message gets in addition to its body.
pub(super) const OVERHEAD: usize = HEADER_LEN + MAC_LEN;
const HEADER_LEN: usize = 2 + 3 * 8;
const HELLO_LEN: usize = 2 + 2 * 8 + MAC_LEN;

const MESSAGE: u8 = 0;
const HELLO: u8 = 1;
const WELCOME: u8 = 2;

/// Shortest interval between two hellos; doubles up to [`MAX_HELLO_INTERVAL`] while there is no answer.
const HELLO_INTERVAL: Duration = Duration::from_millis(200);
/// Longest interval between two hellos: shorter than that of most messages that cause them.
const MAX_HELLO_INTERVAL: Duration = Duration::from_secs(2);
/// Sender numbers that are remembered: an honest peer has one each time it starts.
const MAX_SENDERS: usize = 16;
/// Nonces of hellos that are remembered, so that a replayed one is not answered over and over.
const MAX_NONCES: usize = 16;
/// Messages that wait for a welcome: a question of the rotation, a probe, a hello of the preshared keys.
const MAX_WAITING: usize = 4;
/// Longest message that waits. Longer ones are repeated by the sender, and follow an exchange of short ones.
const MAX_WAITING_LEN: usize = 64;
/// How long a message waits: its sender repeats it by then.
const WAITING_TIME: Duration = Duration::from_secs(1);

/// A source of unpredictable numbers; none if it fails.
pub(super) type Random<'a> = &'a mut dyn FnMut() -> Option<u64>;

/// Why a datagram is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refused {
    /// No member of the mesh has its source address.
    Sender,
    /// It is too short, too long, or of an unknown kind.
    Malformed,
    /// It is not authenticated, and the sender's messages have to be.
    Unauthenticated,
    /// Its MAC is wrong.
    Mac,
    /// It is addressed to an earlier session: the sender has not learnt of a restart yet, or it is replayed.
    Stale,
    /// It was received before, or is late.
    Replay,
    /// The sender sends more than it may.
    Rate,
    /// The daemon has not taken the messages before it yet.
    Queue,
}

impl Refused {
    /// All of them, in the order of their declaration.
    pub(crate) const ALL: [Self; 8] = [
        Self::Sender,
        Self::Malformed,
        Self::Unauthenticated,
        Self::Mac,
        Self::Stale,
        Self::Replay,
        Self::Rate,
        Self::Queue,
    ];

    /// The word in metrics and status.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Sender => "unknown_sender",
            Self::Malformed => "malformed",
            Self::Unauthenticated => "unauthenticated",
            Self::Mac => "mac",
            Self::Stale => "stale",
            Self::Replay => "replay",
            Self::Rate => "rate",
            Self::Queue => "queue",
        }
    }
}

/// What a datagram is, and what to send because of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened<'a> {
    /// The body of an authentic message that was not received before; none if the datagram only serves the session.
    pub(super) body: Result<Option<&'a [u8]>, Refused>,
    /// Datagrams to send to the peer, in this order.
    pub(super) reply: Vec<Vec<u8>>,
}

/// The session with one peer on one slot.
#[derive(Debug)]
pub(super) struct Session {
    /// The number that the peer's messages must name.
    receiver: u64,
    /// The peer's sender numbers, with what was received from each.
    senders: Vec<(u64, Window)>,
    /// The number that this node's messages name.
    sender: u64,
    /// Counter of the last message sent.
    counter: u64,
    /// The peer's receiver number; none before the first welcome.
    peer: Option<u64>,
    /// The nonce of the last hello, until it is answered.
    asked: Option<u64>,
    /// When the next hello may be sent, and how long the one after it has to wait.
    next_hello: Duration,
    pause: Duration,
    /// Nonces of the peer's last hellos.
    nonces: VecDeque<u64>,
    waiting: VecDeque<(Duration, Vec<u8>)>,
    /// Messages that did not get a place among those that wait.
    unsent: u64,
}

impl Session {
    /// A session without any knowledge of the peer; none without randomness.
    pub(super) fn new(random: Random<'_>) -> Option<Self> {
        Some(Self {
            receiver: random()?,
            senders: Vec::new(),
            sender: random()?,
            counter: 0,
            peer: None,
            asked: None,
            next_hello: Duration::ZERO,
            pause: HELLO_INTERVAL,
            nonces: VecDeque::new(),
            waiting: VecDeque::new(),
            unsent: 0,
        })
    }

    /// The datagrams that send `body`. Before the peer has said its number that is a hello; a short body then waits for
    /// the answer.
    pub(super) fn seal(
        &mut self,
        now: Duration,
        keys: &ChannelKeys,
        body: &[u8],
        random: Random<'_>,
    ) -> Vec<Vec<u8>> {
        if let Some(peer) = self.peer {
            return vec![self.message(keys, peer, body)];
        }
        self.waiting.retain(|(since, _)| now < *since + WAITING_TIME);
        if body.len() > MAX_WAITING_LEN {
            self.unsent += 1;
        } else {
            self.unsent += u64::from(self.waiting.len() >= MAX_WAITING);
            self.waiting.truncate(MAX_WAITING - 1);
            self.waiting.push_front((now, body.to_vec()));
        }
        self.hello(now, keys, random).into_iter().collect()
    }

    /// How many messages did not get a place among those that wait for a welcome, since the last call.
    pub(super) fn take_unsent(&mut self) -> u64 {
        std::mem::take(&mut self.unsent)
    }

    /// Opens a datagram from the peer.
    pub(super) fn open<'a>(
        &mut self,
        now: Duration,
        keys: &ChannelKeys,
        datagram: &'a [u8],
        random: Random<'_>,
    ) -> Opened<'a> {
        let mut reply = Vec::new();
        let body = self.take(now, keys, datagram, random, &mut reply);
        Opened { body, reply }
    }

    fn take<'a>(
        &mut self,
        now: Duration,
        keys: &ChannelKeys,
        datagram: &'a [u8],
        random: Random<'_>,
        reply: &mut Vec<Vec<u8>>,
    ) -> Result<Option<&'a [u8]>, Refused> {
        let (signed, mac) = datagram.split_last_chunk::<MAC_LEN>().ok_or(Refused::Malformed)?;
        let kind = *signed.get(1).filter(|_| signed[0] == VERSION).ok_or(Refused::Malformed)?;
        let whole = match kind {
            MESSAGE => signed.len() >= HEADER_LEN,
            HELLO | WELCOME => datagram.len() == HELLO_LEN,
            _ => false,
        };
        if !whole {
            return Err(Refused::Malformed);
        }
        if !keys.receive.verify(&[signed], mac) {
            return Err(Refused::Mac);
        }
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&signed[2 + 8 * at..10 + 8 * at]);
            u64::from_be_bytes(bytes)
        };
        match kind {
            HELLO => self.on_hello(now, keys, (number(0), number(1)), random, reply).map(|()| None),
            WELCOME => self.on_welcome(now, keys, (number(0), number(1)), reply).map(|()| None),
            _ if number(0) != self.receiver => {
                // It was sent to an earlier session. A hello tells the peer so.
                reply.extend(self.hello(now, keys, random));
                Err(Refused::Stale)
            }
            _ => {
                self.admit(now, (number(1), number(2)), random)?;
                Ok(Some(&signed[HEADER_LEN..]))
            }
        }
    }

    /// Takes note of a message's number; refuses one that was taken before.
    fn admit(
        &mut self,
        now: Duration,
        (sender, counter): (u64, u64),
        random: Random<'_>,
    ) -> Result<(), Refused> {
        if let Some((_, window)) = self.senders.iter_mut().find(|(known, _)| *known == sender) {
            return if window.admit(now, counter) { Ok(()) } else { Err(Refused::Replay) };
        }
        let mut window = Window::default();
        if !window.admit(now, counter) {
            return Err(Refused::Replay);
        }
        if self.senders.len() >= MAX_SENDERS {
            // What was sent under the former number, this message included, is not accepted any more.
            self.receiver = random().ok_or(Refused::Replay)?;
            self.senders.clear();
            return Ok(());
        }
        self.senders.push((sender, window));
        Ok(())
    }

    fn on_hello(
        &mut self,
        now: Duration,
        keys: &ChannelKeys,
        (nonce, peer): (u64, u64),
        random: Random<'_>,
        reply: &mut Vec<Vec<u8>>,
    ) -> Result<(), Refused> {
        if self.nonces.contains(&nonce) {
            return Err(Refused::Replay);
        }
        self.nonces.truncate(MAX_NONCES - 1);
        self.nonces.push_front(nonce);
        reply.push(short(keys, WELCOME, nonce, self.receiver));
        if self.peer != Some(peer) {
            reply.extend(self.hello(now, keys, random));
        }
        Ok(())
    }

    fn on_welcome(
        &mut self,
        now: Duration,
        keys: &ChannelKeys,
        (nonce, peer): (u64, u64),
        reply: &mut Vec<Vec<u8>>,
    ) -> Result<(), Refused> {
        if self.asked != Some(nonce) {
            return Err(Refused::Stale);
        }
        self.asked = None;
        self.pause = HELLO_INTERVAL;
        self.peer = Some(peer);
        // The oldest first.
        while let Some((since, body)) = self.waiting.pop_back() {
            if now < since + WAITING_TIME {
                reply.push(self.message(keys, peer, &body));
            }
        }
        Ok(())
    }

    /// A hello, unless one was sent a short time ago.
    fn hello(&mut self, now: Duration, keys: &ChannelKeys, random: Random<'_>) -> Option<Vec<u8>> {
        if now < self.next_hello {
            return None;
        }
        let nonce = random()?;
        self.next_hello = now + self.pause;
        self.pause = if self.asked.is_some() { (self.pause * 2).min(MAX_HELLO_INTERVAL) } else { self.pause };
        self.asked = Some(nonce);
        Some(short(keys, HELLO, nonce, self.receiver))
    }

    fn message(&mut self, keys: &ChannelKeys, peer: u64, body: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let mut out = Vec::with_capacity(body.len() + OVERHEAD);
        out.extend([VERSION, MESSAGE]);
        for number in [peer, self.sender, self.counter] {
            out.extend(number.to_be_bytes());
        }
        out.extend(body);
        sealed(keys, out)
    }
}

fn short(keys: &ChannelKeys, kind: u8, nonce: u64, receiver: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HELLO_LEN);
    out.extend([VERSION, kind]);
    out.extend(nonce.to_be_bytes());
    out.extend(receiver.to_be_bytes());
    sealed(keys, out)
}

fn sealed(keys: &ChannelKeys, mut out: Vec<u8>) -> Vec<u8> {
    let mac: ChannelMac = keys.send.mac(&[&out]);
    out.extend(mac);
    out
}

#[cfg(test)]
pub(super) mod tests;
