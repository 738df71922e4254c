//! The daemon's rtnetlink connection.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt as _};
use netlink::DUMP_ATTEMPTS;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use plan::network::LinkName;

use crate::error::{HostError, Subject};
use crate::message;

/// A netlink connection in the network namespace of the thread that opened it. Needs a tokio runtime, on
/// which it keeps one task.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) rtnetlink: rtnetlink::Handle,
}

impl Handle {
    /// Opens the connection.
    pub fn open() -> Result<Self, HostError> {
        let (mut connection, rtnetlink, _) = rtnetlink::new_connection()
            .map_err(|source| HostError::netlink("open a netlink connection", Subject::Links, source))?;
        // The end of a dump says whether it failed, and without an end it is not complete.
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Self { rtnetlink })
    }

    /// Names of all links by interface index.
    pub(crate) async fn link_names(&self) -> Result<BTreeMap<u32, String>, HostError> {
        let links = self.link_messages().await?;
        let named =
            links.iter().filter_map(|link| Some((link.header.index, message::name_of(link)?.to_owned())));
        Ok(named.collect())
    }

    /// All links.
    pub(crate) async fn link_messages(&self) -> Result<Vec<LinkMessage>, HostError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let found = self.dump("list", &Subject::Links, &request).await?;
        let links = found.into_iter().filter_map(|found| match found {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        Ok(links.collect())
    }

    /// Everything of one kind. Read again if it changed meanwhile, because then something that was there all the time
    /// may be missing; after [`DUMP_ATTEMPTS`] what was read last counts.
    pub(crate) async fn dump(
        &self,
        operation: &'static str,
        subject: &Subject,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, HostError> {
        let mut attempt = 1;
        loop {
            let mut message = NetlinkMessage::from(request.clone());
            message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let failed = |error| HostError::rtnetlink(operation, subject.clone(), &error);
            let answers = self.rtnetlink.clone().request(message).map_err(failed)?;
            let (found, unchanged) = collect(operation, subject, answers).await?;
            if unchanged || attempt == DUMP_ATTEMPTS {
                return Ok(found);
            }
            attempt += 1;
        }
    }

    /// The interface index of a link that must exist.
    pub(crate) async fn index(&self, operation: &'static str, link: &LinkName) -> Result<u32, HostError> {
        let found = self.link_message(link).await?;
        found
            .map(|message| message.header.index)
            .ok_or_else(|| HostError::NoLink { operation, link: link.clone() })
    }
}

/// The answers of one dump, and whether nothing changed while they were read.
async fn collect(
    operation: &'static str,
    subject: &Subject,
    answers: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
) -> Result<(Vec<RouteNetlinkMessage>, bool), HostError> {
    let mut answers = std::pin::pin!(answers);
    let (mut found, mut unchanged, mut ended) = (Vec::new(), true, false);
    while let Some(answer) = answers.next().await {
        unchanged &= answer.header.flags & NLM_F_DUMP_INTR == 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => found.push(message),
            NetlinkPayload::Error(error) => {
                return Err(HostError::netlink(operation, subject.clone(), error.to_io()));
            }
            NetlinkPayload::Done(end) if end.code < 0 => {
                let error = std::io::Error::from_raw_os_error(-end.code);
                return Err(HostError::netlink(operation, subject.clone(), error));
            }
            NetlinkPayload::Done(_) => ended = true,
            _ => {}
        }
    }
    if ended { Ok((found, unchanged)) } else { Err(HostError::Ended { operation, subject: subject.clone() }) }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use netlink_packet_core::{DoneMessage, NLMSG_DONE, NetlinkHeader};

    use super::*;

    fn link() -> NetlinkMessage<RouteNetlinkMessage> {
        RouteNetlinkMessage::NewLink(LinkMessage::default()).into()
    }

    fn end(code: i32, flags: u16) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut header = NetlinkHeader::default();
        (header.message_type, header.flags) = (NLMSG_DONE, flags);
        let mut end = DoneMessage::default();
        end.code = code;
        NetlinkMessage::new(header, NetlinkPayload::Done(end))
    }

    async fn of(
        answers: Vec<NetlinkMessage<RouteNetlinkMessage>>,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), HostError> {
        collect("list", &Subject::Links, stream::iter(answers)).await
    }

    #[tokio::test]
    async fn a_dump_that_ends_with_an_error_or_not_at_all_is_not_taken_for_a_whole_one() {
        let (found, unchanged) = of(vec![link(), link(), end(0, 0)]).await.unwrap();
        assert_eq!((found.len(), unchanged), (2, true));
        assert!(!of(vec![link(), end(0, NLM_F_DUMP_INTR)]).await.unwrap().1, "it changed meanwhile");
        let error = of(vec![link(), end(-12, 0)]).await.unwrap_err();
        assert_eq!(error.errno(), Some(12));
        assert!(matches!(of(vec![link()]).await, Err(HostError::Ended { .. })));
    }
}
