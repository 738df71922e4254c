//! The machine that the suite runs on, as a client and as a server outside of the cluster.

use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cases::{Node, OUTSIDE, Pod};

/// A node that does not answer for so long is not reached from here.
const REACHED_WITHIN: Duration = Duration::from_secs(3);

/// The server outside can't be started.
#[derive(Debug, thiserror::Error)]
#[error("start {} serve 0 as the server outside of the cluster", program.display())]
pub struct OutsideError {
    /// The program.
    program: PathBuf,
    /// Why not.
    #[source]
    source: io::Error,
}

/// A server on this machine. Ends when dropped.
#[derive(Debug)]
pub struct Outside {
    child: Child,
    port: u16,
    program: PathBuf,
}

impl Outside {
    /// Starts it on a free port, with the program that pods run too.
    pub fn start(program: PathBuf) -> Result<Self, OutsideError> {
        let failed = |source| OutsideError { program: program.clone(), source };
        let mut command = Command::new(&program);
        command.args(["serve", "0"]).env("POD_NAME", OUTSIDE).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        let Ok(port) = line.trim().parse() else {
            let _it_ended = child.kill();
            let _its_status = child.wait();
            return Err(failed(io::Error::other("it does not say its port")));
        };
        Ok(Self { child, port, program })
    }

    /// The program.
    pub fn program(&self) -> &PathBuf {
        &self.program
    }

    /// This machine as a node sees it, if it reaches the node: one that connects to a port that a pod there serves.
    pub fn towards(&self, node: &Node, port: u16) -> Option<Pod> {
        let seen: Vec<IpAddr> =
            node.addresses.iter().filter_map(|&address| own_address((address, port).into())).collect();
        (!seen.is_empty()).then(|| Pod {
            name: OUTSIDE.to_owned(),
            set: OUTSIDE.to_owned(),
            node: node.name.clone(),
            addresses: seen,
            port: self.port,
            host_network: true,
        })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _it_ended = self.child.kill();
        let _its_status = self.child.wait();
    }
}

/// The address of this machine that a server sees, if it answers.
fn own_address(server: SocketAddr) -> Option<IpAddr> {
    let stream = TcpStream::connect_timeout(&server, REACHED_WITHIN).ok()?;
    Some(stream.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_address_that_a_server_sees_is_known_if_it_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        assert_eq!(own_address(server), Some(IpAddr::from([127, 0, 0, 1])));
        drop(listener);
        assert_eq!(own_address(server), None);
    }

    #[test]
    fn a_program_that_serves_nothing_is_an_error() {
        let error = Outside::start("/bin/true".into()).unwrap_err();
        assert!(error.to_string().contains("/bin/true serve 0"), "{error}");
    }
}
