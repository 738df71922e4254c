//! Forgets all connections of a network namespace, for which nft has no command.

use std::io;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`, `include/uapi/linux/netfilter/nfnetlink{,_conntrack}.h`.
const DELETE: u16 = (1 << 8) | 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const FLAGS: u16 = 1 | 4;
/// Bytes of `struct nlmsghdr` and `struct nfgenmsg`.
const LENGTH: u32 = 16 + 4;
/// Where an acknowledgement has its error code: behind its own header.
const ERROR_AT: usize = 16;

/// Deletes every entry in the calling thread's network namespace: a deletion that names none means all.
pub(super) fn flush() -> io::Result<()> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    let mut request = Vec::new();
    request.extend(LENGTH.to_ne_bytes());
    request.extend(DELETE.to_ne_bytes());
    request.extend(FLAGS.to_ne_bytes());
    // Sequence and port number, then family, version and resource: none.
    request.extend([0; 12]);
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0; 256];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    let code = answer.get(..length).and_then(|answer| answer.get(ERROR_AT..)?.first_chunk().copied());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}
