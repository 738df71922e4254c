//! DEL: always succeeds when nothing is left, whether there was anything or not.

use linux::veth;

use crate::attachment::Attachment;
use crate::conf::Conf;
use crate::error::CniError;
use crate::store::Store;

/// The link goes first: while it is there its addresses are not given to anybody else.
pub(super) fn run(conf: &Conf, attachment: &Attachment) -> Result<(), CniError> {
    veth::detach(&attachment.host_link())?;
    let Some(store) = Store::open_existing(&conf.state_dir)? else { return Ok(()) };
    for stored in store.find(attachment)? {
        store.release(&stored)?;
    }
    Ok(())
}
