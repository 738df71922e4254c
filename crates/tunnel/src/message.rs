//! Types and lengths of WireGuard's messages (WireGuard paper, section 5.4).

/// Length of a handshake initiation (message type 1).
pub(crate) const INITIATION: usize = 148;
/// Length of a handshake response (message type 2).
pub(crate) const RESPONSE: usize = 92;
/// Length of a cookie reply (message type 3).
pub(crate) const COOKIE_REPLY: usize = 64;
/// Message type of transport data.
pub(crate) const DATA: u8 = 4;
/// Bytes in front of the ciphertext of transport data: type, receiver, counter.
pub(crate) const DATA_HEADER: usize = 16;
/// Length of an authentication tag (RFC 8439 section 2.5).
pub(crate) const TAG: usize = 16;
/// What transport data adds to a packet.
pub(crate) const DATA_OVERHEAD: usize = DATA_HEADER + TAG;
