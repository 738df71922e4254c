//! Requests as values: lines in, all or nothing out. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use keyring::{PresharedKey, PrivateKey, PublicKey};
use nix::errno::Errno;
use zeroize::Zeroizing;

use super::{LONGEST_LINE, LONGEST_REQUEST, Refusal};
use wireguard::PresharedKeyChange;

const INVALID: Refusal = Refusal(Errno::EINVAL);

/// A request of a client.
#[derive(Debug)]
pub(crate) enum Request {
    Get,
    Set(DeviceSettings),
}

/// A `set=1` request.
#[derive(Debug, Default)]
pub(crate) struct DeviceSettings {
    pub(crate) private_key: Option<PrivateKeyChange>,
    pub(crate) listen_port: Option<u16>,
    pub(crate) fwmark: Option<u32>,
    pub(crate) replace_peers: bool,
    pub(crate) peers: Vec<PeerBlock>,
}

/// What becomes of the private key.
#[derive(Debug)]
pub(crate) enum PrivateKeyChange {
    Set(PrivateKey),
    Clear,
}

/// The part of a `set=1` request about one peer.
#[derive(Debug)]
pub(crate) struct PeerBlock {
    pub(crate) key: PublicKey,
    pub(crate) remove: bool,
    pub(crate) update_only: bool,
    pub(crate) replace_allowed_ips: bool,
    pub(crate) preshared_key: Option<PresharedKeyChange>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) keepalive: Option<u16>,
    pub(crate) allow: BTreeSet<IpNetwork>,
    pub(crate) disallow: BTreeSet<IpNetwork>,
}

/// Reads one request, the empty line at its end included or not. Refuses with `EINVAL` what the protocol does
/// not define, and with `EMSGSIZE` what is too long.
pub(crate) fn parse(request: &[u8]) -> Result<Request, Refusal> {
    if request.len() > LONGEST_REQUEST {
        return Err(Refusal(Errno::EMSGSIZE));
    }
    let text = str::from_utf8(request).map_err(|_| INVALID)?;
    let mut lines = text.lines().take_while(|line| !line.is_empty());
    match lines.next() {
        Some("get=1") => match lines.next() {
            None => Ok(Request::Get),
            Some(_) => Err(INVALID),
        },
        Some("set=1") => {
            let mut settings = DeviceSettings::default();
            lines.try_for_each(|line| settings.line(line))?;
            Ok(Request::Set(settings))
        }
        _ => Err(INVALID),
    }
}

impl DeviceSettings {
    fn line(&mut self, line: &str) -> Result<(), Refusal> {
        if line.len() > LONGEST_LINE {
            return Err(Refusal(Errno::EMSGSIZE));
        }
        let (key, value) = line.split_once('=').ok_or(INVALID)?;
        if key == "public_key" {
            let bytes = hex(value)?;
            let key = PublicKey::from_bytes(&bytes).map_err(|_| INVALID)?;
            self.peers.push(PeerBlock::new(key));
            return Ok(());
        }
        match self.peers.last_mut() {
            Some(peer) => peer.line(key, value),
            None => self.device_line(key, value),
        }
    }

    fn device_line(&mut self, key: &str, value: &str) -> Result<(), Refusal> {
        match key {
            "private_key" => {
                let bytes = hex(value)?;
                // All zeros are no key, and that is the only thing that a private key can't be.
                self.private_key = Some(
                    PrivateKey::from_bytes(&bytes).map_or(PrivateKeyChange::Clear, PrivateKeyChange::Set),
                );
            }
            "listen_port" => self.listen_port = Some(number(value)?),
            "fwmark" => self.fwmark = Some(mark(value)?),
            "replace_peers" => self.replace_peers = flag(value)?,
            _ => return Err(INVALID),
        }
        Ok(())
    }
}

