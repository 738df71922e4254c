//! A session: the keys of both directions, used by any number of threads at once without a lock in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::cipher::Key;
use super::clock::{Nanos, Stamp};
use super::window::Window;
use crate::counters::DropReason;
use crate::message::{DATA, DATA_HEADER, TAG};

/// After so many messages a session is renewed, and at so many it ends (WireGuard paper, section 6.1).
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessageLimits {
    pub(crate) rekey_after: u64,
    pub(crate) reject_after: u64,
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self { rekey_after: 1 << 60, reject_after: u64::MAX - (1 << 13) }
    }
}

/// The result of a handshake.
pub(crate) struct SessionKeys {
    pub(crate) sealing: Zeroizing<[u8; 32]>,
    pub(crate) opening: Zeroizing<[u8; 32]>,
    /// Our index: the peer puts it into what it sends.
    pub(crate) local: u32,
    /// The peer's index.
    pub(crate) remote: u32,
}

pub(crate) struct Session {
    pub(crate) local: u32,
    remote: u32,
    sealing: Key,
    opening: Key,
    /// The next counter to seal with.
    counter: AtomicU64,
    window: Mutex<Window>,
    pub(crate) created: Nanos,
    /// Whether we initiated the handshake, and therefore renew it.
    pub(crate) initiator: bool,
    /// When a packet was first received over it.
    pub(crate) used: Stamp,
}

impl Session {
    pub(crate) fn new(keys: &SessionKeys, created: Nanos, initiator: bool) -> Self {
        Self {
            local: keys.local,
            remote: keys.remote,
            sealing: Key::new(&keys.sealing),
            opening: Key::new(&keys.opening),
            counter: AtomicU64::new(0),
            window: Mutex::new(Window::new()),
            created,
            initiator,
            used: Stamp::default(),
        }
    }

    /// Encrypts in place: `datagram` is room for a header, the padded packet, and room for a tag. Returns the counter.
    pub(crate) fn seal(&self, datagram: &mut [u8], limits: MessageLimits) -> Result<u64, DropReason> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        if counter >= limits.reject_after {
            // Stays there: it would wrap to zero one day.
            self.counter.store(limits.reject_after, Ordering::Relaxed);
            return Err(DropReason::MessageLimit);
        }
        let Some((header, rest)) = datagram.split_first_chunk_mut::<DATA_HEADER>() else {
            return Err(DropReason::MalformedOutbound);
        };
        let Some((text, tag)) = rest.split_last_chunk_mut::<TAG>() else {
            return Err(DropReason::MalformedOutbound);
        };
        header[..4].copy_from_slice(&[DATA, 0, 0, 0]);
        header[4..8].copy_from_slice(&self.remote.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        *tag = self.sealing.seal(counter, &[], text);
        Ok(counter)
    }

    /// Decrypts transport data in place and returns the padded packet, which begins at [`DATA_HEADER`].
    pub(crate) fn open<'a>(
        &self,
        datagram: &'a mut [u8],
        limits: MessageLimits,
    ) -> Result<&'a mut [u8], DropReason> {
        let (header, sealed) =
            datagram.split_first_chunk_mut::<DATA_HEADER>().ok_or(DropReason::MalformedDatagram)?;
        let counter = header[8..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or_default();
        if counter >= limits.reject_after {
            return Err(DropReason::MessageLimit);
        }
        if !self.window.lock().allows(counter) {
            return Err(DropReason::Replay);
        }
        let packet = self.opening.open(counter, &[], sealed).map_err(|_| DropReason::Forged)?;
        if self.window.lock().accept(counter) { Ok(packet) } else { Err(DropReason::Replay) }
    }
}

/// Up to three sessions of one peer, as the kernel keeps them (`struct noise_keypairs`).
#[derive(Default, Clone)]
pub(crate) struct Sessions {
    /// What we send with.
    pub(crate) current: Option<Arc<Session>>,
    /// For what was in flight when `current` was established.
    pub(crate) previous: Option<Arc<Session>>,
    /// We responded to the handshake, and the peer has not used the session yet.
    pub(crate) next: Option<Arc<Session>>,
}

impl Sessions {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Session>> {
        [&self.current, &self.next, &self.previous].into_iter().flatten()
    }

    /// After a handshake that we initiated: the peer has the session already.
    pub(crate) fn initiated(&self, session: Arc<Session>) -> Self {
        let previous = self.next.clone().or_else(|| self.current.clone());
        Self { current: Some(session), previous, next: None }
    }

    /// After a handshake that we responded to.
    pub(crate) fn responded(&self, session: Arc<Session>) -> Self {
        Self { next: Some(session), ..self.clone() }
    }

    /// After the peer has used `next`.
    pub(crate) fn confirmed(&self) -> Self {
        Self { current: self.next.clone(), previous: self.current.clone(), next: None }
    }
}
