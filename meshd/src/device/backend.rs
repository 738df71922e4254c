//! Selects the backend of new devices: as configured, or the kernel's if it can be used.

use kernel_wireguard::Kernel;
use linux::{Handle, HostError};
use wireguard::{Backend, Device as _, DeviceError, LinkName, LinkNameError};

/// Name of the link that is created and deleted to find out whether the kernel's WireGuard can be used.
const PROBE_LINK: &str = "meshd-probe";

/// The option `backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendOption {
    /// The kernel's WireGuard if it can be used, otherwise an engine in this process.
    Auto,
    /// This backend only.
    Only(Backend),
}

/// The selected backend, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedBackend {
    /// The backend.
    pub backend: Backend,
    /// Why it was selected, for people.
    pub reason: String,
}

/// The kernel backend is configured but cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "option backend: kernel: a WireGuard link could not be created and read; set it to auto or userspace"
)]
pub struct KernelUnavailable {
    /// What went wrong.
    pub source: ProbeError,
}

/// Why the kernel's WireGuard could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel has no WireGuard, or this process may not use it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The link could not be deleted, before or after.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The link's name is not valid.
    #[error(transparent)]
    Name(#[from] LinkNameError),
}

/// Selects the backend, once at start. The kernel's WireGuard is probed: a link is created, read and deleted.
pub async fn select(option: BackendOption, host: &Handle) -> Result<SelectedBackend, KernelUnavailable> {
    let selected = |backend, reason: &str| Ok(SelectedBackend { backend, reason: reason.to_owned() });
    if option == BackendOption::Only(Backend::Userspace) {
        return selected(Backend::Userspace, "option backend");
    }
    match (option, probe(host).await) {
        (BackendOption::Auto, Ok(())) => selected(Backend::Kernel, "the kernel has WireGuard"),
        (BackendOption::Auto, Err(error)) => selected(
            Backend::Userspace,
            &format!("the kernel's can't be used: {}", crate::chain::Chain(&error)),
        ),
        (BackendOption::Only(_), Ok(())) => selected(Backend::Kernel, "option backend"),
        (BackendOption::Only(_), Err(source)) => Err(KernelUnavailable { source }),
    }
}

async fn probe(host: &Handle) -> Result<(), ProbeError> {
    let link: LinkName = PROBE_LINK.parse()?;
    // One left by a process that was killed while it probed.
    host.delete_link(&link).await?;
    let read = Kernel::create(&link).and_then(|mut kernel| kernel.state());
    host.delete_link(&link).await?;
    read?;
    Ok(())
}