impl PeerBlock {
    const fn new(key: PublicKey) -> Self {
        Self {
            key,
            remove: false,
            update_only: false,
            replace_allowed_ips: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            allow: BTreeSet::new(),
            disallow: BTreeSet::new(),
        }
    }

    fn line(&mut self, key: &str, value: &str) -> Result<(), Refusal> {
        match key {
            "remove" => self.remove = flag(value)?,
            "update_only" => self.update_only = flag(value)?,
            "replace_allowed_ips" => {
                self.replace_allowed_ips = flag(value)?;
                // It empties the list, whatever came before it.
                self.allow.clear();
                self.disallow.clear();
            }
            "preshared_key" => {
                let bytes = hex(value)?;
                // All zeros are no key, and that is the only thing that a preshared key can't be.
                self.preshared_key = Some(
                    PresharedKey::from_bytes(&bytes)
                        .map_or(PresharedKeyChange::Clear, PresharedKeyChange::Set),
                );
            }
            "endpoint" => self.endpoint = Some(SocketAddr::from_str(value).map_err(|_| INVALID)?),
            "persistent_keepalive_interval" => self.keepalive = Some(number(value)?),
            "allowed_ip" => match value.strip_prefix('-') {
                Some(removed) => {
                    let removed = prefix(removed)?;
                    self.allow.remove(&removed);
                    self.disallow.insert(removed);
                }
                None => {
                    self.allow.insert(prefix(value)?);
                }
            },
            "protocol_version" if value == "1" => {}
            _ => return Err(INVALID),
        }
        Ok(())
    }
}

fn flag(value: &str) -> Result<bool, Refusal> {
    if value == "true" { Ok(true) } else { Err(INVALID) }
}

fn number(value: &str) -> Result<u16, Refusal> {
    value.parse().map_err(|_| INVALID)
}

/// A mark is decimal, or hexadecimal behind `0x`.
fn mark(value: &str) -> Result<u32, Refusal> {
    match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    }
    .map_err(|_| INVALID)
}

/// An address with its prefix length; host bits are cleared, as the kernel does.
fn prefix(value: &str) -> Result<IpNetwork, Refusal> {
    let (address, len) = value.split_once('/').ok_or(INVALID)?;
    let address = IpAddr::from_str(address).map_err(|_| INVALID)?;
    let given = IpNetwork::new(address, len.parse().map_err(|_| INVALID)?).map_err(|_| INVALID)?;
    IpNetwork::new(given.network(), given.prefix()).map_err(|_| INVALID)
}

fn hex(value: &str) -> Result<Zeroizing<[u8; 32]>, Refusal> {
    let mut bytes = Zeroizing::new([0; 32]);
    let (pairs, rest) = value.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return Err(INVALID);
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Ok(bytes)
}

