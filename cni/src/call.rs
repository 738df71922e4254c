//! What the runtime asks for: environment variables and the configuration, checked before anything is done.

use std::path::PathBuf;

use crate::conf::{Conf, is_identifier};
use crate::error::CniError;

/// Longest configuration that is read, in bytes. Results of former plugins and lists of attachments are part
/// of it.
pub const MAX_INPUT: u64 = 4 << 20;

/// One call of the plugin.
#[derive(Debug)]
pub struct Call {
    /// What to do.
    pub command: Command,
    /// The network configuration. VERSION needs none of it.
    pub conf: Conf,
}

/// A command with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a pod.
    Add(Attachment, PathBuf),
    /// Detach a pod. The namespace may be gone.
    Del(Attachment),
    /// See whether a pod is attached as it should be.
    Check(Attachment, PathBuf),
    /// See whether pods could be attached.
    Status,
    /// Release what belongs to no pod any more.
    Gc,
    /// Say which versions are spoken.
    Version,
}

/// Which interface of which container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The container's id as the runtime has it.
    pub container: String,
    /// Name of the interface inside.
    pub interface: String,
}

impl Call {
    /// Reads a call from environment variables and standard input.
    pub fn new(environment: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Self, CniError> {
        if input.len() as u64 > MAX_INPUT {
            return Err(CniError::InputTooLong { limit: MAX_INPUT });
        }
        let variable = |name: &'static str| environment(name).filter(|value| !value.is_empty());
        let needed =
            |name: &'static str| variable(name).ok_or(CniError::Environment { name, found: String::new() });
        let attachment = || {
            let container = checked("CNI_CONTAINERID", needed("CNI_CONTAINERID")?, is_identifier)?;
            let interface = checked("CNI_IFNAME", needed("CNI_IFNAME")?, is_interface)?;
            Ok::<_, CniError>(Attachment { container, interface })
        };
        let netns = || needed("CNI_NETNS").map(PathBuf::from);
        let command = match needed("CNI_COMMAND")?.as_str() {
            "ADD" => Command::Add(attachment()?, netns()?),
            "DEL" => Command::Del(attachment()?),
            "CHECK" => Command::Check(attachment()?, netns()?),
            "STATUS" => Command::Status,
            "GC" => Command::Gc,
            "VERSION" => Command::Version,
            other => {
                return Err(CniError::Environment {
                    name: "CNI_COMMAND",
                    found: other.chars().take(32).collect(),
                });
            }
        };
        let conf = if command == Command::Version { Conf::for_version(input) } else { Conf::parse(input)? };
        Ok(Self { command, conf })
    }
}

fn checked(name: &'static str, value: String, is_good: fn(&str) -> bool) -> Result<String, CniError> {
    if is_good(&value) {
        Ok(value)
    } else {
        Err(CniError::Environment { name, found: value.chars().take(64).collect() })
    }
}

/// What the kernel takes as an interface's name.
fn is_interface(text: &str) -> bool {
    let clean = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    (1..=15).contains(&text.len()) && text != "." && text != ".." && clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(pairs: &[(&str, &str)]) -> Result<Call, CniError> {
        let find =
            |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Call::new(find, br#"{"cniVersion":"1.0.0","name":"meshd","type":"mesh-cni"}"#)
    }

    #[test]
    fn each_command_takes_what_the_specification_says() {
        let id = [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
        for command in ["ADD", "CHECK"] {
            let with = [&id[..], &[("CNI_COMMAND", command), ("CNI_NETNS", "/run/netns/x")]].concat();
            assert!(call(&with).is_ok(), "{command}");
            let without = [&id[..], &[("CNI_COMMAND", command)]].concat();
            assert!(
                matches!(call(&without), Err(CniError::Environment { name: "CNI_NETNS", .. })),
                "{command}"
            );
        }
        let del = [&id[..], &[("CNI_COMMAND", "DEL")]].concat();
        assert!(call(&del).is_ok(), "DEL needs no namespace");
        for command in ["GC", "STATUS", "VERSION"] {
            assert!(call(&[("CNI_COMMAND", command)]).is_ok(), "{command}");
        }
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        for (name, value) in [
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a-name-too-long-for-linux"),
            ("CNI_IFNAME", "a b"),
            ("CNI_COMMAND", "add"),
        ] {
            let mut pairs = vec![("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
            pairs.retain(|(known, _)| *known != name);
            pairs.push((name, value));
            let refused = call(&pairs).unwrap_err();
            assert!(
                matches!(refused, CniError::Environment { name: found, .. } if found == name),
                "{value}: {refused}"
            );
        }
    }
}
