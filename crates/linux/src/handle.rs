//! The daemon's rtnetlink connection.

use std::collections::BTreeMap;

use futures::StreamExt as _;
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
        let (connection, rtnetlink, _) = rtnetlink::new_connection()
            .map_err(|source| HostError::netlink("open a netlink connection", Subject::Links, source))?;
        tokio::spawn(connection);
        Ok(Self { rtnetlink })
    }

    /// Names of all links by interface index.
    pub(crate) async fn link_names(&self) -> Result<BTreeMap<u32, String>, HostError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let found = self.dump("list", &Subject::Links, &request).await?;
        let links = found.iter().filter_map(|found| match found {
            RouteNetlinkMessage::NewLink(link) => Some((link.header.index, message::name_of(link)?)),
            _ => None,
        });
        Ok(links.map(|(index, name)| (index, name.to_owned())).collect())
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
            let mut answers = self.rtnetlink.clone().request(message).map_err(failed)?;
            let (mut found, mut unchanged) = (Vec::new(), true);
            while let Some(answer) = answers.next().await {
                unchanged &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) => {
                        return Err(HostError::netlink(operation, subject.clone(), error.to_io()));
                    }
                    _ => {}
                }
            }
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
