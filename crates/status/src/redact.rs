//! Takes from text what must not leave a cluster: key bytes always; addresses and names unless they are wanted. Pure.
//!
//! Whatever could be a key is replaced, also digests, by a number that stands for it in the whole bundle. Addresses are mapped so
//! that those with a common prefix still have one: a pod's address is still in its node's range.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sha2::{Digest as _, Sha256};

/// The shortest text that 32 bytes have in base64, without padding, and in hex.
const BASE64: usize = 43;
const HEX: usize = 64;
/// So many numbers below 256 in a row may be bytes of a key.
const NUMBERS: usize = 16;

/// Which kind of name something has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A Node.
    Node,
    /// A zone or region.
    Zone,
    /// A name of the DNS.
    Host,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Zone => "zone",
            Self::Host => "host",
        }
    }
}

/// Replaces secrets, addresses and names, the same by the same in all texts.
#[derive(Debug)]
pub struct Redactor {
    /// Decides what addresses become; none if addresses and names stay.
    seed: Option<[u8; 32]>,
    names: BTreeMap<String, String>,
    keys: BTreeMap<String, String>,
}

impl Redactor {
    /// Replaces keys alone.
    pub const fn plain() -> Self {
        Self { seed: None, names: BTreeMap::new(), keys: BTreeMap::new() }
    }

    /// Replaces keys, addresses and these names; the seed is random, and forgotten afterwards.
    pub fn anonymous(seed: [u8; 32], names: impl IntoIterator<Item = (String, Kind)>) -> Self {
        let mut numbers: BTreeMap<Kind, usize> = BTreeMap::new();
        let mut mapped = BTreeMap::new();
        for (name, kind) in names {
            if name.is_empty() || mapped.contains_key(&name) {
                continue;
            }
            let number = numbers.entry(kind).or_default();
            *number += 1;
            mapped.insert(name, format!("{}-{number}", kind.word()));
        }
        Self { seed: Some(seed), names: mapped, keys: BTreeMap::new() }
    }

    /// What a text becomes.
    pub fn text(&mut self, text: &str) -> String {
        // Bytes that are no text may be a key's.
        let text: String =
            text.chars()
                .map(|char| {
                    if (char.is_control() && !"\n\t".contains(char)) || !is_plain(char) { '?' } else { char }
                })
                .collect();
        let text = numbers(&text);
        let text =
            runs(&text, |char| char.is_ascii_alphanumeric() || "+/_-".contains(char), |run, _| self.key(run));
        let Some(seed) = self.seed else { return text };
        let text = runs(
            &text,
            |char| char.is_ascii_hexdigit() || ":./".contains(char),
            |run, alone| {
                if alone { address(&seed, run) } else { None }
            },
        );
        runs(
            &text,
            |char| char.is_ascii_alphanumeric() || "-.".contains(char),
            |run, _| {
                let name = run.trim_end_matches('.');
                Some(format!("{}{}", self.names.get(name)?, &run[name.len()..]))
            },
        )
    }

    /// A run of characters that may have a key in it.
    fn key(&mut self, run: &str) -> Option<String> {
        let has = |is: fn(&char) -> bool| run.chars().any(|char| is(&char));
        let longest_hex = run.split(|char: char| !char.is_ascii_hexdigit()).map(str::len).max();
        let mixed = has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase);
        let may_be = (run.len() >= BASE64 && mixed) || longest_hex.is_some_and(|longest| longest >= HEX);
        if !may_be {
            return None;
        }
        let number = self.keys.len() + 1;
        Some(self.keys.entry(run.to_owned()).or_insert_with(|| format!("key-{number}")).clone())
    }
}

/// Letters of any language are, as they are in messages; what stands for bytes that are no text is not.
fn is_plain(char: char) -> bool {
    char.is_ascii() || char.is_alphanumeric() || "–—‘’“”…·×→".contains(char)
}

