//! Parsers for the values of options; each error names what was expected.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use keyring::pq::Mode;
use plan::names::Host;
use plan::network::LinkName;
use tunnel::OffloadOption;
use wireguard::{Backend, MTU_EXPECTED, MTU_RANGE};

use crate::device::BackendOption;

use super::SealingSource;

/// What was expected instead of a value that was refused.
pub(crate) type Expected = &'static str;

/// A list separated by commas.
fn list<T, L: FromIterator<T>>(text: &str, item: fn(&str) -> Result<T, Expected>) -> Result<L, Expected> {
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(item).collect()
}

pub(super) fn cidrs(text: &str) -> Result<Vec<IpNetwork>, Expected> {
    list(text, cidr)
}

fn cidr(text: &str) -> Result<IpNetwork, Expected> {
    const EXPECTED: Expected = "CIDRs whose host bits are zero, such as 10.244.0.0/16 or fd00:10:244::/48";
    let parsed: IpNetwork = text.parse().map_err(|_| EXPECTED)?;
    if !text.contains('/') || parsed.network() != parsed.ip() || parsed.prefix() == 0 {
        return Err(EXPECTED);
    }
    Ok(parsed)
}

pub(super) fn addresses<L: FromIterator<IpAddr>>(text: &str) -> Result<L, Expected> {
    list(text, address)
}

fn address(text: &str) -> Result<IpAddr, Expected> {
    text.parse().map_err(|_| "IP addresses, such as 192.0.2.1 or 2001:db8::1")
}

pub(super) fn hosts(text: &str) -> Result<Vec<Host>, Expected> {
    let host =
        |text: &str| text.parse().map_err(|_| "IP addresses or names, such as 192.0.2.1 or node.example.org");
    list(text, host)
}

pub(super) fn socket(text: &str) -> Result<SocketAddr, Expected> {
    text.parse().map_err(|_| "an IP address with a port, such as 127.0.0.1:9384")
}

pub(super) fn port(text: &str) -> Result<u16, Expected> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("a UDP port from 1 to 65535"),
    }
}

pub(super) fn ports(text: &str) -> Result<RangeInclusive<u16>, Expected> {
    const EXPECTED: Expected = "a range of at least two UDP ports, such as 24000-28095";
    let (first, last) = text.split_once('-').ok_or(EXPECTED)?;
    let (first, last) = (port(first).map_err(|_| EXPECTED)?, port(last).map_err(|_| EXPECTED)?);
    if first < last { Ok(first..=last) } else { Err(EXPECTED) }
}

/// Megabits as bytes.
pub(super) fn rate(text: &str) -> Result<u64, Expected> {
    match text.parse::<u32>() {
        Ok(megabits) if megabits > 0 => Ok(u64::from(megabits) * 125_000),
        _ => Err("a number of Mbit/s from 1 to 4294967295"),
    }
}

pub(super) fn mtu(text: &str) -> Result<u32, Expected> {
    match text.parse() {
        Ok(mtu) if MTU_RANGE.contains(&mtu) => Ok(mtu),
        _ => Err(MTU_EXPECTED),
    }
}

pub(super) fn table(text: &str) -> Result<u32, Expected> {
    match text.parse() {
        // 253 to 255 are the kernel's own tables (`rt_class_t`).
        Ok(table) if table > 0 && !(253..=255).contains(&table) => Ok(table),
        _ => Err("a table number from 1 to 4294967295 other than 253, 254 and 255"),
    }
}

pub(super) fn priority(text: &str) -> Result<u32, Expected> {
    match text.parse() {
        // The main table is looked up at 32766; a later rule would never match. The next number is used as well.
        Ok(priority) if (1..32_765).contains(&priority) => Ok(priority),
        _ => Err("a priority from 1 to 32764"),
    }
}

