//! The network between the two ends: datagrams in flight, and their loss, duplication, replay and forgery.

use std::time::Duration;

use keyring::Slot;
use keyring::pq::{Input, Message, Refusal};

use super::World;

#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) to: usize,
    pub(super) over: Slot,
    /// None for a pod's packet.
    pub(super) message: Option<Vec<u8>>,
    pub(super) sent: Duration,
    /// The peer entries of both ends that it was encrypted between.
    pub(super) sealed: [u32; 2],
}

/// A message without its long members.
pub(super) fn short(message: &Message) -> String {
    format!("{message:?}").chars().take(190).collect()
}

impl World {
    pub(super) fn send(&mut self, end: usize, over: Slot, message: Option<Vec<u8>>) {
        let sealed = self.session(over);
        match sealed {
            Some(sealed) => self.queue.push(Datagram { to: 1 - end, over, message, sent: self.now, sealed }),
            None if message.is_none() => {
                self.log(format_args!("a packet of {end} over {over} finds no session"));
                self.lose_packet();
            }
            None => {}
        }
    }

    /// The session of a slot; a handshake creates it where both ends have the same keys.
    pub(super) fn session(&mut self, slot: Slot) -> Option<[u32; 2]> {
        if !self.usable(slot) {
            return None;
        }
        let mut sealed = [0; 2];
        for (end, sealed) in self.ends.iter_mut().zip(&mut sealed) {
            let entry = end.life.as_mut()?.engine.get_mut(slot);
            entry.handshake = true;
            *sealed = entry.life;
        }
        Some(sealed)
    }

    fn lose_packet(&mut self) {
        if !self.excused {
            self.lost += 1;
        }
    }

    pub(super) fn deliver(&mut self, at: u8, again: bool) {
        if self.queue.is_empty() {
            return;
        }
        let at = usize::from(at) % self.queue.len();
        let datagram = if again && self.queue[at].message.is_some() {
            self.queue[at].clone()
        } else {
            self.queue.remove(at)
        };
        self.arrive(datagram);
    }

    pub(super) fn arrive(&mut self, datagram: Datagram) {
        let Datagram { to, over, message, sealed, .. } = datagram;
        let opens = self.ends[to].life.as_ref().is_some_and(|life| life.engine.get(over).life == sealed[to]);
        match message {
            _ if *self.blocked.get(over) => {}
            Some(bytes) if opens => {
                let message = Message::decode(&bytes).unwrap();
                self.log(format_args!("{to} receives on {over}: {}", short(&message)));
                self.handle(to, Input::Received { over, message });
            }
            Some(_) => {}
            None if opens => self.passed += 1,
            None => {
                self.log(format_args!("a packet to {to} over {over} does not open"));
                self.lose_packet();
            }
        }
    }

    /// The network loses messages, but not pods' packets: lost packets are what is counted.
    pub(super) fn lose(&mut self, at: u8) {
        if !self.queue.is_empty() {
            let at = usize::from(at) % self.queue.len();
            if self.queue[at].message.is_some() {
                self.queue.remove(at);
            }
        }
    }

    pub(super) fn replay(&mut self, at: u8) {
        if self.history.is_empty() {
            return;
        }
        let (to, over, bytes) = self.history[usize::from(at) * 7919 % self.history.len()].clone();
        if let Some(sealed) = self.session(over) {
            self.queue.push(Datagram { to, over, message: Some(bytes), sent: self.now, sealed });
        }
    }

    /// The initiator's last offer is refused as outdated.
    pub(super) fn outdate(&mut self, epoch: u64) {
        let offers = self.history.iter().rev().filter_map(|(to, _, bytes)| match Message::decode(bytes) {
            Ok(Message::Offer(offer)) => Some((1 - *to, offer)),
            _ => None,
        });
        if let Some((from, offer)) = offers.take(1).next() {
            let why = Refusal::Stale { epoch };
            let refusal = Message::Refuse { slot: offer.slot, epoch: offer.epoch, why };
            self.forge(from, offer.slot.other(), refusal);
        }
    }

    /// A recorded message arrives with an epoch of somebody's choice.
    pub(super) fn renumber(&mut self, at: u8, new: u64) {
        if self.history.is_empty() {
            return;
        }
        let (to, over, bytes) = self.history[usize::from(at) * 7919 % self.history.len()].clone();
        let mut message = Message::decode(&bytes).unwrap();
        match &mut message {
            Message::Hello(_) => return,
            Message::Offer(offer) => offer.epoch = new,
            Message::Accept(accept) => accept.epoch = new,
            Message::Confirm { epoch, .. }
            | Message::Refuse { epoch, .. }
            | Message::Cancel { epoch, .. } => {
                *epoch = new;
            }
        }
        self.forge(to, over, message);
    }

    /// Something that an end sent arrives at the other.
    pub(crate) fn forge(&mut self, to: usize, over: Slot, message: Message) {
        self.handle(to, Input::Received { over, message });
    }

    /// Takes the first message that `wanted` accepts out of the queue.
    pub(crate) fn intercept(&mut self, wanted: impl Fn(&Message) -> bool) -> Option<Message> {
        let message = |datagram: &Datagram| Message::decode(datagram.message.as_ref()?).ok();
        let at =
            self.queue.iter().position(|datagram| message(datagram).is_some_and(|found| wanted(&found)))?;
        message(&self.queue.remove(at))
    }
}
