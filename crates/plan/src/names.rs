//! Names as endpoints: which ones to look up now, and what is known of them. Pure: the lookups are done elsewhere, and time is
//! an argument.
//!
//! A name is looked up once a minute, and soon after a path that it led to is lost. What it last stood for is kept while it
//! can't be resolved: a DNS server that is down must not cut a node off.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::prefix;

/// Most addresses of a name that are used.
pub const MAX_ADDRESSES: usize = 4;
/// Between two lookups of a name.
const PERIOD: Duration = Duration::from_mins(1);
/// The first pause after a lookup that failed, doubled up to [`PERIOD`]; and between two lookups because of lost paths.
const SOON: Duration = Duration::from_secs(5);
/// A lookup that has not been answered by then is begun anew: longer than any takes.
const OVERDUE: Duration = Duration::from_secs(30);
/// Most lookups at a time.
const AT_A_TIME: usize = 16;
/// Longest name, and longest label of one (RFC 1035, section 2.3.4).
const MAX_LEN: (usize, usize) = (253, 63);

/// A fully qualified host name (RFC 1123, section 2.1), in lower case and without the last dot. A clone shares the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// A text that is no host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoHostName;

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = NoHostName;

    fn from_str(text: &str) -> Result<Self, NoHostName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let is_label = |label: &str| {
            (1..=MAX_LEN.1).contains(&label.len())
                && label.bytes().all(is_inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // A last label of digits only is part of an IPv4 address, if a wrong one.
        let last = text.rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
        if text.len() > MAX_LEN.0 || is_number || !text.split('.').all(is_label) {
            return Err(NoHostName);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

/// An address, or a name that stands for some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name.
    Name(HostName),
}

impl FromStr for Host {
    type Err = NoHostName;

    fn from_str(text: &str) -> Result<Self, NoHostName> {
        text.parse().map(Self::Address).or_else(|_| text.parse().map(Self::Name))
    }
}

/// What names stand for; without addresses if one could not be resolved, and missing if its first lookup has not ended.
pub type Resolved = BTreeMap<HostName, Vec<IpAddr>>;

/// What an answer has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The name stands for these addresses, other ones than before, or is resolved again.
    Resolved(Vec<IpAddr>),
    /// It can't be resolved any more, or not at first. What it stood for is kept.
    Failed(Vec<IpAddr>),
}

/// A name, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    /// The name.
    pub name: &'a HostName,
    /// What it stands for.
    pub addresses: &'a [IpAddr],
    /// Why the last lookup failed.
    pub trouble: Option<&'a str>,
}

/// All names that stand for endpoints.
#[derive(Clone, Debug, Default)]
pub struct Names {
    known: BTreeMap<HostName, Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    addresses: Vec<IpAddr>,
    trouble: Option<String>,
    /// When the next lookup is due.
    due: Duration,
    /// When the last one was begun, and whether it goes on.
    begun: Option<(Duration, bool)>,
    /// Lookups that have failed in a row.
    failures: u32,
    /// Whether any lookup has ended.
    answered: bool,
}

impl Known {
    fn is_asked(&self, now: Duration) -> bool {
        self.begun.is_some_and(|(begun, goes_on)| goes_on && now < begun + OVERDUE)
    }
}

impl Names {
    /// Sets the names that are in use: new ones are due at once, others are forgotten.
    pub fn set_wanted(&mut self, now: Duration, wanted: &BTreeSet<HostName>) {
        self.known.retain(|name, _| wanted.contains(name));
        for name in wanted {
            if !self.known.contains_key(name) {
                self.known.insert(name.clone(), Known { due: now, ..Known::default() });
            }
        }
    }

    /// A path that a name led to is lost: what it stands for may be elsewhere now.
    pub fn lost(&mut self, now: Duration, name: &HostName) {
        if let Some(known) = self.known.get_mut(name) {
            let earliest = known.begun.map_or(now, |(begun, _)| now.max(begun + SOON));
            known.due = known.due.min(earliest);
        }
    }

    /// The names to look up now, those first that have waited longest.
    pub fn begin(&mut self, now: Duration) -> Vec<HostName> {
        let running = self.known.values().filter(|known| known.is_asked(now)).count();
        let mut due: Vec<(Duration, HostName)> = self
            .known
            .iter()
            .filter(|(_, known)| now >= known.due && !known.is_asked(now))
            .map(|(name, known)| (known.due, name.clone()))
            .collect();
        due.sort();
        due.truncate(AT_A_TIME.saturating_sub(running));
        for (_, name) in &due {
            if let Some(known) = self.known.get_mut(name) {
                known.begun = Some((now, true));
            }
        }
        due.into_iter().map(|(_, name)| name).collect()
    }

