//! What runs in the pods of the end-to-end suite, as one static program.
//!
//! ```text
//! e2e-pod pause                                    does nothing for ever
//! e2e-pod serve [localhost:]PORT                   says to clients who they are: "NAME ADDRESS"; prints the port,
//!                                                  which is any free one if it is 0
//! e2e-pod ask tcp|udp|sctp ADDRESS:PORT [SECONDS]  asks such a server and prints what it said
//! e2e-pod spread TIMES ADDRESS:PORT                asks over TCP so many times, and prints the names of all that answered
//! e2e-pod send BYTES ADDRESS:PORT                  sends so many bytes over TCP and prints how many were acknowledged
//! e2e-pod fit ADDRESS:PORT                         sends a datagram as large as the path's MTU, and one a byte larger
//! e2e-pod stream SECONDS LOST ADDRESS:PORT         sends 100 datagrams a second and counts the answers; fails if more than LOST
//!                                                  are missing
//! e2e-pod detach SECONDS LOST ADDRESS:PORT         begins such a stream in the background and prints its number; it goes on
//!                                                  when nobody is connected any more
//! e2e-pod collect NUMBER                           ends it and prints what it says
//! e2e-pod protocols                                prints which of the protocols this kernel has
//! ```

mod client;
mod detached;
mod sctp;
mod server;

use std::env;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// How long a client waits for an answer if it is not told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// A first byte that says that the client wants its bytes counted.
const COUNT: u8 = b'c';

const USAGE: &str = "pause | serve [localhost:]PORT | ask tcp|udp|sctp ADDRESS:PORT [SECONDS] | \
     spread TIMES ADDRESS:PORT | send BYTES ADDRESS:PORT | fit ADDRESS:PORT | \
     stream SECONDS LOST ADDRESS:PORT | detach SECONDS LOST ADDRESS:PORT | collect NUMBER | protocols";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(said) => match io::stdout().write_all(said.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_nobody_listens) => ExitCode::FAILURE,
        },
        Err(error) => {
            let _nobody_listens = writeln!(io::stderr(), "e2e-pod: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns what is to be printed at the end.
fn run(words: &[&str]) -> io::Result<String> {
    match words {
        ["pause"] => loop {
            thread::park();
        },
        ["serve", port] => server::serve(port).map(|()| String::new()),
        ["ask", protocol, server] => client::ask(protocol, address(server)?, PATIENCE),
        ["ask", protocol, server, seconds] => {
            client::ask(protocol, address(server)?, Duration::from_secs(number(seconds)?.into()))
        }
        ["spread", times, server] => client::spread(number(times)?, address(server)?),
        ["send", bytes, server] => client::send(number(bytes)?, address(server)?),
        ["fit", server] => client::fit(address(server)?),
        ["stream", seconds, lost, server] => {
            client::stream(number(seconds)?, number(lost)?, address(server)?, || false)
        }
        ["detach", words @ ..] => detached::start(words),
        ["detached", directory, seconds, lost, server] => {
            detached::stream(Path::new(directory), number(seconds)?, number(lost)?, address(server)?)
        }
        ["collect", started] => detached::collect(number(started)?),
        ["protocols"] => {
            let sctp = if sctp::is_known() { " sctp" } else { "" };
            Ok(format!("tcp udp icmp{sctp}\n"))
        }
        _ => Err(invalid(USAGE)),
    }
}

fn address(text: &str) -> io::Result<SocketAddr> {
    text.parse().map_err(|_| invalid(&format!("an address and a port, not {text:?}")))
}

fn number(text: &str) -> io::Result<u32> {
    text.parse().map_err(|_| invalid(&format!("a number, not {text:?}")))
}

fn invalid(expected: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("expected {expected}"))
}
