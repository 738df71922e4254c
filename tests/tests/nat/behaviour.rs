//! What a NAT does to UDP, found out with sockets on both sides, in the terms of RFC 4787.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use lab::{Host, IpVersion, Lab};

/// How long a datagram may take on a busy machine.
const ARRIVED_WITHIN: Duration = Duration::from_secs(5);

/// Of what external ports, or what lets packets in, depend on: sections 4.1 and 5 of RFC 4787.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dependence {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Behaviour {
    pub(crate) mapping: Dependence,
    pub(crate) filtering: Dependence,
    /// Whether the external port is the internal one (section 4.2.1).
    pub(crate) keeps_port: bool,
    /// Whether a second node of the site is reached at the first one's external endpoint (section 6).
    pub(crate) hairpins: bool,
}

/// Three endpoints outside: two ports of one address, and one of another.
pub(crate) struct Observers {
    sockets: [UdpSocket; 3],
}

impl Observers {
    pub(crate) fn new(lab: &Lab) -> Self {
        let first = lab.outside().address(IpVersion::V4).unwrap();
        let second = lab.internet().address(IpVersion::V4).unwrap();
        Self { sockets: [first, first, second].map(|address| bind(lab.outside(), address, 0)) }
    }

    pub(crate) fn endpoint(&self, which: usize) -> SocketAddr {
        self.sockets[which].local_addr().unwrap()
    }

    pub(crate) fn socket(&self, which: usize) -> &UdpSocket {
        &self.sockets[which]
    }

    /// Sends a datagram to one of them; returns the source that it sees.
    pub(crate) fn see(&self, which: usize, from: &UdpSocket) -> SocketAddr {
        from.send_to(b"see", self.endpoint(which)).unwrap();
        receive(&self.sockets[which], b"see").expect("what a node sends arrives")
    }

    /// Sends a datagram from one of them.
    pub(crate) fn send(&self, which: usize, text: &[u8], to: SocketAddr) {
        self.sockets[which].send_to(text, to).unwrap();
    }
}

/// Of two nodes of one site.
pub(crate) fn of(lab: &Lab) -> Behaviour {
    let (node, neighbour) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    let observers = Observers::new(lab);
    let inside = socket(node, 40_001);
    let seen = [0, 1, 2].map(|which| observers.see(which, &inside));
    let mapping = if seen[0] != seen[1] {
        Dependence::AddressAndPortDependent
    } else if seen[0] != seen[2] {
        Dependence::AddressDependent
    } else {
        Dependence::EndpointIndependent
    };
    // Another socket, which has contacted the first observer only.
    let inside = socket(node, 40_002);
    let mapped = observers.see(0, &inside);
    observers.send(2, b"address", mapped);
    observers.send(1, b"port", mapped);
    let hairpin = socket(neighbour, 40_003);
    // A router may refuse it at once, which is an answer as well.
    let _refused = hairpin.send_to(b"hairpin", mapped);
    observers.send(0, b"last", mapped);
    let arrived = until(&inside, b"last");
    let has = |text: &[u8]| arrived.iter().any(|found| found == text);
    let filtering = match (has(b"address"), has(b"port")) {
        (true, _) => Dependence::EndpointIndependent,
        (false, true) => Dependence::AddressDependent,
        (false, false) => Dependence::AddressAndPortDependent,
    };
    Behaviour { mapping, filtering, keeps_port: mapped.port() == 40_002, hairpins: has(b"hairpin") }
}

pub(crate) fn socket(host: &Host, port: u16) -> UdpSocket {
    bind(host, Ipv4Addr::UNSPECIFIED.into(), port)
}

fn bind(host: &Host, address: IpAddr, port: u16) -> UdpSocket {
    host.net().run(|| UdpSocket::bind((address, port))).unwrap().unwrap()
}

/// The source of the datagram with this text, if it comes.
pub(crate) fn receive(socket: &UdpSocket, text: &[u8]) -> Option<SocketAddr> {
    socket.set_read_timeout(Some(ARRIVED_WITHIN)).unwrap();
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).ok()?;
        if &buffer[..length] == text {
            return Some(from);
        }
    }
}

/// All datagrams up to the one with this text, which was sent last, and shortly after.
pub(crate) fn until(socket: &UdpSocket, last: &[u8]) -> Vec<Vec<u8>> {
    socket.set_read_timeout(Some(ARRIVED_WITHIN)).unwrap();
    let (mut arrived, mut buffer) = (Vec::new(), [0; 2048]);
    while let Ok((length, _)) = socket.recv_from(&mut buffer) {
        if &buffer[..length] == last {
            socket.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
        } else {
            arrived.push(buffer[..length].to_vec());
        }
    }
    arrived
}
