//! The kernel's answer read as the state of an interface, without keeping any secret.
//!
//! Numbers of attributes are those of `include/uapi/linux/wireguard.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnetwork::IpNetwork;
use keyring::{PresharedKey, PublicKey};
use wireguard::DeviceState;

use crate::error::ReadingError;

/// Adds the attributes of one message of an answer to `state`. A peer that did not fit into one message continues in
/// the next one under the same key; one whose key is of low order, which has no private key, is left out.
pub(crate) fn take(state: &mut DeviceState, body: &[u8]) -> Result<(), ReadingError> {
    for attribute in Attributes::new(body) {
        let (kind, value) = attribute?;
        match kind {
            4 => state.key = PublicKey::from_bytes(&exact(kind, value)?).ok(),
            // One that the kernel chose while the link was created, until one is set.
            6 => state.port = number(kind, value)?,
            7 => state.fwmark = u32::from_ne_bytes(exact(kind, value)?),
            8 => {
                for peer in Attributes::new(value) {
                    take_peer(state, peer?.1)?;
                }
            }
            // The private key, 3, is skipped.
            _ => {}
        }
    }
    Ok(())
}

fn take_peer(state: &mut DeviceState, attributes: &[u8]) -> Result<(), ReadingError> {
    let mut key = None;
    for attribute in Attributes::new(attributes) {
        let (kind, value) = attribute?;
        if kind == 1 {
            key = Some(exact::<32>(kind, value)?);
        }
    }
    let Ok(key) = PublicKey::from_bytes(&key.ok_or(ReadingError::Nameless)?) else { return Ok(()) };
    let peer = state.peers.entry(key).or_default();
    // There is no setting for it: the kernel's endpoints always roam.
    peer.config.roaming = true;
    for attribute in Attributes::new(attributes) {
        let (kind, value) = attribute?;
        match kind {
            // All zeros are no key.
            2 => {
                let bytes =
                    value.try_into().map_err(|_| ReadingError::Length { kind, found: value.len() })?;
                peer.config.preshared = PresharedKey::from_bytes(bytes).ok().map(|key| key.id());
            }
            4 => peer.config.endpoint = Some(endpoint(kind, value)?),
            5 => peer.config.keepalive = Some(number(kind, value)?).filter(|seconds| *seconds > 0),
            6 => peer.last_handshake = timestamp(kind, value)?,
            7 => peer.received = u64::from_ne_bytes(exact(kind, value)?),
            8 => peer.sent = u64::from_ne_bytes(exact(kind, value)?),
            9 => {
                for prefix in Attributes::new(value) {
                    peer.config.allowed_ips.insert(allowed_ip(prefix?.1)?);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The attributes of one level, each with its number and its value.
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn split(&mut self) -> Result<(u16, &'a [u8]), ReadingError> {
        let [l0, l1, k0, k1] = word(self.rest)?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.rest.get(4..length).ok_or(ReadingError::CutOff)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two highest bits say how the value is laid out (`NLA_TYPE_MASK`).
        Ok((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), ReadingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = self.split();
        if found.is_err() {
            self.rest = &[];
        }
        Some(found)
    }
}

/// The first four bytes.
pub(crate) fn word(bytes: &[u8]) -> Result<[u8; 4], ReadingError> {
    bytes.first_chunk().copied().ok_or(ReadingError::CutOff)
}

pub(crate) fn number(kind: u16, value: &[u8]) -> Result<u16, ReadingError> {
    Ok(u16::from_ne_bytes(exact(kind, value)?))
}

fn exact<const N: usize>(kind: u16, value: &[u8]) -> Result<[u8; N], ReadingError> {
    value.try_into().map_err(|_| ReadingError::Length { kind, found: value.len() })
}

/// A `sockaddr_in` or `sockaddr_in6`.
fn endpoint(kind: u16, value: &[u8]) -> Result<SocketAddr, ReadingError> {
    let length = ReadingError::Length { kind, found: value.len() };
    let port = |value: &[u8]| value.get(2..4).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
    match value.len() {
        16 => {
            let address: [u8; 4] = value.get(4..8).and_then(|bytes| bytes.try_into().ok()).ok_or(length)?;
            Ok(SocketAddr::new(Ipv4Addr::from(address).into(), port(value).ok_or(length)?))
        }
        28 => {
            let address: [u8; 16] = value.get(8..24).and_then(|bytes| bytes.try_into().ok()).ok_or(length)?;
            Ok(SocketAddr::new(Ipv6Addr::from(address).into(), port(value).ok_or(length)?))
        }
        _ => Err(length),
    }
}

/// A `__kernel_timespec`; zero is never.
fn timestamp(kind: u16, value: &[u8]) -> Result<Option<SystemTime>, ReadingError> {
    let bytes: [u8; 16] = exact(kind, value)?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, n4, n5, n6, n7] = bytes;
    let seconds = i64::from_ne_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let nanoseconds = i64::from_ne_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
    if (seconds, nanoseconds) == (0, 0) {
        return Ok(None);
    }
    // A clock before 1970 is wrong anyway, and only ages depend on it.
    let since = u64::try_from(seconds).unwrap_or_default();
    let rest = u32::try_from(nanoseconds).ok().filter(|rest| *rest < 1_000_000_000).unwrap_or_default();
    Ok(SystemTime::UNIX_EPOCH.checked_add(Duration::new(since, rest)))
}

fn allowed_ip(attributes: &[u8]) -> Result<IpNetwork, ReadingError> {
    let (mut address, mut prefix) = (None, None);
    for attribute in Attributes::new(attributes) {
        let (kind, value) = attribute?;
        match (kind, value.len()) {
            (2, 4) => address = Some(IpAddr::from(Ipv4Addr::from(exact::<4>(kind, value)?))),
            (2, 16) => address = Some(IpAddr::from(Ipv6Addr::from(exact::<16>(kind, value)?))),
            (3, _) => prefix = Some(u8::from_ne_bytes(exact(kind, value)?)),
            _ => {}
        }
    }
    let (address, prefix) = address.zip(prefix).ok_or(ReadingError::Prefix)?;
    IpNetwork::new(address, prefix).map_err(|_| ReadingError::Prefix)
}