fn digit(character: u8) -> Result<u8, Refusal> {
    match character {
        b'0'..=b'9' => Ok(character - b'0'),
        b'a'..=b'f' => Ok(character - b'a' + 10),
        b'A'..=b'F' => Ok(character - b'A' + 10),
        _ => Err(INVALID),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "0202020202020202020202020202020202020202020202020202020202020242";
    const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    fn set(lines: &str) -> Result<DeviceSettings, Refusal> {
        match parse(format!("set=1\n{lines}\n\n").as_bytes())? {
            Request::Set(settings) => Ok(settings),
            Request::Get => panic!("a set request was read as get"),
        }
    }

    #[test]
    fn reads_every_key_of_the_protocol() {
        let settings = set(&format!(
            "private_key={KEY}\nlisten_port=51840\nfwmark=0x1e\nreplace_peers=true\npublic_key={KEY}\n\
             update_only=true\nreplace_allowed_ips=true\npreshared_key={KEY}\nendpoint=[fd00::1]:7\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.7/8\nallowed_ip=-fd00::1/64\n\
             protocol_version=1\npublic_key={KEY}\nremove=true"
        ))
        .unwrap();
        assert!(matches!(settings.private_key, Some(PrivateKeyChange::Set(_))));
        assert_eq!((settings.listen_port, settings.fwmark), (Some(51840), Some(30)));
        let [first, second] = &settings.peers[..] else { panic!("two peers") };
        assert!(settings.replace_peers && first.update_only && first.replace_allowed_ips && second.remove);
        assert!(matches!(first.preshared_key, Some(PresharedKeyChange::Set(_))));
        assert_eq!(first.endpoint, Some("[fd00::1]:7".parse().unwrap()));
        assert_eq!(first.keepalive, Some(25));
        assert_eq!(first.allow, ["10.0.0.0/8".parse().unwrap()].into(), "host bits are cleared");
        assert_eq!(first.disallow, ["fd00::/64".parse().unwrap()].into());
    }

    #[test]
    fn zero_keys_clear() {
        let settings = set(&format!("private_key={ZERO}\npublic_key={KEY}\npreshared_key={ZERO}")).unwrap();
        assert!(matches!(settings.private_key, Some(PrivateKeyChange::Clear)));
        assert!(matches!(settings.peers[0].preshared_key, Some(PresharedKeyChange::Clear)));
    }

    #[test]
    fn the_last_word_about_a_prefix_counts() {
        let block = |lines: &str| set(&format!("public_key={KEY}\n{lines}")).unwrap().peers.remove(0);
        let taken = block("allowed_ip=10.0.0.0/8\nallowed_ip=-10.0.0.0/8");
        assert_eq!((taken.allow.len(), taken.disallow.len()), (0, 1));
        let given = block("allowed_ip=-10.0.0.0/8\nallowed_ip=10.0.0.0/8");
        assert_eq!((given.allow.len(), given.disallow.len()), (1, 1), "taken first, then given");
        let replaced = block("allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=10.1.0.0/16");
        assert_eq!(replaced.allow, ["10.1.0.0/16".parse().unwrap()].into());
    }

    #[test]
    fn what_the_protocol_does_not_define_is_refused() {
        for lines in [
            "listen_port=65536",
            "listen_port=-1",
            "fwmark=0xg",
            "fwmark=4294967296",
            "replace_peers=false",
            "private_key=00",
            "unknown=1",
            "no equals sign",
            "allowed_ip=10.0.0.0/8",
            &format!("public_key={ZERO}"),
            &format!("public_key={KEY}\nlisten_port=1"),
            &format!("public_key={KEY}\nallowed_ip=10.0.0.0"),
            &format!("public_key={KEY}\nallowed_ip=10.0.0.0/33"),
            &format!("public_key={KEY}\nendpoint=host.example:1"),
            &format!("public_key={KEY}\nprotocol_version=2"),
            &format!("public_key={KEY}\npersistent_keepalive_interval=off"),
        ] {
            assert_eq!(set(lines).map(|_| ()), Err(INVALID), "{lines}");
        }
        for request in ["", "\n", "get=2\n\n", "set=0\n\n", "get=1\nset=1\n\n"] {
            assert_eq!(parse(request.as_bytes()).map(|_| ()), Err(INVALID), "{request:?}");
        }
        assert_eq!(parse(&[b's', 0xff]).map(|_| ()), Err(INVALID));
        let long = format!("unknown={}", "x".repeat(LONGEST_LINE));
        assert_eq!(set(&long).map(|_| ()), Err(Refusal(Errno::EMSGSIZE)));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn never_panics_on_what_looks_right(
            lines in prop::collection::vec(("[a-z_]{1,20}|public_key|allowed_ip|endpoint", "[-0-9a-f:./\\[\\]]{0,70}"), 0..20),
        ) {
            let lines: Vec<_> = lines.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let text = lines.join("\n");
            let _ = parse(format!("set=1\n{text}\n\n").as_bytes());
            let _ = parse(format!("set=1\npublic_key={KEY}\n{text}\n\n").as_bytes());
        }
    }
}
