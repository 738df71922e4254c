//! The largest packet that passes along one path, found by probes that the peer answers (RFC 8899, DPLPMTUD). Pure.
//!
//! A round is one small probe and some of given sizes. It says something about sizes only if the small one was answered.
//! The MTU is raised only to a size that was answered. What a peer does not answer lowers the MTU of the routes to that
//! peer and nothing else.

use std::time::Duration;

/// The smallest MTU of IPv4 in bytes: what every host can receive (RFC 791 section 3.1).
pub const MIN_IPV4_MTU: u32 = 576;
/// How many rounds a size must be lost in: `MAX_PROBES` (RFC 8899 section 5.1.2).
pub const MAX_PROBES: u8 = 3;
/// In how many if something that must pass, because a larger size did, was lost as well: then the path loses packets of any
/// size.
const MAX_PROBES_IF_LOSSY: u8 = 3 * MAX_PROBES;
/// Between rounds that ask for a size which was lost although it used to pass: longer than most queues are full.
const DOUBT_PAUSE: Duration = Duration::from_millis(800);
/// Between the largest size that passes and the smallest that does not, in bytes, when a search ends: what `WireGuard`
/// pads packets to.
pub const STEP: u32 = 16;
/// Sizes in bytes that are common: smallest ones, through one and two tunnels, Ethernet's and jumbo frames' less
/// [`OVERHEAD`](wireguard::OVERHEAD).
const COMMON: [u32; 7] = [MIN_IPV4_MTU, 768, 1024, 1280, 1360, 1420, 8920];

/// What the MTU may be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What the protocols to this peer require.
    pub smallest: u32,
    /// What the route to its endpoint allows.
    pub largest: u32,
}

/// What an MTU comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Nothing is known but the route to the endpoint; also for peers whose daemon answers no probe with a size.
    #[default]
    Unknown,
    /// Packets of the size that the route allows arrive.
    Route,
    /// Larger ones are lost.
    Probed,
    /// Larger ones are lost, and smaller ones are not allowed.
    Floor,
}

impl Source {
    /// Its name in the status and in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Route => "route",
            Self::Probed => "probed",
            Self::Floor => "floor",
        }
    }
}