/// Replaces runs of characters of one kind; `alone` says that no letter, digit or underscore stands beside.
fn runs(
    text: &str,
    belongs: impl Fn(char) -> bool,
    mut replaced: impl FnMut(&str, bool) -> Option<String>,
) -> String {
    let mut made = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|char| !belongs(char)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        let beside = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
        let alone = !beside(made.chars().next_back()) && !beside(after.chars().next());
        if run.is_empty() {
            let mut others = after.chars();
            made.extend(others.next());
            rest = others.as_str();
            continue;
        }
        match replaced(run, alone) {
            Some(new) => made.push_str(&new),
            None => made.push_str(run),
        }
        rest = after;
    }
    made
}

/// Replaces rows of numbers that may be bytes.
fn numbers(text: &str) -> String {
    let separates = |char: char| char.is_ascii_whitespace() || char == ',';
    let mut made = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(|char: char| char.is_ascii_digit()) {
        let (before, from) = rest.split_at(begin);
        made.push_str(before);
        let (mut count, mut end, mut at) = (0, 0, from);
        loop {
            let digits = at.find(|char: char| !char.is_ascii_digit()).unwrap_or(at.len());
            if digits == 0 || at.get(..digits).is_none_or(|number| number.parse::<u8>().is_err()) {
                break;
            }
            count += 1;
            end = from.len() - at.len() + digits;
            at = at.get(digits..).unwrap_or_default().trim_start_matches(separates);
            if at.len() + end == from.len() {
                break;
            }
        }
        if count < NUMBERS {
            // On to what follows these digits.
            end = from.find(|char: char| !char.is_ascii_digit()).unwrap_or(from.len());
            made.push_str(from.get(..end).unwrap_or_default());
        } else {
            made.push_str("bytes");
        }
        rest = from.get(end..).unwrap_or_default();
    }
    made + rest
}

/// What an address becomes, with a port or a prefix; none if it is no address.
fn address(seed: &[u8; 32], run: &str) -> Option<String> {
    let text = run.trim_end_matches(['.', '/']);
    let text = text.strip_suffix(':').filter(|text| !text.ends_with(':')).unwrap_or(text);
    let end = run.get(text.len()..)?;
    let mapped = if let Ok(socket) = text.parse::<SocketAddr>() {
        format!("{}:{}", mapped(seed, socket.ip(), 128), socket.port())
    } else if let Some((ip, bits)) = text.split_once('/') {
        format!("{}/{bits}", mapped(seed, ip.parse().ok()?, bits.parse().ok()?))
    } else {
        mapped(seed, text.parse().ok()?, 128).to_string()
    };
    Some(mapped + end)
}

