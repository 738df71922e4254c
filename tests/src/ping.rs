//! ICMP echo by the `ping` program, and a monitor that sees from which address requests arrive.

use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketAddrAny, SocketFlags, SocketType, ipproto, recvfrom};

use crate::address::IpVersion;
use crate::error::Error;
use crate::frame::MARKER;
use crate::host::End;

/// What came of an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingOutcome {
    /// The reply came.
    Answered,
    /// The sender's own kernel refused it as too long (EMSGSIZE), by what it knows of the path's MTU.
    TooLong,
    /// No reply, for whatever other reason.
    Silent,
}

/// Sends one echo request and waits for the reply.
///
/// `size` is the payload in bytes: the IP packet is 28 bytes longer with IPv4, 48 with IPv6. With `whole` it may not
/// be fragmented, by the sender or on the path (the DF bit).
pub fn ping(
    from: &End,
    to: IpAddr,
    size: usize,
    whole: bool,
    timeout: Duration,
) -> Result<PingOutcome, Error> {
    let mut command = Command::new("ping");
    let pattern = format!("{:016x}", u64::from_be_bytes(*MARKER));
    command.args(["-n", "-c", "1", "-p", &pattern, "-M", if whole { "do" } else { "dont" }]);
    command.args(["-s", &size.to_string(), "-W", &format!("{:.3}", timeout.as_secs_f64()), &to.to_string()]);
    // Messages are parsed, so they must not be translated.
    command.env("LC_ALL", "C");
    let output = from.net().run(|| command.output())?.map_err(|source| Error::Run {
        program: "ping".into(),
        host: from.name().to_owned(),
        source,
    })?;
    outcome(&output).map_err(|stderr| Error::Failed {
        program: format!("ping {to}"),
        host: from.name().to_owned(),
        status: output.status,
        stderr,
    })
}

fn outcome(output: &Output) -> Result<PingOutcome, String> {
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let said = |words: &str| text.to_ascii_lowercase().contains(words);
    match output.status.code() {
        Some(0) => Ok(PingOutcome::Answered),
        _ if said("message too long") => Ok(PingOutcome::TooLong),
        // 1: no reply; 2: an error, of which those by the network's hand count as silence.
        Some(1) => Ok(PingOutcome::Silent),
        _ if said("unreachable") || said("not permitted") || said("invalid argument") => {
            Ok(PingOutcome::Silent)
        }
        _ => Err(text.into_owned()),
    }
}

/// A raw socket that gets a copy of every echo request with the lab's marker.
#[derive(Debug)]
pub(crate) struct EchoMonitor {
    socket: OwnedFd,
    version: IpVersion,
}

impl EchoMonitor {
    /// Watches from now on.
    pub(crate) fn start(end: &End, version: IpVersion) -> Result<Self, Error> {
        let (family, protocol) = match version {
            IpVersion::V4 => (AddressFamily::INET, ipproto::ICMP),
            IpVersion::V6 => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = || rustix::net::socket_with(family, SocketType::RAW, flags, Some(protocol));
        let socket = end.net().run(open)?.map_err(|errno| Error::Socket {
            action: "open a raw ICMP socket",
            host: end.name().to_owned(),
            source: errno.into(),
        })?;
        Ok(Self { socket, version })
    }

    /// The source of the first request that came since the start, if one did.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        loop {
            match self.receive() {
                Ok(Some(source)) => return Some(source),
                Ok(None) => {}
                Err(_nothing_more) => return None,
            }
        }
    }

    fn receive(&self) -> io::Result<Option<IpAddr>> {
        let mut buffer = [MaybeUninit::uninit(); 2048];
        let (received, _rest, _length, from) = {
            let ((received, rest), length, from) = recvfrom(&self.socket, &mut buffer, RecvFlags::empty())?;
            (received, rest, length, from)
        };
        // With IPv4 a raw socket sees the IP header too, with IPv6 it does not.
        let (header, request) = match self.version {
            IpVersion::V4 => (usize::from(received.first().copied().unwrap_or(0) & 0x0f) * 4, 8),
            IpVersion::V6 => (0, 128),
        };
        let is_request = received.get(header) == Some(&request) && crate::classify::marked(received);
        let source = from.and_then(|from| source_of(&from));
        Ok(source.filter(|_| is_request))
    }
}

fn source_of(from: &SocketAddrAny) -> Option<IpAddr> {
    std::net::SocketAddr::try_from(from.clone()).ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn output(code: i32, stderr: &str) -> Output {
        Output { status: ExitStatus::from_raw(code << 8), stdout: Vec::new(), stderr: stderr.into() }
    }

    #[test]
    fn outcomes_are_told_from_exit_codes_and_words() {
        assert_eq!(outcome(&output(0, "")), Ok(PingOutcome::Answered));
        assert_eq!(outcome(&output(1, "")), Ok(PingOutcome::Silent));
        assert_eq!(
            outcome(&output(1, "ping: local error: message too long, mtu=1420")),
            Ok(PingOutcome::TooLong)
        );
        assert_eq!(outcome(&output(2, "ping: connect: Network is unreachable")), Ok(PingOutcome::Silent));
        assert!(outcome(&output(2, "ping: invalid argument: 'x'")).is_ok());
        assert!(outcome(&output(2, "ping: usage")).is_err());
    }
}
