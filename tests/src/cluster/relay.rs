//! Lets programs outside the lab reach the API server: connections to a port of the machine's loopback are led to it.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use super::ClusterError;
use crate::error::Error;
use crate::space::NetNs;

/// Listens on a free port of `127.0.0.1` and leads each connection to an address in a network namespace, for as long as the
/// process runs.
pub(super) fn start(to: SocketAddr, net: &NetNs) -> Result<SocketAddr, ClusterError> {
    let failed =
        |source| Error::Socket { action: "listen on 127.0.0.1", host: "the machine".to_owned(), source };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let net = net.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let net = net.clone();
            thread::spawn(move || {
                // A server that does not answer closes the connection: that is all there is to say to a client.
                if let Ok(Ok(server)) = net.run(|| TcpStream::connect(to)) {
                    let _closed = join(&client, &server);
                }
            });
        }
    });
    Ok(address)
}

/// Copies in both directions until both are closed.
fn join(one: &TcpStream, other: &TcpStream) -> io::Result<()> {
    thread::scope(|scope| {
        let there = scope.spawn(|| copy(one, other));
        let back = copy(other, one);
        there.join().map_err(|_panic| io::ErrorKind::Other)??;
        back
    })
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    to.flush()?;
    let _closed_already = to.shutdown(Shutdown::Write);
    copied.map(drop)
}
