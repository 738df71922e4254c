//! The socket: a protocol's requests over an exchange with the kernel.

use std::io;
use std::marker::PhantomData;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NetlinkSerializable};
use netlink_sys::SocketAddr;
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

use crate::error::NetlinkError;
use crate::exchange::{Buffer, Exchange, Transport};
use crate::frame::{self, Message};

/// Room in a socket's send buffer in addition to the message itself.
const RESERVE: usize = 4096;

/// A netlink family.
pub trait Protocol {
    /// Its number, such as `NETLINK_ROUTE`.
    const NUMBER: isize;
    /// Whether keys pass through the socket: then what is sent and received is wiped.
    const SECRET: bool = false;
    /// Its requests.
    type Request: NetlinkSerializable;
}

/// One step of a transaction.
#[derive(Debug)]
pub struct Step<R> {
    /// What to do.
    pub request: R,
    /// Flags in addition to `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub flags: u16,
}

/// A blocking netlink socket in the network namespace of the thread that opened it.
pub struct Socket<P> {
    exchange: Exchange<netlink_sys::Socket>,
    port: u32,
    protocol: PhantomData<P>,
}

impl<P> std::fmt::Debug for Socket<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The buffer may hold keys.
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

impl<P: Protocol> Socket<P> {
    /// Opens the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(P::NUMBER)?;
            let port = socket.bind_auto()?.port_number();
            // Connected, it receives from the kernel alone.
            socket.connect(&SocketAddr::new(0, 0))?;
            // Errors with a text, and without the request, which may hold keys.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok((socket, port))
        };
        let (socket, port) = open().map_err(|source| NetlinkError::Socket { operation: "open", source })?;
        Ok(Self { exchange: Exchange::new(socket, P::SECRET), port, protocol: PhantomData })
    }

    /// The socket's address (port ID), by which the kernel knows the owner of what belongs to a socket.
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Performs one request and waits until the kernel has done it. `flags` are those in addition to `NLM_F_REQUEST`
    /// and `NLM_F_ACK`.
    pub fn request(&mut self, request: &P::Request, flags: u16) -> Result<(), NetlinkError> {
        self.run(request, NLM_F_ACK | flags, |_| Ok(()))
    }

    /// Performs requests that are sent in one datagram, each whatever becomes of the others, and waits until the kernel
    /// has done all. Fails with the first refusal.
    pub fn requests(&mut self, steps: &[Step<P::Request>]) -> Result<(), NetlinkError> {
        let count = u32::try_from(steps.len()).unwrap_or(u32::MAX);
        // Numbered as the steps of a transaction are, after its beginning.
        let first = self.exchange.next_sequence(count);
        let length = steps.iter().map(|step| frame::encoded_len(&step.request)).sum();
        let mut buffer = Buffer { bytes: Vec::with_capacity(length), secret: P::SECRET };
        for (number, step) in (1..).zip(steps) {
            let sequence = first.wrapping_add(number);
            frame::append(&mut buffer.bytes, &step.request, step.flags | NLM_F_ACK, sequence);
        }
        self.exchange.run_transaction(&buffer.bytes, first, count)
    }

    /// Asks for one thing; `take` gets each message of the answer.
    pub fn get<E: From<NetlinkError>>(
        &mut self,
        request: &P::Request,
        take: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.run(request, NLM_F_ACK, take)
    }

    /// Asks for everything of one kind: `take` adds each message of the answer to what `start` begins with. The dump is
    /// read again from the start if something changed meanwhile; after [`DUMP_ATTEMPTS`](crate::DUMP_ATTEMPTS) what was
    /// read last counts.
    pub fn dump<S, E: From<NetlinkError>>(
        &mut self,
        request: &P::Request,
        start: impl Fn() -> S,
        take: impl FnMut(&mut S, Message<'_>) -> Result<(), E>,
    ) -> Result<S, E> {
        self.exchange.dump(|sequence| encoded::<P>(request, NLM_F_DUMP, sequence), start, take)
    }

    /// Performs all steps or none of them. `begin` and `end` are the messages that the protocol has for that.
    pub fn transaction(
        &mut self,
        begin: &P::Request,
        steps: &[Step<P::Request>],
        end: &P::Request,
    ) -> Result<(), NetlinkError> {
        let count = u32::try_from(steps.len()).unwrap_or(u32::MAX);
        let first = self.exchange.next_sequence(count.saturating_add(1));
        let requests = || steps.iter().map(|step| (&step.request, step.flags | NLM_F_ACK));
        let all = || [(begin, 0)].into_iter().chain(requests()).chain([(end, 0)]);
        // Allocated at once: growing would leave a copy behind.
        let length = all().map(|(request, _)| frame::encoded_len(request)).sum();
        let mut buffer = Buffer { bytes: Vec::with_capacity(length), secret: P::SECRET };
        let mut sequence = first;
        for (request, flags) in all() {
            frame::append(&mut buffer.bytes, request, flags, sequence);
            sequence = sequence.wrapping_add(1);
        }
        self.exchange.run_transaction(&buffer.bytes, first, count)
    }

    fn run<E: From<NetlinkError>>(
        &mut self,
        request: &P::Request,
        flags: u16,
        take: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sequence = self.exchange.next_sequence(0);
        self.exchange.run(&encoded::<P>(request, flags, sequence).bytes, sequence, take).map(drop)
    }
}

fn encoded<P: Protocol>(request: &P::Request, flags: u16, sequence: u32) -> Buffer {
    Buffer { bytes: frame::encode(request, flags, sequence), secret: P::SECRET }
}

impl Transport for netlink_sys::Socket {
    fn send(&mut self, datagram: &[u8]) -> Result<(), NetlinkError> {
        make_room(self, datagram.len())
            .and_then(|()| Ok(retry_on_intr(|| send(&*self, datagram, SendFlags::empty()))?))
            .map(drop)
            .map_err(|source| NetlinkError::Socket { operation: "write to", source })
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, NetlinkError> {
        let received = retry_on_intr(|| recv(&*self, &mut *buffer, RecvFlags::TRUNC));
        received
            .map(|(_, length)| length)
            .map_err(|errno| NetlinkError::Socket { operation: "read from", source: errno.into() })
    }
}

/// Lets the socket take a datagram of this many bytes at once: by default it refuses an nftables transaction with the
/// addresses of some thousand nodes (EMSGSIZE), and splitting it would open a gap.
fn make_room(socket: &netlink_sys::Socket, bytes: usize) -> io::Result<()> {
    // Every socket has room for that (`SOCK_MIN_SNDBUF`); most requests are shorter.
    if bytes < RESERVE {
        return Ok(());
    }
    // The kernel keeps some of the room for itself (`netlink_sendmsg` in `net/netlink/af_netlink.c`).
    let wanted = bytes + RESERVE;
    if sockopt::socket_send_buffer_size(socket)? < wanted {
        // Beyond the machine's limit for everybody: CAP_NET_ADMIN may, and a change needs that anyway.
        sockopt::set_socket_send_buffer_size_force(socket, wanted)?;
    }
    Ok(())
}
