//! Which backend carries the packets: as configured, else the kernel if it can.

use kernel_wireguard::Kernel;
use linux::{Handle, HostError};
use wireguard::{Backend, Device as _, DeviceError, LinkName, LinkNameError};

/// Name of the link that is made and deleted to see whether the kernel can.
const PROBE: &str = "meshd-probe";

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The kernel if it has WireGuard, else an engine in this process.
    Auto,
    /// This one, or nothing.
    Only(Backend),
}

/// The backend that was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The backend.
    pub backend: Backend,
    /// Why this one, for people.
    pub reason: String,
}

/// The kernel was asked for, and can't.
#[derive(Debug, thiserror::Error)]
#[error("option backend: kernel: a WireGuard link could not be made and read; set it to auto or userspace")]
pub struct NoKernel {
    /// What went wrong.
    pub source: ProbeError,
}

/// What went wrong with the attempt.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel has no WireGuard, or does not let us have it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The link could not be deleted, or its name could not be freed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The link's name is none.
    #[error(transparent)]
    Name(#[from] LinkNameError),
}

/// Chooses once, at the start. The kernel's WireGuard is tried out: a link is made, read and deleted.
pub async fn choose(wish: Wish, host: &Handle) -> Result<Chosen, NoKernel> {
    let chosen = |backend, reason: &str| Ok(Chosen { backend, reason: reason.to_owned() });
    if wish == Wish::Only(Backend::Userspace) {
        return chosen(Backend::Userspace, "option backend");
    }
    match (wish, attempt(host).await) {
        (Wish::Auto, Ok(())) => chosen(Backend::Kernel, "the kernel has WireGuard"),
        (Wish::Auto, Err(error)) => chosen(
            Backend::Userspace,
            &format!("the kernel's can't be used: {}", crate::chain::Chain(&error)),
        ),
        (Wish::Only(_), Ok(())) => chosen(Backend::Kernel, "option backend"),
        (Wish::Only(_), Err(source)) => Err(NoKernel { source }),
    }
}

async fn attempt(host: &Handle) -> Result<(), ProbeError> {
    let probe: LinkName = PROBE.parse()?;
    // One that an attempt left behind when it was killed.
    host.delete_link(&probe).await?;
    let made = Kernel::create(&probe).and_then(|mut kernel| kernel.state());
    host.delete_link(&probe).await?;
    made?;
    Ok(())
}