    /// Takes what a lookup has shown; returns what that changes.
    pub fn take(
        &mut self,
        now: Duration,
        name: &HostName,
        answer: Result<Vec<IpAddr>, String>,
    ) -> Option<Change> {
        let known = self.known.get_mut(name)?;
        let first = !std::mem::replace(&mut known.answered, true);
        if let Some((_, goes_on)) = &mut known.begun {
            *goes_on = false;
        }
        let answer = answer.and_then(|addresses| {
            let chosen = chosen(&known.addresses, addresses);
            if chosen.is_empty() { Err("it has no usable address".to_owned()) } else { Ok(chosen) }
        });
        match answer {
            Ok(addresses) => {
                (known.failures, known.due) = (0, now + PERIOD);
                let recovered = known.trouble.take().is_some();
                let changed = known.addresses != addresses;
                known.addresses.clone_from(&addresses);
                (recovered || changed).then_some(Change::Resolved(addresses))
            }
            Err(trouble) => {
                let pause = SOON * 2_u32.saturating_pow(known.failures.min(8));
                known.failures = known.failures.saturating_add(1);
                known.due = now + pause.min(PERIOD);
                let is_news = known.trouble.replace(trouble).is_none() || first;
                is_news.then(|| Change::Failed(known.addresses.clone()))
            }
        }
    }

    /// What the names stand for.
    pub fn resolved(&self) -> Resolved {
        let answered = self.known.iter().filter(|(_, known)| known.answered);
        answered.map(|(name, known)| (name.clone(), known.addresses.clone())).collect()
    }

    /// What a name stands for; none before its first lookup has ended.
    pub fn addresses(&self, name: &HostName) -> Option<&[IpAddr]> {
        let known = self.known.get(name).filter(|known| known.answered)?;
        Some(&known.addresses)
    }

    /// All names.
    pub fn reports(&self) -> impl Iterator<Item = Report<'_>> {
        self.known.iter().map(|(name, known)| Report {
            name,
            addresses: &known.addresses,
            trouble: known.trouble.as_deref(),
        })
    }

    /// When the next lookup is due, if one is.
    pub fn due(&self) -> Option<Duration> {
        let due = |known: &Known| match known.begun {
            Some((begun, true)) => begun + OVERDUE,
            _ => known.due,
        };
        self.known.values().map(due).min()
    }
}

