//! DEL: succeeds when nothing is left, even if there was nothing.

use linux::veth;

use crate::attachment::Attachment;
use crate::conf::Conf;
use crate::error::CniError;
use crate::store::Store;

/// The link is removed first: as long as it exists its addresses must not be reused.
pub(super) fn run(conf: &Conf, attachment: &Attachment) -> Result<(), CniError> {
    veth::detach(&attachment.host_link())?;
    let Some(store) = Store::open_existing(&conf.state_dir)? else { return Ok(()) };
    for stored in store.find(attachment)? {
        store.release(&stored)?;
    }
    Ok(())
}
