//! The metrics page of the daemon in the caller's network namespace.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

/// Fetches the page. For [`crate::Host::run`], which enters a node's namespace.
pub fn metrics() -> io::Result<String> {
    let mut stream = TcpStream::connect("127.0.0.1:9384")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