/// An address whose first bits depend on the same bits of the given one alone; those beyond `len` stay.
fn mapped(seed: &[u8; 32], ip: IpAddr, len: u32) -> IpAddr {
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return ip;
    }
    let (bits, width) = match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let mut made = bits;
    for at in 0..len.min(width) {
        let before = if at == 0 { 0 } else { bits >> (128 - at) };
        let digest = Sha256::new()
            .chain_update(seed)
            .chain_update([u8::try_from(width).unwrap_or_default(), u8::try_from(at).unwrap_or_default()])
            .chain_update(before.to_be_bytes())
            .finalize();
        made ^= u128::from(digest.first().copied().unwrap_or_default() & 1) << (127 - at);
    }
    match ip {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(made >> 96).unwrap_or_default()).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(made).into(),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

    use super::*;

    fn anonymous() -> Redactor {
        let names =
            [("n1", Kind::Node), ("n1.example", Kind::Host), ("west", Kind::Zone), ("n2", Kind::Node)];
        Redactor::anonymous([7; 32], names.map(|(name, kind)| (name.to_owned(), kind)))
    }

    /// 300 keys, as they could be written anywhere.
    fn keys() -> Vec<[u8; 32]> {
        (0..300_u32).map(|number| Sha256::digest(number.to_be_bytes()).into()).collect()
    }

    #[test]
    fn no_form_of_a_key_is_left_wherever_it_stands() {
        for key in keys() {
            let list = |between: &str| key.map(|byte| byte.to_string()).join(between);
            let hex = key.map(|byte| format!("{byte:02x}")).concat();
            let raw = String::from_utf8_lossy(&key).into_owned();
            let forms = [
                STANDARD.encode(key),
                STANDARD_NO_PAD.encode(key),
                URL_SAFE_NO_PAD.encode(key),
                hex.to_uppercase(),
                hex,
                list(","),
                list(", "),
                list(",\n      "),
            ];
            for redactor in [&mut Redactor::plain(), &mut anonymous()] {
                for form in &forms {
                    for around in [
                        ("private_key=", "\n"),
                        ("\"key\":\"", "\","),
                        ("[", "]"),
                        ("/keys/", "/a"),
                        ("", ""),
                    ] {
                        let text = redactor.text(&format!("x {}{form}{} y", around.0, around.1));
                        assert!(!text.contains(form.trim_end_matches('=')), "{form} in {text}");
                        assert!(text.starts_with("x ") && text.ends_with(" y"), "{text}");
                    }
                }
                let text = redactor.text(&raw);
                assert!(
                    text.chars().all(|char| char == '\n' || char == '\t' || !char.is_control()),
                    "{text:?}"
                );
                assert!(!text.contains('\u{fffd}'), "{text:?}");
            }
        }
    }

    #[test]
    fn the_same_key_is_the_same_number_and_other_text_stays() {
        let one = STANDARD.encode(keys()[0]);
        let text = format!("a {one} b {one} c {}", STANDARD.encode(keys()[1]));
        assert_eq!(Redactor::plain().text(&text), "a key-1= b key-1= c key-2=");
        let plain = "2026-11-27T20:34:25Z n1 10.0.0.1 version 0.2.0, 5 of 12 peers, [1, 2, 3], /var/lib/meshd/audit/witness/trail.jsonl";
        assert_eq!(Redactor::plain().text(plain), plain);
    }

    #[test]
    fn names_are_replaced_as_whole_words() {
        let text = "n1 and n12, \"n2\": n1.example (west) n1. meshd-n1 west-2";
        assert_eq!(
            anonymous().text(text),
            "node-1 and n12, \"node-2\": host-1 (zone-1) node-1. meshd-n1 west-2"
        );
    }

    #[test]
    fn addresses_are_others_with_their_ports_and_prefixes() {
        let mut redactor = anonymous();
        for (text, kept) in [
            ("10.0.0.7:51840", ":51840"),
            ("[2001:db8::7]:51841", "]:51841"),
            ("endpoint 192.0.2.1, mtu", ", mtu"),
            ("10.244.3.0/24", ".0/24"),
            ("from 198.51.100.4.", "."),
        ] {
            let made = redactor.text(text);
            assert!(made.ends_with(kept) && made != text, "{text}: {made}");
        }
        for text in
            ["127.0.0.1:9384", "::1", "0.0.0.0/0", "std::io", "20:34:25", "1.2.3", "::", "face", "a/b"]
        {
            assert_eq!(redactor.text(text), text);
        }
    }

    #[test]
    fn an_address_stays_in_its_range_and_two_stay_two() {
        let mut redactor = anonymous();
        let mut map = |text: &str| redactor.text(text);
        let in_range = |range: &str, ip: &str| {
            range.parse::<ipnetwork::IpNetwork>().unwrap().contains(ip.parse().unwrap())
        };
        let (range, wider) = (map("10.244.3.0/24"), map("10.244.0.0/16"));
        let mut seen = std::collections::BTreeSet::new();
        for host in 0..=255 {
            let made = map(&format!("10.244.3.{host}"));
            assert!(in_range(&range, &made) && in_range(&wider, &made), "{made} in {range} and {wider}");
            assert!(seen.insert(made));
        }
        assert!(!in_range(&range, &map("10.244.4.1")) && in_range(&wider, &map("10.244.4.1")));
        let range = map("fd00:10:244:3::/64");
        assert!(in_range(&range, &map("fd00:10:244:3::99")) && !in_range(&range, &map("fd00:10:244:4::99")));
        let other = Redactor::anonymous([8; 32], []).text("10.244.3.1");
        assert_ne!(other, map("10.244.3.1"), "nobody can compute it backwards without the seed");
    }
}