/// The addresses of an answer that are used: those that were used before keep their places, since DNS servers shuffle answers;
/// the families alternate (RFC 8305, section 4).
fn chosen(former: &[IpAddr], answer: Vec<IpAddr>) -> Vec<IpAddr> {
    let usable: BTreeSet<IpAddr> =
        answer.into_iter().filter(|address| !prefix::is_special(*address)).collect();
    let (kept, new): (Vec<IpAddr>, Vec<IpAddr>) = {
        let kept: Vec<IpAddr> = former.iter().copied().filter(|one| usable.contains(one)).collect();
        let new = usable.into_iter().filter(|one| !kept.contains(one)).collect();
        (kept, new)
    };
    if new.is_empty() {
        return kept;
    }
    let all = || kept.iter().chain(&new).copied();
    let first_is_v6 = all().next().is_some_and(|address| address.is_ipv6());
    let (mut one, mut other) =
        (all().filter(|a| a.is_ipv6() == first_is_v6), all().filter(|a| a.is_ipv6() != first_is_v6));
    let mut chosen = Vec::new();
    while chosen.len() < MAX_ADDRESSES {
        let next: Vec<IpAddr> = one.next().into_iter().chain(other.next()).collect();
        if next.is_empty() {
            break;
        }
        chosen.extend(next);
    }
    chosen.truncate(MAX_ADDRESSES);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn host() -> HostName {
        "Node.example.org.".parse().unwrap()
    }

    /// One name that is wanted, looked up, and answered at `at(0)`.
    fn answered(addresses: &[&str]) -> Names {
        let mut names = Names::default();
        names.set_wanted(at(0), &[host()].into());
        assert_eq!(names.begin(at(0)), [host()]);
        let change = names.take(at(0), &host(), Ok(ips(addresses)));
        assert!(matches!(change, Some(Change::Resolved(_))), "{change:?}");
        names
    }

    #[test]
    fn host_names_are_told_from_addresses_and_from_nonsense() {
        assert_eq!(host().as_str(), "node.example.org");
        for good in ["a", "a.b-c.d1", "1.example", &format!("{}.org", "a".repeat(63))] {
            assert!(good.parse::<HostName>().is_ok(), "{good}");
        }
        let long = vec!["a".repeat(60); 5].join(".");
        let label = "a".repeat(64);
        for bad in ["", ".", "a..b", "-a.b", "a-.b", "a_b", "a b", "192.0.2.300", "7", "é.org", &long, &label]
        {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
        assert_eq!("192.0.2.1".parse(), Ok(Host::Address("192.0.2.1".parse().unwrap())));
        assert_eq!("node.example.org".parse(), Ok(Host::Name(host())));
    }

    #[test]
    fn a_name_is_looked_up_at_once_and_then_every_minute() {
        let mut names = Names::default();
        names.set_wanted(at(0), &[host()].into());
        assert_eq!((names.due(), names.begin(at(0))), (Some(at(0)), vec![host()]));
        assert_eq!(names.begin(at(1)), [], "one lookup at a time");
        assert_eq!(names.begin(at(30)), [host()], "it was never answered");
        names.take(at(31), &host(), Ok(ips(&["192.0.2.1"])));
        assert_eq!(names.begin(at(90)), []);
        assert_eq!((names.due(), names.begin(at(91))), (Some(at(91)), vec![host()]));
    }

    #[test]
    fn a_lost_path_has_its_name_looked_up_but_not_all_the_time() {
        let mut names = answered(&["192.0.2.1"]);
        names.lost(at(2), &host());
        assert_eq!(names.begin(at(2)), [], "it was asked 2 s ago");
        assert_eq!(names.begin(at(5)), [host()]);
        names.take(at(5), &host(), Ok(ips(&["192.0.2.1"])));
        names.lost(at(20), &host());
        assert_eq!(names.begin(at(20)), [host()]);
    }

    #[test]
    fn the_last_answer_is_kept_while_a_name_can_not_be_resolved() {
        let mut names = answered(&["192.0.2.1"]);
        let mut asked = Vec::new();
        for second in 1..400 {
            for name in names.begin(at(second)) {
                let change = names.take(at(second), &name, Err("timeout".to_owned()));
                let expected = asked.is_empty().then(|| Change::Failed(ips(&["192.0.2.1"])));
                assert_eq!(change, expected, "it is news once");
                asked.push(second);
            }
        }
        assert_eq!(asked, [60, 65, 75, 95, 135, 195, 255, 315, 375]);
        assert_eq!(names.addresses(&host()), Some(&ips(&["192.0.2.1"])[..]));
        assert_eq!(names.reports().next().unwrap().trouble, Some("timeout"));
        names.begin(at(435));
        let change = names.take(at(435), &host(), Ok(ips(&["192.0.2.1"])));
        assert_eq!(change, Some(Change::Resolved(ips(&["192.0.2.1"]))), "it is resolved again");
    }

    #[test]
    fn what_was_never_resolved_is_told_from_what_was_not_asked_yet() {
        let mut names = Names::default();
        names.set_wanted(at(0), &[host()].into());
        assert_eq!(names.resolved(), Resolved::default());
        names.begin(at(0));
        let change = names.take(at(0), &host(), Ok(ips(&["127.0.0.1", "::1"])));
        assert_eq!(change, Some(Change::Failed(Vec::new())), "no usable address");
        assert_eq!(names.resolved(), Resolved::from([(host(), Vec::new())]));
        names.set_wanted(at(1), &BTreeSet::new());
        assert_eq!((names.resolved(), names.due()), (Resolved::default(), None));
        assert_eq!(names.take(at(2), &host(), Ok(ips(&["192.0.2.1"]))), None, "not wanted any more");
    }

    #[test]
    fn four_addresses_of_both_families_are_used_and_a_shuffled_answer_changes_nothing() {
        let many = ["192.0.2.5", "192.0.2.4", "192.0.2.3", "192.0.2.2", "192.0.2.1", "2001:db8::1"];
        let mut names = answered(&many);
        let used = names.addresses(&host()).unwrap().to_vec();
        assert_eq!(used, ips(&["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]));
        let mut shuffled = many;
        shuffled.reverse();
        assert_eq!(names.take(at(60), &host(), Ok(ips(&shuffled))), None);
        let change = names.take(at(120), &host(), Ok(ips(&["192.0.2.2", "192.0.2.3"])));
        assert_eq!(change, Some(Change::Resolved(ips(&["192.0.2.2", "192.0.2.3"]))));
    }

    #[test]
    fn a_few_names_are_looked_up_at_a_time_and_none_is_left_out() {
        let mut names = Names::default();
        let all: BTreeSet<HostName> =
            (0..100).map(|number| format!("n{number}.example").parse().unwrap()).collect();
        names.set_wanted(at(0), &all);
        let mut asked = BTreeSet::new();
        for second in 0..7 {
            let begun = names.begin(at(second));
            assert!(begun.len() <= AT_A_TIME);
            for name in begun {
                names.take(at(second), &name, Ok(ips(&["192.0.2.1"])));
                asked.insert(name);
            }
        }
        assert_eq!(asked, all);
    }
}