/// The search along one path.
#[derive(Clone, Debug)]
pub struct Search {
    limits: Limits,
    /// How long after a search the next one is tried, for larger sizes: `PMTU_RAISE_TIMER` (RFC 8899 section 5.1.1).
    raise_after: Duration,
    size: u32,
    state: State,
    /// When larger sizes are tried again; none if this is the largest, or nothing can be known.
    raise_at: Option<Duration>,
    /// Sizes of the present round that have not been answered.
    open: Vec<u32>,
    /// Whether the peer has ever answered a probe with a size.
    answers_sizes: bool,
    /// Whether not even the smallest size arrives.
    too_small: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is known of this path yet.
    New,
    /// The size passes, or nothing can be known.
    Steady,
    /// The size was lost.
    Doubt(Doubt),
    /// Larger sizes are tried, all at once; in how many rounds they were lost; the smallest that does not pass.
    Climb { trying: Vec<u32>, lost: u8, fails: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doubt {
    /// In how many rounds the size was lost.
    lost: u8,
    /// The largest smaller one that has passed since.
    passed: Option<u32>,
    /// Whether smaller ones than that were lost as well.
    lossy: bool,
    /// When the next round is wanted, and the pause before further ones.
    again: Duration,
    pause: Duration,
}

impl Search {
    /// A path of which only the route is known.
    pub const fn new(limits: Limits, raise_after: Duration) -> Self {
        Self {
            limits,
            raise_after,
            size: limits.largest,
            state: State::New,
            raise_at: None,
            open: Vec::new(),
            answers_sizes: false,
            too_small: false,
        }
    }

    /// The MTU in bytes.
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// What it comes from.
    pub fn source(&self) -> Source {
        let at_route = self.size >= self.limits.largest;
        match self.state {
            _ if !self.answers_sizes => Source::Unknown,
            State::New if at_route => Source::Unknown,
            _ if at_route && !self.too_small => Source::Route,
            _ if self.size <= self.limits.smallest => Source::Floor,
            _ => Source::Probed,
        }
    }

    /// Whether not even the smallest size passes.
    pub const fn is_too_small(&self) -> bool {
        self.too_small
    }

    /// Whether packets of the size arrive; none while unknown.
    pub const fn passes(&self) -> Option<bool> {
        match &self.state {
            _ if self.too_small => Some(false),
            State::New => None,
            _ if self.answers_sizes => Some(true),
            _ => None,
        }
    }

    /// Whether nothing speaks against packets of the size: they have been answered along this path, or the peer answers no
    /// probe with a size.
    pub const fn is_settled(&self) -> bool {
        matches!(&self.state, State::Steady | State::Climb { .. })
    }

    /// When a round is wanted besides the regular ones.
    pub const fn due(&self) -> Option<Duration> {
        match &self.state {
            State::New | State::Climb { .. } => Some(Duration::ZERO),
            State::Doubt(doubt) => Some(doubt.again),
            State::Steady => self.raise_at,
        }
    }

    /// The route to the endpoint allows another size, or the protocols require another one.
    pub fn set_limits(&mut self, limits: Limits) {
        let former = std::mem::replace(&mut self.limits, limits);
        if former == limits {
            return;
        }
        self.open.clear();
        // The route alone was followed so far, and is further on.
        if self.size == former.largest && !self.answers_sizes {
            self.size = limits.largest;
            return;
        }
        self.size = self.size.min(limits.largest).max(limits.smallest);
        if !matches!(self.state, State::New) {
            (self.state, self.raise_at) = (State::Steady, None);
            if self.size < limits.largest {
                self.state = self.climb();
            }
        }
    }

    /// The path is another one. The MTU stays until it is known whether packets of this size pass.
    pub fn move_to_other_path(&mut self) {
        self.open.clear();
        (self.state, self.raise_at, self.too_small) = (State::New, None, false);
    }

    /// Begins a round; returns the sizes to probe besides the small one.
    pub fn begin(&mut self, now: Duration) -> Vec<u32> {
        if self.state == State::Steady && self.raise_at.is_some_and(|at| now >= at) {
            self.state = self.climb();
        }
        let (size, Limits { smallest, .. }) = (self.size, self.limits);
        self.open = match &self.state {
            State::New | State::Steady => {
                // Whether the peer answers probes with a size at all.
                let first = (!self.answers_sizes && size > MIN_IPV4_MTU).then_some(MIN_IPV4_MTU);
                first.into_iter().chain([size]).collect()
            }
            State::Doubt(Doubt { passed, .. }) => {
                let smaller = COMMON.into_iter().chain([smallest]).chain(*passed);
                // What has passed is asked for again: losing it tells that size is not what matters.
                let wanted = smaller.filter(|one| *one < size && passed.is_none_or(|passed| *one >= passed));
                let mut sizes: Vec<u32> = wanted
                    .filter(|one| *one >= smallest || (passed.is_none() && *one == MIN_IPV4_MTU))
                    .chain([size])
                    .collect();
                sizes.sort_unstable();
                sizes.dedup();
                sizes
            }
            State::Climb { trying, .. } => trying.clone(),
        };
        self.open.clone()
    }

    /// A probe of this size was answered, in this round or an earlier one along this path.
    pub fn answered(&mut self, now: Duration, size: u32) {
        self.answers_sizes = true;
        self.open.retain(|open| *open != size);
        if size < self.limits.smallest || size > self.limits.largest {
            return;
        }
        if let State::Doubt(doubt) = &mut self.state
            && size < self.size
        {
            doubt.passed = doubt.passed.max(Some(size));
            return;
        }
        if size < self.size {
            return;
        }
        self.too_small = false;
        self.size = size;
        if size == self.limits.largest {
            self.raise_at = None;
        }
        match &mut self.state {
            // A single loss does not put off the next search for larger sizes.
            State::New | State::Doubt(_) if size < self.limits.largest && self.raise_at.is_none() => {
                self.state = self.climb();
            }
            State::New | State::Doubt(_) => self.state = State::Steady,
            State::Steady => {}
            State::Climb { trying, .. } => {
                trying.retain(|one| *one > size);
                self.go_on_climbing(now);
            }
        }
    }

    /// Ends the round; `small` says whether its small probe was answered.
    pub fn end(&mut self, now: Duration, small: bool) {
        let open = std::mem::take(&mut self.open);
        if let State::Doubt(doubt) = &mut self.state {
            doubt.again = now + doubt.pause;
            doubt.lossy |= !small || open.iter().any(|size| Some(*size) <= doubt.passed);
        }
        if !small || open.is_empty() {
            return;
        }
        match &mut self.state {
            // It is known already that this is the smallest size and does not pass.
            State::Steady if self.too_small => {}
            State::New | State::Steady if open.contains(&self.size) => {
                // Of a new path nothing is known that speaks against it: it is asked at once.
                let pause = if self.state == State::New { Duration::ZERO } else { DOUBT_PAUSE };
                let again = now + pause;
                self.state = State::Doubt(Doubt { lost: 1, passed: None, lossy: false, again, pause });
            }
            State::Doubt(doubt) if open.contains(&self.size) => {
                doubt.lost += 1;
                if doubt.lost >= if doubt.lossy { MAX_PROBES_IF_LOSSY } else { MAX_PROBES } {
                    let doubt = *doubt;
                    self.lower(now, doubt, &open);
                }
            }
            State::New | State::Steady | State::Doubt(_) => {}
            State::Climb { trying, lost, fails } => {
                *lost += 1;
                if *lost >= MAX_PROBES {
                    *fails = trying.iter().copied().min().unwrap_or(*fails).min(*fails);
                    trying.clear();
                    self.go_on_climbing(now);
                }
            }
        }
    }

    /// The size does not pass.
    fn lower(&mut self, now: Duration, Doubt { passed, lossy, .. }: Doubt, lost: &[u32]) {
        if let Some(passed) = passed {
            self.size = passed;
            if lossy {
                // Which sizes in between pass is not known by a few losses.
                self.state = self.climb();
                return;
            }
            let fails = lost.iter().copied().filter(|size| *size > passed).min().unwrap_or(self.size);
            self.state = State::Climb { trying: Vec::new(), lost: 0, fails };
            self.go_on_climbing(now);
        } else if self.answers_sizes {
            (self.size, self.too_small) = (self.limits.smallest, true);
            (self.state, self.raise_at) = (State::Steady, self.raised_after(now));
        } else {
            // It may be a daemon that answers no probe with a size.
            (self.state, self.raise_at) = (State::Steady, None);
        }
    }

    /// A search for larger sizes.
    fn climb(&self) -> State {
        let Limits { largest, .. } = self.limits;
        let common = COMMON.into_iter().filter(|size| *size > self.size && *size < largest);
        State::Climb { trying: common.chain([largest]).collect(), lost: 0, fails: largest + 1 }
    }

    /// What to try next, after something has passed or failed.
    fn go_on_climbing(&mut self, now: Duration) {
        let raise_at = self.raised_after(now);
        let State::Climb { trying, lost, fails } = &mut self.state else { return };
        if !trying.is_empty() {
            return;
        }
        *lost = 0;
        if self.size >= self.limits.largest || *fails <= self.size + STEP {
            (self.state, self.raise_at) = (State::Steady, raise_at);
        } else {
            trying.push(self.size + (*fails - self.size) / 2);
        }
    }

    /// When larger sizes are tried again, after a search that ends now.
    fn raised_after(&self, now: Duration) -> Option<Duration> {
        (self.size < self.limits.largest).then(|| now + self.raise_after)
    }
}

#[cfg(test)]
mod tests;
