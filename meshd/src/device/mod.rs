//! What the daemon adds to WireGuard devices: the selection of a backend, and what the kernel's does not do itself: it counts
//! how often endpoints drifted, and refuses handshakes of a peer from before it was added again.

mod again;
mod backend;
mod drift;

use kernel_wireguard::Kernel;
use wireguard::{Device, DeviceError, LinkName};

pub use again::{Former, add_again};
pub use backend::{BackendOption, KernelUnavailable, ProbeError, SelectedBackend, select};
pub use drift::Drifts;

/// Takes over the device that an earlier process left on this link, if it runs without a process.
pub fn adopt(link: &LinkName) -> Result<Option<Box<dyn Device>>, DeviceError> {
    Ok(Kernel::open(link)?.map(|kernel| Box::new(kernel) as Box<dyn Device>))
}
