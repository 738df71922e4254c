//! A host on the underlay: a node of the cluster, the one outside, or the one of the API server.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;

use crate::address::{self, IpVersion};
use crate::command::Command;
use crate::error::Error;
use crate::packet_socket::PacketSocket;
use crate::space::{NetNs, Space};

/// A machine of the lab, attached to the underlay by `eth0`.
#[derive(Debug)]
pub struct Host {
    number: u8,
    space: Space,
    addresses: Mutex<Addresses>,
    logs: PathBuf,
}

/// The addresses of a host, which may change.
#[derive(Debug)]
struct Addresses {
    /// On its own link.
    own: Vec<IpNetwork>,
    /// On none of its links; a router translates them.
    external: Vec<IpAddr>,
}

/// Something that sends or receives traffic: a network namespace and the addresses that others reach it by.
#[derive(Clone, Debug)]
pub struct End {
    net: NetNs,
    addresses: Vec<IpAddr>,
}

impl Host {
    pub(crate) fn new(number: u8, space: Space, addresses: Vec<IpNetwork>, logs: &Path) -> Self {
        let addresses = Mutex::new(Addresses { own: addresses, external: Vec::new() });
        Self { number, space, addresses, logs: logs.into() }
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        self.space.name()
    }

    /// Its number, which its addresses end in.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its addresses on the underlay, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.lock().own.iter().map(IpNetwork::ip).collect()
    }

    /// The same with the prefix lengths of their links.
    pub(crate) fn networks(&self) -> Vec<IpNetwork> {
        self.lock().own.clone()
    }

    /// Addresses that packets to it may be sent to, but that are on none of its links, as behind a cloud's 1:1 NAT.
    pub fn external_addresses(&self) -> Vec<IpAddr> {
        self.lock().external.clone()
    }

    /// Its address of one IP version on the underlay. Fails if the lab does not have that version.
    pub fn address(&self, version: IpVersion) -> Result<IpAddr, Error> {
        self.end().address(version)
    }

    /// Link-layer address of its `eth0`.
    pub fn mac(&self) -> [u8; 6] {
        address::mac(self.number)
    }

    /// Process id for `nsenter -t PID -n -m -u`.
    pub fn pid(&self) -> u32 {
        self.space.pid()
    }

    /// The host itself (or a hostNetwork pod, which is the same) as an end of traffic.
    pub fn end(&self) -> End {
        End { net: self.space.net().clone(), addresses: self.addresses() }
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNs {
        self.space.net()
    }

    /// A program to be run here, in all of the host's namespaces; see [`Command`] for what can be done with it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command<'_> {
        self.command_in(self.space.net(), program.as_ref())
    }

    /// Runs a closure on a thread in the host's network and mount namespaces, and waits for it. The closure must not
    /// start threads that outlive it, and is not among the host's processes: `/proc/self` leads nowhere there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        self.space.run(work)
    }

    /// Reads a file as the host sees it.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        let path = path.as_ref();
        let failed = |source| Error::File { action: "read", path: path.into(), source };
        self.run(|| std::fs::read(path))?.map_err(failed)
    }

    /// Writes a file as the host sees it; missing directories are created.
    pub fn write(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
        let (path, bytes) = (path.as_ref(), bytes.as_ref());
        let failed = |source| Error::File { action: "write", path: path.into(), source };
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new("/")))?;
            std::fs::write(path, bytes)
        };
        self.run(write)?.map_err(failed)
    }

    /// Sets a kernel setting of the host's network namespace, for example `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), Error> {
        let path = Path::new("/proc/sys").join(name);
        let failed = |source| Error::File { action: "write", path: path.clone(), source };
        self.run(|| std::fs::write(&path, value))?.map_err(failed)
    }

    /// Runs `ip -batch` with these lines, for example `route add 10.0.0.0/8 via 198.18.0.254`.
    pub fn ip(&self, lines: &str) -> Result<(), Error> {
        self.space.ip_batch(lines)
    }

    /// Sends a frame on the underlay as it is, whatever its addresses say.
    pub fn inject(&self, frame: &[u8]) -> Result<(), Error> {
        let send = || PacketSocket::open("eth0")?.send(frame);
        let failed =
            |source| Error::Socket { action: "inject a frame", host: self.name().to_owned(), source };
        self.space.net().run(send)?.map_err(failed)
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// Its first IPv4 address on the underlay.
    pub(crate) fn own_v4(&self) -> Option<Ipv4Addr> {
        self.addresses().into_iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    /// Records what its addresses are from now on.
    pub(crate) fn set_addresses(&self, addresses: Vec<IpNetwork>) {
        self.lock().own = addresses;
    }

    /// Records what its addresses behind NAT are from now on.
    pub(crate) fn set_external(&self, addresses: Vec<IpAddr>) {
        self.lock().external = addresses;
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn command_in<'a>(&'a self, net: &NetNs, program: &OsStr) -> Command<'a> {
        Command::new(&self.space, net, &self.logs, program)
    }
}

impl End {
    pub(crate) fn new(net: &NetNs, addresses: Vec<IpAddr>) -> Self {
        Self { net: net.clone(), addresses }
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        self.net.name()
    }

    /// The addresses that others reach it by, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The address of one IP version that others reach it by.
    pub fn address(&self, version: IpVersion) -> Result<IpAddr, Error> {
        let of_version = |address: &&IpAddr| IpVersion::of(**address) == version;
        self.addresses
            .iter()
            .find(of_version)
            .copied()
            .ok_or_else(|| Error::NoAddress { host: self.name().to_owned(), version: version.as_str() })
    }

    /// The same end, reached by another address of its own (a ClusterIP, an address beyond the underlay).
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Self {
        Self { net: self.net.clone(), addresses: vec![address] }
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNs {
        &self.net
    }
}
