//! An exchange with the kernel: send, and read up to the last answer.

use zeroize::Zeroize as _;

use crate::error::NetlinkError;
use crate::frame::{Message, MessageKind};

/// How often a dump that changed while it was read (`NLM_F_DUMP_INTR`) is read in all. What was read last then counts.
pub const DUMP_ATTEMPTS: u32 = 5;
/// Largest datagram that is read; the kernel fills at most 32 KiB (`netlink_dump` in `net/netlink/af_netlink.c`).
const MAX_DATAGRAM: usize = 1 << 16;

/// What an exchange needs of a socket; tests answer in the kernel's place.
pub(crate) trait Transport {
    /// Sends one datagram, of whatever length.
    fn send(&mut self, datagram: &[u8]) -> Result<(), NetlinkError>;
    /// Receives one datagram into the buffer and returns its length, which is greater than the buffer's if its end was
    /// cut off.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, NetlinkError>;
}

/// Bytes that are wiped when they are dropped, if they may be secret.
pub(crate) struct Buffer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) secret: bool,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.secret {
            self.bytes.zeroize();
        }
    }
}

pub(crate) struct Exchange<T> {
    transport: T,
    sequence: u32,
    received: Buffer,
}

impl<T: Transport> Exchange<T> {
    /// With `secret` everything received is wiped.
    pub(crate) fn new(transport: T, secret: bool) -> Self {
        let received = Buffer { bytes: vec![0; MAX_DATAGRAM], secret };
        Self { transport, sequence: 0, received }
    }

    /// Sequence number of the next request, which is followed by `more` requests in the same datagram.
    pub(crate) const fn next_sequence(&mut self, more: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = first.wrapping_add(more);
        first
    }

    /// Sends the request numbered `sequence` and hands each message of the answer to `take`. Returns whether nothing
    /// changed meanwhile. If `take` fails the answer is read to its end all the same: the kernel refuses another dump
    /// before.
    pub(crate) fn run<E: From<NetlinkError>>(
        &mut self,
        request: &[u8],
        sequence: u32,
        mut take: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        self.transport.send(request)?;
        let (mut unchanged, mut failure) = (true, None);
        loop {
            let done = self.datagram(|message| {
                // Left over from an earlier failed request.
                if message.sequence != sequence {
                    return Ok(false);
                }
                unchanged &= !message.is_interrupted();
                match message.classify()? {
                    MessageKind::Data if failure.is_none() => failure = take(message).err(),
                    MessageKind::Data | MessageKind::Ignore => {}
                    MessageKind::Done => return Ok(true),
                }
                Ok(false)
            })?;
            if done {
                return failure.map_or(Ok(unchanged), Err);
            }
        }
    }

    /// Sends a request for a dump, which `encode` writes under a sequence number, and reads the answer, again from the
    /// start if something changed meanwhile: then something that was there all the time may be missing.
    pub(crate) fn dump<S, E: From<NetlinkError>>(
        &mut self,
        encode: impl Fn(u32) -> Buffer,
        start: impl Fn() -> S,
        mut take: impl FnMut(&mut S, Message<'_>) -> Result<(), E>,
    ) -> Result<S, E> {
        let mut attempt = 1;
        loop {
            let mut found = start();
            let sequence = self.next_sequence(0);
            let unchanged =
                self.run(&encode(sequence).bytes, sequence, |message| take(&mut found, message))?;
            if unchanged || attempt == DUMP_ATTEMPTS {
                return Ok(found);
            }
            attempt += 1;
        }
    }

    /// Sends a transaction whose messages are numbered from `first` on, of which `steps` between the first and the last
    /// are acknowledged. Fails with the first refusal, which then holds for all of them.
    pub(crate) fn run_transaction(
        &mut self,
        transaction: &[u8],
        first: u32,
        steps: u32,
    ) -> Result<(), NetlinkError> {
        self.transport.send(transaction)?;
        let mut acknowledged = 0;
        while acknowledged < steps {
            self.datagram(|message| {
                // The kernel may refuse the transaction as a whole, under the number of its first message.
                let number = message.sequence.wrapping_sub(first);
                if number <= steps + 1 && matches!(message.classify()?, MessageKind::Done) && number >= 1 {
                    acknowledged += 1;
                }
                Ok(false)
            })?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) const fn transport(&self) -> &T {
        &self.transport
    }

    #[cfg(test)]
    pub(crate) fn received(&self) -> &[u8] {
        &self.received.bytes
    }

    /// Receives one datagram and visits its messages until one ends the exchange.
    fn datagram(
        &mut self,
        mut visit: impl FnMut(Message<'_>) -> Result<bool, NetlinkError>,
    ) -> Result<bool, NetlinkError> {
        let length = self.transport.receive(&mut self.received.bytes)?;
        let outcome = match self.received.bytes.get(..length) {
            None => Err(NetlinkError::Malformed { problem: "a datagram is longer than 64 KiB" }),
            Some([]) => Err(NetlinkError::Malformed { problem: "a datagram is empty" }),
            Some(datagram) => visit_all(datagram, &mut visit),
        };
        if self.received.secret {
            self.received.bytes.iter_mut().take(length).for_each(zeroize::Zeroize::zeroize);
        }
        outcome
    }
}

fn visit_all(
    datagram: &[u8],
    visit: &mut impl FnMut(Message<'_>) -> Result<bool, NetlinkError>,
) -> Result<bool, NetlinkError> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let (message, after) = Message::split(rest)?;
        if visit(message)? {
            return Ok(true);
        }
        rest = after;
    }
    Ok(false)
}
