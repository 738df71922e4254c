//! Requests to the kernel's routing side without a runtime, for programs that live for milliseconds.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::error::{HostError, Subject};
use crate::handle::ATTEMPTS;

/// Largest answer that is read at once; the kernel fills at most 32 KiB.
const ANSWER: usize = 1 << 16;

/// What the kernel said.
struct Answers {
    found: Vec<RouteNetlinkMessage>,
    /// Whether nothing changed while it was read (`NLM_F_DUMP_INTR`).
    whole: bool,
}

/// A blocking netlink connection in the network namespace of the thread that opened it.
pub(crate) struct Exchange {
    socket: Socket,
    sequence: u32,
}

impl Exchange {
    /// Opens the connection.
    pub(crate) fn open() -> Result<Self, HostError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            io::Result::Ok(socket)
        };
        let socket = open().map_err(|source| HostError::netlink("open netlink", Subject::Links, source))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Performs one request and waits until the kernel has done it.
    pub(crate) fn perform(
        &mut self,
        operation: &'static str,
        subject: &Subject,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), HostError> {
        self.send(operation, subject, request, flags | NLM_F_ACK)?;
        self.answers(operation, subject).map(drop)
    }

    /// Asks for everything of one kind, again when it changed meanwhile: then something that stood all the time
    /// may be missing.
    pub(crate) fn dump(
        &mut self,
        operation: &'static str,
        subject: &Subject,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, HostError> {
        let mut attempt = 1;
        loop {
            self.send(operation, subject, request.clone(), NLM_F_DUMP)?;
            let answers = self.answers(operation, subject)?;
            if answers.whole || attempt == ATTEMPTS {
                return Ok(answers.found);
            }
            attempt += 1;
        }
    }

    /// Asks for one thing. `None` if it is not there.
    pub(crate) fn find(
        &mut self,
        operation: &'static str,
        subject: &Subject,
        request: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, HostError> {
        self.send(operation, subject, request, NLM_F_ACK)?;
        match self.answers(operation, subject) {
            Ok(answers) => Ok(answers.found.into_iter().next()),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn send(
        &mut self,
        operation: &'static str,
        subject: &Subject,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), HostError> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = self.socket.send(&bytes, 0);
        sent.map(drop).map_err(|source| HostError::netlink(operation, subject.clone(), source))
    }

    /// Reads until the kernel says that it is done.
    fn answers(&self, operation: &'static str, subject: &Subject) -> Result<Answers, HostError> {
        let failed = |source| HostError::netlink(operation, subject.clone(), source);
        let mut answers = Answers { found: Vec::new(), whole: true };
        let mut buffer = bytes::BytesMut::with_capacity(ANSWER);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0).map_err(failed)?;
            let mut rest = buffer.as_ref();
            while rest.len() >= 16 {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|source| HostError::Decode { operation, subject: subject.clone(), source })?;
                let len = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(len..).unwrap_or_default();
                // An answer to a request that failed before on the same socket.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                answers.whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(failed(io::Error::from_raw_os_error(-done.code)));
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => match error.code {
                        Some(code) => return Err(failed(io::Error::from_raw_os_error(-code.get()))),
                        None => return Ok(answers),
                    },
                    NetlinkPayload::InnerMessage(inner) => answers.found.push(inner),
                    _ => {}
                }
            }
        }
    }
}
