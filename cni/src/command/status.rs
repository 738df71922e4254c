//! STATUS: whether an ADD could succeed now.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use super::add::ready;
use crate::conf::Conf;
use crate::error::CniError;
use crate::ipam;
use crate::store::Store;

pub(super) fn run(conf: &Conf) -> Result<(), CniError> {
    let node = ready(conf)?;
    let store = Store::open_existing(&conf.state_dir)?;
    let mut taken = store.as_ref().map_or_else(|| Ok(BTreeSet::new()), Store::taken)?;
    taken.extend(&node.mesh_addresses);
    for ipv4 in [true, false] {
        let ranges: Vec<IpNetwork> =
            node.pod_cidrs.iter().copied().filter(|range| range.is_ipv4() == ipv4).collect();
        if ranges.is_empty() || ipam::next_free(&ranges, &taken, None).is_some() {
            continue;
        }
        // What an ADD would reclaim counts as free.
        if store.as_ref().map_or_else(|| Ok(Vec::new()), Store::gone)?.is_empty() {
            let ranges = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(CniError::Exhausted { ranges });
        }
    }
    Ok(())
}
