//! Places at which a test can let the daemon die, to see that it comes back whole. Not in release builds.

/// Dies here, as by SIGKILL, if `MESHD_DIE_AT` is `PLACE` or `PLACE:N` and this is the N-th time (from 1) that the
/// process comes by this place.
#[cfg(debug_assertions)]
pub(crate) fn point(place: &str) {
    use std::sync::Mutex;

    static SEEN: Mutex<u32> = Mutex::new(0);
    let Ok(wanted) = std::env::var("MESHD_DIE_AT") else { return };
    let (name, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if name != place {
        return;
    }
    let Ok(mut seen) = SEEN.lock() else { return };
    *seen += 1;
    if Ok(*seen) == count.parse() {
        // Nothing is flushed, no destructor runs. A process can't fail to kill itself.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub(crate) const fn point(_place: &str) {}
