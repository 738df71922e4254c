//! Devices to be tested, in hosts of the lab.

use std::fmt;
use std::net::UdpSocket;

use kernel_wireguard::Kernel;
use keyring::{PrivateKey, PublicKey};
use lab::{ApiKind, End, Family, IpVersion, Lab, Node};
use tunnel::{Initiator, Userspace, UserspaceOptions};
use wireguard::{Device, LinkName, Peer};

/// A device and what is around it.
pub(crate) struct Subject {
    pub(crate) device: Box<dyn Device>,
    occupy: Box<dyn Fn(u16)>,
    // Last: the device goes before its host.
    _lab: Option<Lab>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.device.fmt(f)
    }
}

impl Subject {
    pub(crate) fn new(device: Box<dyn Device>, occupy: Box<dyn Fn(u16)>, lab: Option<Lab>) -> Self {
        Self { device, occupy, _lab: lab }
    }

    /// Lets another process hold a UDP port where the device is.
    pub(crate) fn occupy(&self, port: u16) {
        (self.occupy)(port);
    }
}

/// A backend that devices are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Userspace,
    Kernel,
}

/// Makes a device with the link up in a host.
fn make(kind: Kind, node: &Node) -> Box<dyn Device> {
    let link = link();
    let device: Box<dyn Device> = node
        .run(|| match kind {
            Kind::Userspace => {
                let options =
                    UserspaceOptions { uapi_dir: "/run/wireguard".into(), ..UserspaceOptions::default() };
                std::fs::create_dir_all(&options.uapi_dir).unwrap();
                Box::new(Userspace::create(&link, 1420, &options).unwrap()) as Box<dyn Device>
            }
            Kind::Kernel => Box::new(Kernel::create(&link).unwrap()),
        })
        .unwrap();
    node.ip(&format!("link set {link} up\n")).unwrap();
    device
}

pub(crate) fn link() -> LinkName {
    "mesh-a".parse().unwrap()
}

fn single(kind: Kind) -> Subject {
    let lab = Lab::builder().nodes(1).family(Family::V4).api(ApiKind::None).build().unwrap();
    let node = lab.node("n1").unwrap();
    let device = make(kind, node);
    let end = node.end();
    let occupy = move |port| {
        let bind = || UdpSocket::bind(("0.0.0.0", port)).unwrap();
        // Stays until the test's process ends.
        std::mem::forget(end.net().run(bind).unwrap());
    };
    Subject::new(device, Box::new(occupy), Some(lab))
}

/// An engine in this process.
pub(crate) fn userspace() -> Subject {
    single(Kind::Userspace)
}

/// A device of the kernel's.
pub(crate) fn kernel() -> Subject {
    single(Kind::Kernel)
}

/// Two devices on two hosts of one underlay, each with the other as its peer, and addresses to talk to each other.
pub(crate) struct Pair {
    pub(crate) devices: [Box<dyn Device>; 2],
    kinds: [Kind; 2],
    keys: [PrivateKey; 2],
    pub(crate) lab: Lab,
}

/// UDP port of both.
pub(crate) const PORT: u16 = 51840;

/// Two hosts with a device each.
pub(crate) fn pair(first: Kind, second: Kind) -> Pair {
    let lab = Lab::builder().nodes(2).family(Family::V4).api(ApiKind::None).build().unwrap();
    let mut devices = [make(first, &lab.nodes()[0]), make(second, &lab.nodes()[1])];
    let keys = [PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap()];
    for (index, device) in devices.iter_mut().enumerate() {
        device.set_key(&keys[index]).unwrap();
        device.set_port(PORT).unwrap();
        let address = tunnel_address(index);
        let link = link();
        lab.nodes()[index].ip(&format!("addr add {address}/24 dev {link}\n")).unwrap();
    }
    let mut pair = Pair { devices, kinds: [first, second], keys, lab };
    pair.introduce();
    pair
}

fn tunnel_address(index: usize) -> String {
    format!("10.99.0.{}", index + 1)
}

impl Pair {
    /// Makes each a peer of the other.
    pub(crate) fn introduce(&mut self) {
        for index in [0, 1] {
            let (key, peer) = (self.public(1 - index), self.peer(1 - index));
            self.devices[index].add_peer(key, &peer).unwrap();
        }
    }

    /// Public key of one of them.
    pub(crate) fn public(&self, index: usize) -> PublicKey {
        self.keys[index].public()
    }

    /// Private key of one of them.
    pub(crate) fn private(&self, index: usize) -> PrivateKey {
        self.keys[index].duplicate()
    }

    /// What one of them is.
    pub(crate) const fn kind(&self, index: usize) -> Kind {
        self.kinds[index]
    }

    /// Begins handshakes with device 0 in the name of device 1.
    pub(crate) fn initiator(&self) -> Initiator {
        Initiator::new(self.keys[1].duplicate(), &self.public(0), None)
    }

    /// A socket on the host of device 1 that sends to device 0.
    pub(crate) fn socket(&self) -> UdpSocket {
        let [to, from] = [0, 1].map(|index| self.lab.nodes()[index].address(IpVersion::V4).unwrap());
        let connect = || {
            let socket = UdpSocket::bind((from, 0))?;
            socket.connect((to, PORT))?;
            std::io::Result::Ok(socket)
        };
        self.lab.nodes()[1].run(connect).unwrap().unwrap()
    }

    /// One of them as a peer.
    pub(crate) fn peer(&self, index: usize) -> Peer {
        let address = self.lab.nodes()[index].address(IpVersion::V4).unwrap();
        Peer {
            endpoint: Some((address, PORT).into()),
            allowed_ips: [format!("{}/32", tunnel_address(index)).parse().unwrap()].into(),
            ..Peer::default()
        }
    }

    /// One of them as an end of flows through the tunnel.
    pub(crate) fn end(&self, index: usize) -> End {
        self.lab.nodes()[index].end().at(tunnel_address(index).parse().unwrap())
    }
}
