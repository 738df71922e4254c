//! The runtime's call: environment variables and configuration, validated before anything is done.

use std::path::PathBuf;

use crate::attachment::{Attachment, is_identifier, is_interface};
use crate::conf::Conf;
use crate::error::CniError;

/// One call of the plugin.
#[derive(Debug)]
pub(crate) struct Call {
    /// What to do.
    pub(crate) command: Command,
    /// The network configuration. VERSION needs none of it.
    pub(crate) conf: Conf,
    /// Directories with plugins (`CNI_PATH`).
    pub(crate) plugin_dirs: Vec<PathBuf>,
}

/// A command's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandName {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl CommandName {
    /// All of them.
    pub(crate) const ALL: [Self; 6] =
        [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// The name as `CNI_COMMAND` has it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.as_str() == text)
    }
}

/// A command with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Attach a pod.
    Add(Attachment, PathBuf),
    /// Detach a pod. The namespace may be gone.
    Del(Attachment),
    /// Check that a pod is attached as ADD left it.
    Check(Attachment, PathBuf),
    /// Check whether pods could be attached.
    Status,
    /// Release what belongs to no pod.
    Gc,
    /// List the supported versions.
    Version,
}

impl Call {
    /// Reads a call from environment variables and standard input.
    pub(crate) fn new(environment: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Self, CniError> {
        let variable = |name: &'static str| environment(name).filter(|value| !value.is_empty());
        let needed =
            |name: &'static str| variable(name).ok_or(CniError::Environment { name, found: String::new() });
        let attachment = || {
            let container = checked("CNI_CONTAINERID", needed("CNI_CONTAINERID")?, is_identifier)?;
            let interface = checked("CNI_IFNAME", needed("CNI_IFNAME")?, is_interface)?;
            Ok::<_, CniError>(Attachment { container, interface })
        };
        let netns = || needed("CNI_NETNS").map(PathBuf::from);
        let name = needed("CNI_COMMAND")?;
        let Some(name) = CommandName::parse(&name) else {
            return Err(CniError::Environment {
                name: "CNI_COMMAND",
                found: name.chars().take(32).collect(),
            });
        };
        let command = match name {
            CommandName::Add => Command::Add(attachment()?, netns()?),
            CommandName::Del => Command::Del(attachment()?),
            CommandName::Check => Command::Check(attachment()?, netns()?),
            CommandName::Status => Command::Status,
            CommandName::Gc => Command::Gc,
            CommandName::Version => Command::Version,
        };
        let conf = match name {
            CommandName::Version => Conf::for_version(input),
            CommandName::Add
            | CommandName::Del
            | CommandName::Check
            | CommandName::Status
            | CommandName::Gc => Conf::parse(input)?,
        };
        let plugin_dirs = variable("CNI_PATH").map(|dirs| dirs.split(':').map(PathBuf::from).collect());
        Ok(Self { command, conf, plugin_dirs: plugin_dirs.unwrap_or_default() })
    }
}

fn checked(name: &'static str, value: String, is_good: fn(&str) -> bool) -> Result<String, CniError> {
    if is_good(&value) {
        Ok(value)
    } else {
        Err(CniError::Environment { name, found: value.chars().take(64).collect() })
    }
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
