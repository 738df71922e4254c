//! One interface of one container, and the names that are derived from it.

use linux::POD_LINK_PREFIX;
use linux::veth::Mac;
use sha2::{Digest as _, Sha256};
use wireguard::LinkName;

/// Which interface of which container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attachment {
    /// The container's id as the runtime has it.
    pub(crate) container: String,
    /// Name of the interface inside.
    pub(crate) interface: String,
}

impl Attachment {
    /// Name of the node's end of the pair: the same for every call about the same attachment.
    pub(crate) fn host_link(&self) -> String {
        let [first, second, third, fourth, fifth, ..] = self.digest("link");
        format!("{POD_LINK_PREFIX}{first:02x}{second:02x}{third:02x}{fourth:02x}{fifth:02x}")
    }

    /// An Ethernet address of the attachment's own for one end of the pair: locally administered, unicast (IEEE 802, section
    /// 8.2).
    pub(crate) fn mac(&self, end: &str) -> Mac {
        let [first, second, third, fourth, fifth, sixth, ..] = self.digest(end);
        [first & 0b1111_1100 | 0b0000_0010, second, third, fourth, fifth, sixth]
    }

    /// A digest of the attachment for one purpose.
    pub(crate) fn digest(&self, purpose: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [purpose, &self.container, &self.interface] {
            hash.update(part);
            hash.update([0]);
        }
        hash.finalize().into()
    }
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`: what the CNI specification (sections 1 and 2)
/// allows in names of networks and ids of containers.
pub(crate) fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) && text.len() <= 255
}

/// What the kernel takes as an interface's name.
pub(crate) fn is_interface(text: &str) -> bool {
    text.parse::<LinkName>().is_ok()
}
