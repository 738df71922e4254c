//! Talks to nftables over netlink: one transaction to change, dumps to look.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::error::{HostError, Subject};

/// `NFNL_SUBSYS_NFTABLES` (`include/uapi/linux/netfilter/nfnetlink.h`).
const SUBSYSTEM: u16 = 10;
/// Largest answer that is read at once; the kernel fills at most 32 KiB (`NLMSG_GOODSIZE` in dumps).
const ANSWER: usize = 1 << 16;
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
    socket.send(&batch, 0).map_err(failed)?;
    let mut acknowledged = 0;
    while acknowledged < count {
        for message in receive(&socket, operation)? {
            if let NetlinkPayload::Error(error) = message.payload {
                match error.code.map(|code| -code.get()) {
                    Some(errno) => return Err(failed(std::io::Error::from_raw_os_error(errno))),
                    None => acknowledged += 1,
                }
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
    for _ in 1..ATTEMPTS {
        if let (found, Whole(true)) = dump_once(operation, request.clone())? {
            return Ok(found);
        }
    }
    // What was read may be half of each; the caller sees it as "not as it should be" and looks or sets again.
    Ok(dump_once(operation, request.clone())?.0)
}

/// Whether nothing changed while a dump was read.
struct Whole(bool);

fn dump_once(
    operation: &'static str,
    request: NfTablesMessage,
) -> Result<(Option<Vec<NfTablesMessage>>, Whole), HostError> {
    let failed = |source| HostError::netlink(operation, Subject::Guard, source);
    let socket = open().map_err(failed)?;
    let mut buffer = Vec::new();
    append(&mut buffer, nftables(request), 1, NLM_F_REQUEST | NLM_F_DUMP);
    socket.send(&buffer, 0).map_err(failed)?;
    let (mut found, mut whole) = (Vec::new(), true);
    loop {
        for message in receive(&socket, operation)? {
            whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok((Some(found), Whole(whole))),
                NetlinkPayload::Error(error) => match error.code.map(|code| -code.get()) {
                    Some(errno) if errno == rustix::io::Errno::NOENT.raw_os_error() => {
                        return Ok((None, Whole(true)));
                    }
                    Some(errno) => return Err(failed(std::io::Error::from_raw_os_error(errno))),
                    None => {}
                },
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::NfTables(inner),
                    ..
                }) => found.push(inner),
                _ => {}
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

fn receive(
    socket: &Socket,
    operation: &'static str,
) -> Result<Vec<NetlinkMessage<NetfilterMessage>>, HostError> {
    let failed = |source| HostError::netlink(operation, Subject::Guard, source);
    let mut buffer = bytes::BytesMut::with_capacity(ANSWER);
    socket.recv(&mut buffer, 0).map_err(failed)?;
    let mut rest = buffer.as_ref();
    let mut messages = Vec::new();
    while rest.len() >= 16 {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
            .map_err(|source| HostError::Decode { operation, subject: Subject::Guard, source })?;
        // Messages are aligned to four bytes (`NLMSG_ALIGN`).
        let len = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
        messages.push(message);
        rest = rest.get(len..).unwrap_or_default();
    }
    Ok(messages)
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
