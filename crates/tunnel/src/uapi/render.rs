//! The reply to `get=1`: the whole configuration, keys included, as the protocol demands. Pure.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime};

use keyring::{PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use wireguard::{DeviceState, PeerState};

/// Writes the configuration of an interface. `preshared_key` looks up the key with a peer.
pub(super) fn configuration(
    state: &DeviceState,
    private_key: Option<&PrivateKey>,
    preshared_key: impl Fn(&PublicKey) -> Option<PresharedKey>,
) -> Zeroizing<String> {
    // Reserved at once: a string that grows leaves copies of the keys behind.
    let prefixes: usize = state.peers.values().map(|peer| peer.config.allowed_ips.len()).sum();
    let mut out = Zeroizing::new(String::with_capacity(512 + state.peers.len() * 512 + prefixes * 64));
    // Writing to a string does not fail.
    let _ = device(&mut out, state, private_key);
    for (key, peer) in &state.peers {
        let _ = one_peer(&mut out, key, peer, preshared_key(key).as_ref());
    }
    out
}

fn device(out: &mut String, state: &DeviceState, private_key: Option<&PrivateKey>) -> fmt::Result {
    if let Some(key) = private_key {
        hex(out, "private_key", key.expose())?;
    }
    writeln!(out, "listen_port={}", state.port)?;
    if state.fwmark != 0 {
        writeln!(out, "fwmark={}", state.fwmark)?;
    }
    Ok(())
}

fn one_peer(
    out: &mut String,
    key: &PublicKey,
    peer: &PeerState,
    preshared_key: Option<&PresharedKey>,
) -> fmt::Result {
    hex(out, "public_key", key.as_bytes())?;
    if let Some(key) = preshared_key {
        hex(out, "preshared_key", key.expose())?;
    }
    writeln!(out, "protocol_version=1")?;
    if let Some(endpoint) = peer.config.endpoint {
        writeln!(out, "endpoint={endpoint}")?;
    }
    // Zero means never. It is a point in time, not an age.
    let handshake = peer.last_handshake.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let handshake = handshake.unwrap_or(Duration::ZERO);
    writeln!(out, "last_handshake_time_sec={}", handshake.as_secs())?;
    writeln!(out, "last_handshake_time_nsec={}", handshake.subsec_nanos())?;
    writeln!(out, "tx_bytes={}", peer.sent)?;
    writeln!(out, "rx_bytes={}", peer.received)?;
    writeln!(out, "persistent_keepalive_interval={}", peer.config.keepalive.unwrap_or_default())?;
    peer.config.allowed_ips.iter().try_for_each(|prefix| writeln!(out, "allowed_ip={prefix}"))
}

fn hex(out: &mut String, key: &str, bytes: &[u8; 32]) -> fmt::Result {
    write!(out, "{key}=")?;
    bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wireguard::Peer;

    use super::*;

    #[test]
    fn shows_the_configuration_as_the_protocol_spells_it() {
        let private = PrivateKey::from_bytes(&[0x40; 32]).unwrap();
        let peer = PeerState {
            config: Peer {
                endpoint: Some("[fd00::1]:51840".parse().unwrap()),
                roaming: true,
                allowed_ips: ["10.0.0.0/8", "fd00::/64"].map(|text| text.parse().unwrap()).into(),
                keepalive: Some(25),
                preshared: Some(keyring::PresharedId::from_bytes([1; 8])),
            },
            last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5)),
            since_handshake: Some(Duration::from_secs(3)),
            received: 7,
            sent: 8,
            endpoint_drifts: 0,
            forged: 0,
        };
        let key = PublicKey::from_bytes(&[9; 32]).unwrap();
        let state = DeviceState {
            key: Some(private.public()),
            port: 51840,
            fwmark: 30,
            peers: BTreeMap::from([(key, peer)]),
        };
        let shared = |_: &PublicKey| PresharedKey::from_bytes(&[0xab; 32]).ok();
        let nines = "09".repeat(32);
        let text = configuration(&state, Some(&private), shared);
        assert_eq!(
            *text,
            format!(
                "private_key={}\nlisten_port=51840\nfwmark=30\npublic_key={nines}\npreshared_key={}\n\
                 protocol_version=1\nendpoint=[fd00::1]:51840\nlast_handshake_time_sec=1700000000\n\
                 last_handshake_time_nsec=5\ntx_bytes=8\nrx_bytes=7\npersistent_keepalive_interval=25\n\
                 allowed_ip=10.0.0.0/8\nallowed_ip=fd00::/64\n",
                "40".repeat(32),
                "ab".repeat(32)
            )
        );
    }
}
