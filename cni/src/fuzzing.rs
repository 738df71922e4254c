//! Bodies of the fuzz targets, so that their corpora also run as an ordinary test.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use linux::host_ports::Mapping;
use serde_json::Value;

use crate::call::{Call, CommandName};
use crate::conf::Conf;
use crate::node_file::{MTU, NodeFile};
use crate::ports::{mappings, requests};
use crate::store::{self, Contents};
use crate::version::SpecVersion;

/// Reads `bytes` as what a runtime puts on standard input, for each command.
///
/// What is taken must be within the bounds that the rest relies on; what is refused must be refused by one JSON
/// object of the specification's shape, in a version that is supported.
///
/// # Panics
///
/// When one of these does not hold, which is what a fuzzer looks for.
pub fn conf(bytes: &[u8]) {
    for command in CommandName::ALL {
        let environment = |name: &str| {
            let value = match name {
                "CNI_COMMAND" => command.as_str(),
                "CNI_CONTAINERID" => "c1",
                "CNI_IFNAME" => "eth0",
                "CNI_NETNS" => "/run/netns/c1",
                _ => return None,
            };
            Some(value.to_owned())
        };
        match Call::new(environment, bytes) {
            Ok(call) => {
                assert!(call.conf.node_file.is_absolute() && call.conf.state_dir.is_absolute());
                assert!(call.conf.mtu.is_none_or(|mtu| MTU.contains(&mtu)));
                ports(&call.conf);
            }
            Err(error) => {
                assert_ne!(command, CommandName::Version, "VERSION was refused: {error}");
                refusal(&error.render(bytes, command == CommandName::Status));
            }
        }
    }
}

/// Host ports that are taken lead to a port, and never from the node's loopback; no two lead from one to different ones.
fn ports(conf: &Conf) {
    let pod = [IpAddr::from([10, 244, 1, 2]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2])];
    let Ok(mapped) = requests(conf.port_mappings.as_ref()).and_then(|asked| mappings(&asked, &pod)) else {
        return;
    };
    assert_mappings(&mapped);
}

fn assert_mappings(mapped: &BTreeSet<Mapping>) {
    for mapping in mapped {
        assert!(mapping.host_port > 0 && mapping.pod_port > 0);
        assert!(
            mapping.host_address.is_none_or(|address| !address.is_loopback() && !address.is_unspecified())
        );
        let others = mapped.iter().filter(|other| other.pod_port != mapping.pod_port);
        assert!(others.into_iter().all(|other| !other.conflicts_with(mapping)));
    }
}

/// Reads `bytes` as a stored attachment, its file's name in the first line and its contents in the others, and as what the daemon
/// tells the plugin.
///
/// # Panics
///
/// When host ports are read that no ADD would have stored, or what was read is not written and read again the same.
pub fn cni_state(bytes: &[u8]) {
    let (name, contents) =
        bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    let path = Path::new("/attachments").join(String::from_utf8_lossy(name).replace('/', ""));
    if let Some((boot, stored)) = store::stored(&path) {
        assert!(!boot.contains('@') && !stored.host_link.contains('@'));
        if let Ok(Contents { ports: Some(requests), .. }) = serde_json::from_slice(contents) {
            assert_mappings(&mappings(&requests, &stored.addresses).unwrap_or_default());
        }
    }
    if let Some(node) = std::str::from_utf8(bytes).ok().and_then(NodeFile::parse) {
        assert_eq!(NodeFile::parse(&node.render()), Some(node));
    }
}

fn refusal(text: &str) {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { panic!("no JSON object: {text}") };
    let version = object.get("cniVersion").and_then(Value::as_str);
    assert!(SpecVersion::ALL.iter().any(|known| version == Some(known.as_str())), "{text}");
    assert!(object.get("code").is_some_and(Value::is_u64), "{text}");
    assert!(object.get("msg").is_some_and(Value::is_string), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_stored_attachments_passes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/cni_state");
        let mut files = 0;
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            cni_state(&std::fs::read(entry.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 10, "{} holds {files} files", dir.display());
    }

    #[test]
    fn the_cni_config_corpus_passes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/cni_config");
        let mut files = 0;
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            conf(&std::fs::read(entry.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 10, "{} holds {files} files", dir.display());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_pass(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            conf(&bytes);
        }
    }
}