pub(crate) fn time(text: &str) -> Result<Duration, Expected> {
    const EXPECTED: Expected = "a time such as 500ms, 90s, 10m, 24h, 30d or 0";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let end = text.find(|letter: char| !letter.is_ascii_digit()).ok_or(EXPECTED)?;
    let (number, unit) = text.split_at(end);
    let number: u32 = number.parse().map_err(|_| EXPECTED)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(EXPECTED),
    };
    Ok(Duration::from_millis(u64::from(number) * milliseconds))
}

pub(super) fn pq_mode(text: &str) -> Result<Mode, Expected> {
    match text {
        "off" => Ok(Mode::Off),
        "prefer" => Ok(Mode::Prefer),
        "require" => Ok(Mode::Require),
        _ => Err("off, prefer or require"),
    }
}

pub(super) fn pq_interval(text: &str) -> Result<Duration, Expected> {
    match time(text) {
        // An exchange takes a few seconds on each slot.
        Ok(interval) if interval.is_zero() || interval >= Duration::from_secs(10) => Ok(interval),
        _ => Err("0, or a time of at least 10s"),
    }
}

pub(super) fn percent(text: &str) -> Result<u32, Expected> {
    text.parse().map_err(|_| "a number of percent, such as 20")
}

pub(super) fn backend(text: &str) -> Result<BackendOption, Expected> {
    match text {
        "auto" => Ok(BackendOption::Auto),
        "kernel" => Ok(BackendOption::Only(Backend::Kernel)),
        "userspace" => Ok(BackendOption::Only(Backend::Userspace)),
        _ => Err("auto, kernel or userspace"),
    }
}

pub(super) fn offload(text: &str) -> Result<OffloadOption, Expected> {
    match text {
        "auto" => Ok(OffloadOption::Auto),
        "on" => Ok(OffloadOption::On),
        "off" => Ok(OffloadOption::Off),
        _ => Err("auto, on or off"),
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, Expected> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false"),
    }
}

pub(super) fn log_json(text: &str) -> Result<bool, Expected> {
    match text {
        "json" => Ok(true),
        "text" => Ok(false),
        _ => Err("text or json"),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, Expected> {
    match text.parse::<tracing_subscriber::EnvFilter>() {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("a level (error, warn, info, debug, trace) or a filter such as info,meshd=debug"),
    }
}

pub(super) fn link(text: &str) -> Result<LinkName, Expected> {
    text.parse().map_err(|_| "an interface name of 1 to 15 characters")
}

pub(super) fn directory(text: &str) -> Result<PathBuf, Expected> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("an absolute path") }
}

pub(super) fn file(text: &str) -> Result<PathBuf, Expected> {
    if text.is_empty() { Err("the path of a file") } else { Ok(PathBuf::from(text)) }
}

/// Values of `key-storage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    Tmpfs,
    Sealed,
    PlainOnDisk,
}

pub(super) fn storage(text: &str) -> Result<Storage, Expected> {
    match text {
        "tmpfs" => Ok(Storage::Tmpfs),
        "sealed" => Ok(Storage::Sealed),
        "plain-on-disk" => Ok(Storage::PlainOnDisk),
        _ => Err("tmpfs, sealed or plain-on-disk"),
    }
}

pub(super) fn sealing(text: &str) -> Result<SealingSource, Expected> {
    const EXPECTED: Expected = "an absolute path, or credential:NAME";
    match text.strip_prefix("credential:") {
        // The name is joined to a directory and must not leave it.
        Some(name) if name.is_empty() || name.starts_with('.') || name.contains('/') => Err(EXPECTED),
        Some(name) => Ok(SealingSource::Credential(name.to_owned())),
        None => directory(text).map(SealingSource::File).map_err(|_| EXPECTED),
    }
}

pub(super) fn node_name(text: &str) -> Result<String, Expected> {
    // RFC 1123 subdomain, as required by the API server.
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let inner = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        inner && bytes.first().is_some_and(|b| *b != b'-') && bytes.last().is_some_and(|b| *b != b'-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("a Node name: lower-case letters, digits, '-' and '.'")
    }
}
