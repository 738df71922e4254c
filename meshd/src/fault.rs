//! Places at which a test can let the daemon die, to see that it comes back whole. Not in release builds.

/// Whether a rotation has begun in this process: what comes before it is not counted.
#[cfg(debug_assertions)]
static ARMED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// A rotation begins: from here on places count.
pub(crate) fn arm() {
    #[cfg(debug_assertions)]
    ARMED.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// Dies here, as by SIGKILL, if `MESHD_DIE_AT` is `PLACE:N` and this is the N-th time (from 1) that the process comes
/// by this place since a rotation began.
#[cfg(debug_assertions)]
pub(crate) fn point(place: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static SEEN: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("MESHD_DIE_AT") else { return };
    let Some((name, count)) = wanted.split_once(':') else { return };
    if name != place || !ARMED.load(Ordering::Relaxed) {
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
pub(crate) const fn point(_place: &str) {}
