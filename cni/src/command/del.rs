//! DEL: always succeeds when nothing is left, whether there was anything or not.

use linux::veth;

use crate::call::Attachment;
use crate::conf::Conf;
use crate::error::CniError;
use crate::store::{Store, host_link};

/// The link goes first: while it is there its addresses are not given to anybody else.
pub(super) fn run(conf: &Conf, attachment: &Attachment) -> Result<(), CniError> {
    veth::detach(&host_link(attachment))?;
    let Some(store) = Store::open_existing(&conf.state_dir)? else { return Ok(()) };
    for stored in store.find(attachment)? {
        store.release(&stored)?;
    }
    Ok(())
}
