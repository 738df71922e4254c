//! The strict stand-in that plans are tested with, as a device: where the suite finds it wrong, it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use kernel_wireguard::KernelError;
use keyring::{PresharedId, PresharedKey, PrivateKey, PublicKey, Slot};
use meshd::device::{Backend, Device, DeviceError, DeviceState, PeerState};
use plan::network::{Network, Peer};
use plan::op::{Op, PeerChange};

use crate::subject::Subject;

/// A device that is a value.
#[derive(Debug)]
struct Fake {
    network: Network,
    preshared: BTreeMap<PublicKey, PresharedId>,
    taken: Arc<Mutex<BTreeSet<u16>>>,
}

const SLOT: Slot = Slot::A;

/// The stand-in under test.
pub(crate) fn subject() -> Subject {
    let taken = Arc::new(Mutex::new(BTreeSet::new()));
    let mut network = Network::default();
    let link = "mesh-a".parse().unwrap();
    network.apply(&Op::CreateDevice { slot: SLOT, link, mtu: 1420 }).unwrap();
    let device = Fake { network, preshared: BTreeMap::new(), taken: Arc::clone(&taken) };
    let occupy = move |port| {
        taken.lock().unwrap().insert(port);
    };
    Subject::new(Box::new(device), Box::new(occupy), None)
}

impl Fake {
    /// The stand-in's refusals have no kinds that matter here.
    fn perform(&mut self, op: &Op) -> Result<(), DeviceError> {
        self.network.apply(op).map_err(|refusal| refused("fake", std::io::Error::other(refusal)))
    }
}

fn refused(operation: &'static str, source: std::io::Error) -> DeviceError {
    KernelError::Interface { operation, link: "mesh-a".to_owned(), source: source.into() }.into()
}

impl Device for Fake {
    fn backend(&self) -> Backend {
        Backend::Kernel
    }

    fn state(&mut self) -> Result<DeviceState, DeviceError> {
        let device = &self.network.devices[&SLOT];
        let peer = |key: &PublicKey, peer: &Peer| PeerState {
            endpoint: peer.endpoint,
            roaming: Some(peer.roaming),
            allowed_ips: peer.allowed_ips.clone(),
            keepalive: peer.keepalive,
            preshared: self.preshared.get(key).copied(),
            ..PeerState::default()
        };
        let peers: BTreeMap<_, _> =
            device.peers.iter().map(|(key, found)| (*key, peer(key, found))).collect();
        Ok(DeviceState { key: device.key, port: device.port, peers })
    }

    fn set_key(&mut self, key: &PrivateKey) -> Result<(), DeviceError> {
        self.perform(&Op::SetKey { slot: SLOT, key: key.public() })
    }

    fn set_port(&mut self, port: u16) -> Result<(), DeviceError> {
        if self.taken.lock().unwrap().contains(&port) {
            return Err(refused("set the port of", std::io::ErrorKind::AddrInUse.into()));
        }
        self.perform(&Op::SetPort { slot: SLOT, port })
    }

    fn set_mtu(&mut self, mtu: u32) -> Result<(), DeviceError> {
        let link = self.network.devices[&SLOT].link.clone();
        self.perform(&Op::SetMtu { link, mtu })
    }

    fn add_peer_with(
        &mut self,
        key: PublicKey,
        peer: &Peer,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        self.set_preshared_key(key, preshared)?;
        self.perform(&Op::AddPeer { slot: SLOT, key, peer: peer.clone() })
    }

    fn update_peer(&mut self, key: PublicKey, change: &PeerChange) -> Result<(), DeviceError> {
        self.perform(&Op::UpdatePeer { slot: SLOT, key, change: change.clone() })
    }

    fn remove_peer(&mut self, key: PublicKey) -> Result<(), DeviceError> {
        self.preshared.remove(&key);
        self.perform(&Op::RemovePeer { slot: SLOT, key })
    }

    fn set_preshared_key(
        &mut self,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        match preshared {
            Some(preshared) => self.preshared.insert(peer, preshared.id()),
            None => self.preshared.remove(&peer),
        };
        Ok(())
    }

    fn initiate_handshake(&mut self, _peer: PublicKey) -> Result<(), DeviceError> {
        Ok(())
    }

    fn remove(self: Box<Self>) -> Result<(), DeviceError> {
        Ok(())
    }
}
