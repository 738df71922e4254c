//! Points at which a test can kill the daemon, to check that it recovers. Not in release builds.

/// Whether a rotation has started in this process: earlier points are not counted.
#[cfg(debug_assertions)]
static ARMED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Call when a rotation starts: points count from here on.
pub(crate) fn arm() {
    #[cfg(debug_assertions)]
    ARMED.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// Dies here, by SIGKILL, if `MESHD_DIE_AT` is `POINT:N` and the process passes this point for the N-th time (from 1)
/// since a rotation started.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static SEEN: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("MESHD_DIE_AT") else { return };
    let Some((point, count)) = wanted.split_once(':') else { return };
    if point != name || !ARMED.load(Ordering::Relaxed) {
        return;
    }
    let seen = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
    if Ok(seen) == count.parse() {
        // Nothing is flushed, no destructor runs. A process can't fail to kill itself.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub(crate) const fn point(_name: &str) {}
