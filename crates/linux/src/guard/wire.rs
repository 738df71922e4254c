//! Talks to nftables over netlink: one transaction to change, dumps to look.

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt;

use crate::error::{HostError, Subject};

/// `NFNL_SUBSYS_NFTABLES` (`include/uapi/linux/netfilter/nfnetlink.h`).
const SUBSYSTEM: u16 = 10;
/// Largest answer that is read at once; the kernel fills at most 32 KiB (`NLMSG_GOODSIZE` in dumps).
const ANSWER: usize = 1 << 16;
/// Room in a socket beside the message itself.
const RESERVE: usize = 4096;
/// How often a dump is read again when tables, of anybody's, changed under it (`NLM_F_DUMP_INTR`).
const ATTEMPTS: usize = 5;

/// What a message in a transaction does.
pub(super) enum Step {
    /// Makes something.
    Add(NfTablesMessage),
    /// Removes something.
    Remove(NfTablesMessage),
}

/// Performs all steps or none of them.
pub(super) fn transact(operation: &'static str, steps: Vec<Step>) -> Result<(), HostError> {
    let failed = |source| HostError::netlink(operation, Subject::Guard, source);
    let socket = open().map_err(failed)?;
    let count = steps.len();
    let mut batch = Vec::new();
    append(&mut batch, control(ControlMessage::BatchBegin), 0, NLM_F_REQUEST);
    for (sequence, step) in (1..).zip(steps) {
        let (message, flags) = match step {
            Step::Add(message) => (message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND),
            Step::Remove(message) => (message, NLM_F_REQUEST | NLM_F_ACK),
        };
        append(&mut batch, nftables(message), sequence, flags);
    }
    let last = u32::try_from(count + 1).unwrap_or(u32::MAX);
    append(&mut batch, control(ControlMessage::BatchEnd), last, NLM_F_REQUEST);
    make_room(&socket, batch.len()).map_err(failed)?;
    socket.send(&batch, 0).map_err(failed)?;
    let mut acknowledged = 0;
    while acknowledged < count {
        let answer = receive(&socket).map_err(failed)?;
        for bytes in messages(&answer) {
            let refused = refusal(bytes).map_err(|source| HostError::Decode {
                operation,
                subject: Subject::Guard,
                source,
            })?;
            match refused {
                Some(errno) => return Err(failed(std::io::Error::from_raw_os_error(errno))),
                None => acknowledged += 1,
            }
        }
    }
    Ok(())
}

/// Asks for everything of one kind. `Ok(None)` if the table does not exist.
pub(super) fn dump(
    operation: &'static str,
    request: &NfTablesMessage,
) -> Result<Option<Vec<NfTablesMessage>>, HostError> {
    dump_with(operation, request, |bytes| {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(bytes)?;
        Ok(match message.payload {
            NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::NfTables(inner),
                ..
            }) => Some(inner),
            _ => None,
        })
    })
}

/// The same with a reader of one's own, which gets each message with its header.
pub(super) fn dump_with<T>(
    operation: &'static str,
    request: &NfTablesMessage,
    read: impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
) -> Result<Option<Vec<T>>, HostError> {
    for _ in 1..ATTEMPTS {
        if let (found, Whole(true)) = dump_once(operation, request.clone(), &read)? {
            return Ok(found);
        }
    }
    // What was read may be half of each; the caller sees it as "not as it should be" and looks or sets again.
    Ok(dump_once(operation, request.clone(), &read)?.0)
}

/// Whether nothing changed while a dump was read.
struct Whole(bool);

fn dump_once<T>(
    operation: &'static str,
    request: NfTablesMessage,
    read: &impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
) -> Result<(Option<Vec<T>>, Whole), HostError> {
    let failed = |source| HostError::netlink(operation, Subject::Guard, source);
    let unreadable = |source| HostError::Decode { operation, subject: Subject::Guard, source };
    let socket = open().map_err(failed)?;
    let mut buffer = Vec::new();
    append(&mut buffer, nftables(request), 1, NLM_F_REQUEST | NLM_F_DUMP);
    socket.send(&buffer, 0).map_err(failed)?;
    let (mut found, mut whole) = (Vec::new(), true);
    loop {
        let answer = receive(&socket).map_err(failed)?;
        for bytes in messages(&answer) {
            let header = NetlinkBuffer::new_checked(bytes).map_err(unreadable)?;
            whole &= header.flags() & NLM_F_DUMP_INTR == 0;
            match header.message_type() {
                NLMSG_DONE => return Ok((Some(found), Whole(whole))),
                NLMSG_ERROR => match refusal(bytes).map_err(unreadable)? {
                    Some(errno) if errno == rustix::io::Errno::NOENT.raw_os_error() => {
                        return Ok((None, Whole(true)));
                    }
                    Some(errno) => return Err(failed(std::io::Error::from_raw_os_error(errno))),
                    None => {}
                },
                _ => found.extend(read(bytes).map_err(unreadable)?),
            }
        }
    }
}

fn open() -> std::io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Lets the socket take a transaction of this many bytes at once: by default it refuses one with the addresses of
/// some thousand nodes (EMSGSIZE), and to split it would open a gap.
fn make_room(socket: &Socket, bytes: usize) -> std::io::Result<()> {
    // The kernel keeps some of the room for itself (`netlink_sendmsg` in `net/netlink/af_netlink.c`).
    let wanted = bytes + RESERVE;
    if sockopt::socket_send_buffer_size(socket)? < wanted {
        // Beyond the machine's limit for everybody: CAP_NET_ADMIN may, and who has it not can't set a guard.
        sockopt::set_socket_send_buffer_size_force(socket, wanted)?;
    }
    Ok(())
}

fn receive(socket: &Socket) -> std::io::Result<bytes::BytesMut> {
    let mut buffer = bytes::BytesMut::with_capacity(ANSWER);
    socket.recv(&mut buffer, 0)?;
    Ok(buffer)
}

/// The messages in one answer, each with its header.
fn messages(answer: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = answer;
    std::iter::from_fn(move || {
        let len = usize::try_from(NetlinkBuffer::new_checked(rest).ok()?.length()).ok()?;
        let (message, _) = rest.split_at_checked(len)?;
        // Messages are aligned to four bytes (`NLMSG_ALIGN`).
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The error number in a message of that type; none in an acknowledgement.
fn refusal(bytes: &[u8]) -> Result<Option<i32>, DecodeError> {
    let message = NetlinkMessage::<NetfilterMessage>::deserialize(bytes)?;
    Ok(match message.payload {
        NetlinkPayload::Error(error) => error.code.map(|code| -code.get()),
        _ => None,
    })
}

fn nftables(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message)
}

fn control(message: ControlMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), message)
}

fn append(batch: &mut Vec<u8>, message: NetfilterMessage, sequence: u32, flags: u16) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = batch.len();
    batch.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut batch[start..start + message.buffer_len()]);
}
