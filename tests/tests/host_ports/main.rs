//! Host ports in a mesh: who reaches a pod by a port of its node, and what becomes of the ports when others change the
//! node's nft tables, or when meshd is upgraded.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod former;
mod reach;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lab::cni::{Attachment, NetworkConfig};
use lab::{NetNs, Node};
use serde_json::{Value, json};

/// The pods' port.
const POD_PORT: u16 = 9000;
/// How long anything that must happen may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A pod with host ports, attached as a runtime does it.
struct Served<'a> {
    node: &'a Node,
    config: NetworkConfig,
    net: NetNs,
    attachment: Attachment,
    result: Value,
}

impl<'a> Served<'a> {
    /// Attaches a pod whose port 9000 is to be reached by this TCP port of the node.
    fn new(node: &'a Node, name: &str, port: u16) -> Self {
        Self::with(node, name, &json!([{"hostPort": port, "containerPort": POD_PORT, "protocol": "tcp"}]))
    }

    fn with(node: &'a Node, name: &str, ports: &Value) -> Self {
        let config = with_ports(node, ports);
        let (net, attachment) = node.sandbox(name).unwrap();
        let result = config.add(node, &attachment).unwrap();
        Self { node, config, net, attachment, result }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        lab::cni::addresses(&self.result)
    }

    fn delete(self) {
        self.config.del(self.node, &self.attachment, Some(&self.result)).unwrap();
        self.node.remove_netns(&self.attachment).unwrap();
    }

    /// Whether a client reaches the pod at an address of the node; the client's address as the pod sees it.
    fn reached_from(&self, client: &NetNs, to: SocketAddr, within: Duration) -> Option<IpAddr> {
        let listener = self.net.run(|| TcpListener::bind(("::", POD_PORT))).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let since = Instant::now();
        while since.elapsed() < within {
            let connected =
                client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(500))).unwrap();
            let Ok(mut stream) = connected else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            // Connected to the pod or to somebody else. The listener may see the connection later than the client.
            let Some((mut accepted, from)) = accepted_within(&listener, Duration::from_millis(500)) else {
                continue;
            };
            accepted.write_all(b"pod").unwrap();
            let mut answer = [0; 3];
            stream.read_exact(&mut answer).unwrap();
            return Some(from.ip().to_canonical());
        }
        None
    }
}

/// The next connection to a listener that doesn't block.
fn accepted_within(listener: &TcpListener, within: Duration) -> Option<(TcpStream, SocketAddr)> {
    let since = Instant::now();
    loop {
        match listener.accept() {
            Ok(connection) => return Some(connection),
            Err(_) if since.elapsed() < within => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => return None,
        }
    }
}

/// The node's configuration with host ports in the keys of the plugins that take them.
fn with_ports(node: &Node, ports: &Value) -> NetworkConfig {
    node.wait_network(TIMEOUT).unwrap();
    let mut config = NetworkConfig::load(node).unwrap();
    for plugin in &mut config.plugins {
        if plugin.get("capabilities").is_some_and(|able| able["portMappings"] == true) {
            plugin.insert("runtimeConfig".to_owned(), json!({"portMappings": ports}));
        }
    }
    config
}

/// What a program prints.
fn output(node: &Node, program: &str, arguments: &[&str]) -> String {
    node.command(program).args(arguments.iter().copied()).run().unwrap()
}
