//! nftables over netlink: one transaction to change, dumps to read.

use netlink::{Message, NetlinkError, Protocol, Socket, Step};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NetlinkDeserializable as _, NetlinkHeader};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use super::Table;
use crate::error::{HostError, Subject};

/// `NFNL_SUBSYS_NFTABLES` (`include/uapi/linux/netfilter/nfnetlink.h`).
const SUBSYSTEM: u16 = 10;

#[derive(Debug)]
pub(crate) enum Netfilter {}

impl Protocol for Netfilter {
    const NUMBER: isize = NETLINK_NETFILTER;
    type Request = NetfilterMessage;
}

/// The family of a table.
pub(crate) type Family = NetfilterProtoFamily;

/// A change within a transaction.
pub(crate) enum Change {
    /// Creates something, a rule as the last one of its chain.
    Add(NfTablesMessage),
    /// Creates a rule before the one at the position that it names.
    Insert(NfTablesMessage),
    /// Removes something.
    Remove(NfTablesMessage),
}

impl Change {
    fn into_step(self, family: Family) -> Step<NetfilterMessage> {
        let (message, flags) = match self {
            Self::Add(message) => (message, NLM_F_CREATE | NLM_F_APPEND),
            Self::Insert(message) => (message, NLM_F_CREATE),
            Self::Remove(message) => (message, 0),
        };
        Step { request: nftables(family, message), flags }
    }
}

/// Performs all changes or none of them.
pub(crate) fn transact(
    operation: &'static str,
    table: &Table,
    changes: Vec<Change>,
) -> Result<(), HostError> {
    let changes = changes.into_iter().map(|change| (Family::Inet, change)).collect();
    transact_in(operation, table.subject.clone(), changes)
}

/// The same in tables of any family.
pub(crate) fn transact_in(
    operation: &'static str,
    subject: Subject,
    changes: Vec<(Family, Change)>,
) -> Result<(), HostError> {
    let done = Socket::open().and_then(|mut socket| transact_on(&mut socket, changes));
    done.map_err(|source| HostError::netlink(operation, subject, source))
}

/// The same on a socket of the caller's, which may own a table.
pub(crate) fn transact_on(
    socket: &mut Socket<Netfilter>,
    changes: Vec<(Family, Change)>,
) -> Result<(), NetlinkError> {
    let steps: Vec<_> = changes.into_iter().map(|(family, change)| change.into_step(family)).collect();
    let (begin, end) = (control(ControlMessage::BatchBegin), control(ControlMessage::BatchEnd));
    socket.transaction(&begin, &steps, &end)
}

/// Reads one thing. `None` if it does not exist.
pub(crate) fn get(
    operation: &'static str,
    table: &Table,
    request: NfTablesMessage,
) -> Result<Option<NfTablesMessage>, HostError> {
    get_in(operation, table.subject.clone(), Family::Inet, request)
}

/// The same in a table of any family.
pub(crate) fn get_in(
    operation: &'static str,
    subject: Subject,
    family: Family,
    request: NfTablesMessage,
) -> Result<Option<NfTablesMessage>, HostError> {
    let request = nftables(family, request);
    let mut found = None;
    let take = |message: Message<'_>| {
        found = decode(&message)?;
        Ok::<_, NetlinkError>(())
    };
    match Socket::<Netfilter>::open().and_then(|mut socket| socket.get(&request, take)) {
        Ok(()) => Ok(found),
        Err(error) if error.errno() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
        Err(source) => Err(HostError::netlink(operation, subject, source)),
    }
}

/// Dumps everything of one kind. `Ok(None)` if the table does not exist.
pub(crate) fn dump(
    operation: &'static str,
    table: &Table,
    request: NfTablesMessage,
) -> Result<Option<Vec<NfTablesMessage>>, HostError> {
    dump_with(operation, table, request, |message| decode(&message))
}

pub(crate) fn decode(message: &Message<'_>) -> Result<Option<NfTablesMessage>, NetlinkError> {
    let mut header = NetlinkHeader::default();
    header.message_type = message.kind;
    Ok(match NetfilterMessage::deserialize(&header, message.body)?.inner {
        NetfilterMessageInner::NfTables(inner) => Some(inner),
        _ => None,
    })
}

/// The same with a reader of the caller's. If any table on the node changes during every attempt, what was read may mix
/// two states; the caller finds that it differs, and reads or sets it again.
pub(crate) fn dump_with<T>(
    operation: &'static str,
    table: &Table,
    request: NfTablesMessage,
    read: impl Fn(Message<'_>) -> Result<Option<T>, NetlinkError>,
) -> Result<Option<Vec<T>>, HostError> {
    dump_in(operation, table.subject.clone(), Family::Inet, request, read)
}

/// The same in tables of any family.
pub(crate) fn dump_in<T>(
    operation: &'static str,
    subject: Subject,
    family: Family,
    request: NfTablesMessage,
    read: impl Fn(Message<'_>) -> Result<Option<T>, NetlinkError>,
) -> Result<Option<Vec<T>>, HostError> {
    let request = nftables(family, request);
    let take = |found: &mut Vec<T>, message: Message<'_>| {
        found.extend(read(message)?);
        Ok::<_, NetlinkError>(())
    };
    match Socket::<Netfilter>::open().and_then(|mut socket| socket.dump(&request, Vec::new, take)) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.errno() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
        Err(source) => Err(HostError::netlink(operation, subject, source)),
    }
}

fn nftables(family: Family, message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn control(message: ControlMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), message)
}
