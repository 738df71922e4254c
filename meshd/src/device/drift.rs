//! Counts how often the endpoints of a device's peers drifted, where the backend always roams: an endpoint that has to
//! be set to the value that it was set to before had moved in between.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use keyring::PublicKey;
use wireguard::{Backend, Device, DeviceState, Peer, PeerChange};

/// The drifts of one device's peers.
#[derive(Debug, Default)]
pub struct Drifts {
    /// Whether they are counted here; the other backends count them themselves.
    counting: bool,
    peers: BTreeMap<PublicKey, Endpoint>,
}

/// What this process knows about one peer's endpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Endpoint {
    set: Option<SocketAddr>,
    drifts: u64,
}

impl Drifts {
    /// None so far.
    pub fn new(backend: Backend) -> Self {
        Self { counting: backend.always_roams(), peers: BTreeMap::new() }
    }

    /// A peer was added.
    pub fn added(&mut self, key: PublicKey, peer: &Peer) {
        if self.counting {
            self.peers.insert(key, Endpoint { set: peer.endpoint, drifts: 0 });
        }
    }

    /// A peer was changed.
    pub fn changed(&mut self, key: PublicKey, change: &PeerChange) {
        if let Some(endpoint) = change.endpoint.filter(|_| self.counting) {
            let known = self.peers.entry(key).or_default();
            known.drifts += u64::from(known.set == Some(endpoint));
            known.set = Some(endpoint);
        }
    }

    /// A peer was removed.
    pub fn removed(&mut self, key: &PublicKey) {
        self.peers.remove(key);
    }

    /// The state of `device`, with the drifts counted here.
    pub fn state(&self, device: &mut dyn Device) -> Result<DeviceState, wireguard::DeviceError> {
        let mut state = device.state()?;
        for (key, peer) in &mut state.peers {
            peer.endpoint_drifts += self.peers.get(key).map_or(0, |endpoint| endpoint.drifts);
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PublicKey {
        PublicKey::from_bytes(&[9; 32]).unwrap()
    }

    fn at(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    fn count(drifts: &Drifts) -> u64 {
        drifts.peers.get(&key()).map_or(0, |endpoint| endpoint.drifts)
    }

    #[test]
    fn setting_an_endpoint_again_counts_a_drift_and_another_endpoint_does_not() {
        let mut drifts = Drifts::new(Backend::Kernel);
        drifts.added(key(), &Peer { endpoint: Some(at(1)), ..Peer::default() });
        drifts.changed(key(), &PeerChange { endpoint: Some(at(2)), ..PeerChange::default() });
        assert_eq!(count(&drifts), 0);
        for seen in 1..3 {
            drifts.changed(key(), &PeerChange { endpoint: Some(at(2)), ..PeerChange::default() });
            drifts.changed(key(), &PeerChange { keepalive: Some(None), ..PeerChange::default() });
            assert_eq!(count(&drifts), seen);
        }
        drifts.removed(&key());
        assert_eq!(count(&drifts), 0);
    }

    #[test]
    fn a_backend_that_counts_drifts_itself_is_left_to_it() {
        let mut drifts = Drifts::new(Backend::Userspace);
        drifts.added(key(), &Peer { endpoint: Some(at(1)), ..Peer::default() });
        drifts.changed(key(), &PeerChange { endpoint: Some(at(1)), ..PeerChange::default() });
        assert_eq!(count(&drifts), 0);
    }
}
