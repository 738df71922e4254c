//! The connection to the kernel's routing side.

use futures::TryStreamExt as _;
use std::collections::BTreeMap;

use plan::network::LinkName;

use crate::error::{HostError, Subject};

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

    /// Names of all links by their number.
    pub(crate) async fn link_names(&self) -> Result<BTreeMap<u32, String>, HostError> {
        let mut links = self.rtnetlink.link().get().execute();
        let mut names = BTreeMap::new();
        let failed = |error| HostError::rtnetlink("list links", Subject::Links, &error);
        while let Some(message) = links.try_next().await.map_err(failed)? {
            if let Some(name) = crate::link::name_of(&message) {
                names.insert(message.header.index, name.to_owned());
            }
        }
        Ok(names)
    }

    /// The number of a link that must be there.
    pub(crate) async fn index(&self, operation: &'static str, link: &LinkName) -> Result<u32, HostError> {
        let found = self.link(link).await?;
        found.map(|state| state.index).ok_or_else(|| HostError::NoLink { operation, link: link.clone() })
    }
}
