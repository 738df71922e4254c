//! Namespaces in place of a node and its pods, and calls of the plugin in them.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use cni::node_file::NodeFile;
use ipnetwork::IpNetwork;
use linux::guard;
use linux::host_ports::{OwnPorts, Protocol};
use linux::netns::NetworkNamespace;
use plan::network::Guard;
use serde_json::{Value, json};
use tempfile::TempDir;

/// MTU that the nodes' files name.
pub(crate) const MTU: u32 = 1400;

/// Addresses of a node on its network.
pub(crate) const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Addresses of the host beside it.
pub(crate) const OUTSIDE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

/// A process that keeps namespaces alive; it ends with this value, and with the thread that started it.
struct Holder(Child);

impl Holder {
    fn new(namespaces: &[&str]) -> Self {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(namespaces)
            .args(["sh", "-c", "echo ready; exec sleep 3600"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start setpriv and unshare");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("read from unshare");
        assert_eq!(line, "ready\n", "namespaces {namespaces:?} can't be created; these tests need root");
        Self(child)
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    /// A program inside.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>, mount: bool) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.0.id())).arg("--net");
        command.args(mount.then_some("--mount")).arg("--").arg(program);
        command
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a call of the plugin came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Whether it ended with exit code 0.
    pub(crate) success: bool,
    /// Standard output as JSON; null if there was none.
    pub(crate) json: Value,
}

impl Outcome {
    /// The addresses of a result.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        assert!(self.success, "{self:?}");
        let ips = self.json["ips"].as_array().expect("a result has ips");
        let address = |ip: &Value| ip["address"].as_str().unwrap().parse::<IpNetwork>().unwrap();
        ips.iter().map(|ip| address(ip).ip()).collect()
    }

    /// The error's code.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.success, "{self:?}");
        self.json["code"].as_u64().expect("an error has a code")
    }

    /// Asserts that it succeeded without a word.
    pub(crate) fn silent(&self) {
        assert!(self.success && self.json.is_null(), "{self:?}");
    }
}

/// One call.
pub(crate) struct Call<'a> {
    node: &'a Node,
    /// Environment without what is empty.
    pub(crate) env: Vec<(&'static str, String)>,
    /// The network configuration.
    pub(crate) conf: Value,
}

impl Call<'_> {
    /// Sets or, with an empty value, removes an environment variable.
    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.retain(|(known, _)| *known != name);
        if !value.is_empty() {
            self.env.push((name, value.to_owned()));
        }
        self
    }

    /// Sets a key of the configuration.
    pub(crate) fn conf(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.conf[key] = value.into();
        self
    }

    /// Starts the plugin and gives it its input.
    pub(crate) fn start(&self) -> Child {
        self.start_with(self.conf.to_string().as_bytes())
    }

    /// Runs the plugin.
    pub(crate) fn run(&self) -> Outcome {
        outcome(self.start())
    }

    /// Runs the plugin with any input.
    pub(crate) fn run_with(&self, input: &[u8]) -> Outcome {
        outcome(self.start_with(input))
    }

    /// Runs the plugin under another name.
    pub(crate) fn run_as(&self, name: &str) -> Outcome {
        let path = self.node.directory.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_mesh-cni"), &path).unwrap();
        let outcome = outcome(self.start_binary(&path, self.conf.to_string().as_bytes()));
        std::fs::remove_file(path).unwrap();
        outcome
    }

    fn start_with(&self, input: &[u8]) -> Child {
        self.start_binary(Path::new(env!("CARGO_BIN_EXE_mesh-cni")), input)
    }

    fn start_binary(&self, binary: &Path, input: &[u8]) -> Child {
        let mut child = self
            .node
            .holder
            .command(binary, true)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start nsenter");
        // A plugin that refuses its environment does not read.
        let _ = child.stdin.take().expect("it is piped").write_all(input);
        child
    }
}

fn outcome(child: Child) -> Outcome {
    let Output { status, stdout, stderr } = child.wait_with_output().expect("wait for the plugin");
    let text = String::from_utf8(stdout).expect("JSON is UTF-8");
    assert!(stderr.is_empty(), "the plugin wrote to standard error: {}", String::from_utf8_lossy(&stderr));
    let json =
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("one JSON document") };
    Outcome { success: status.success(), json }
}

/// A node.
pub(crate) struct Node {
    holder: Holder,
    directory: TempDir,
    file: NodeFile,
}

impl Node {
    /// A node that has these podCIDRs, forwards, and has the first address of each as its own.
    pub(crate) fn new(pod_cidrs: &[&str]) -> Self {
        let holder = Holder::new(&["--net", "--mount", "--propagation=private"]);
        let pod_cidrs: Vec<IpNetwork> = pod_cidrs.iter().map(|text| text.parse().unwrap()).collect();
        let mesh_addresses: Vec<IpAddr> =
            pod_cidrs.iter().map(|range| range.iter().nth(1).unwrap()).collect();
        let file = NodeFile {
            ready: true,
            reason: None,
            guard: true,
            cluster_cidrs: ["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()].into(),
            service_cidrs: ["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()].into(),
            own_ports: [OwnPorts { protocol: Protocol::Udp, first: 51840, last: 51842 }].into(),
            mesh_links: ["mesh-a".parse().unwrap(), "mesh-b".parse().unwrap()].into(),
            pod_cidrs,
            mesh_addresses,
            source: None,
            mtu: MTU,
        };
        let node = Self { holder, directory: TempDir::new().unwrap(), file };
        node.sh("ip link set lo up && sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for address in &node.file.mesh_addresses {
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            // The kernel makes the local route of an IPv6 address a moment later.
            node.sh(&format!(
                "ip address add {address} dev lo {nodad}
                 until ip route get {address} from {address} | grep -q local; do sleep 0.01; done"
            ));
        }
        node.set_file(|_| ());
        node.set_guard();
        node
    }

    /// Puts the guard in place, as the daemon would.
    pub(crate) fn set_guard(&self) {
        let guard = Guard {
            cluster: self.file.cluster_cidrs.clone(),
            mesh_links: self.file.mesh_links.clone(),
            local_pods: self.file.pod_cidrs.iter().copied().collect(),
            ..Guard::default()
        };
        let namespace = NetworkNamespace::open(&self.netns()).unwrap();
        namespace.run(|| guard::set(&guard)).unwrap().unwrap();
    }

    /// Changes the file that the daemon would write.
    pub(crate) fn set_file(&self, change: impl FnOnce(&mut NodeFile)) {
        let mut file = self.file.clone();
        change(&mut file);
        std::fs::write(self.node_file(), file.render()).unwrap();
    }

    /// Ports that the node listens on, as its file has them.
    pub(crate) fn own_ports(&self) -> BTreeSet<OwnPorts> {
        self.file.own_ports.clone()
    }

    pub(crate) fn node_file(&self) -> PathBuf {
        self.directory.path().join("node.json")
    }

    /// The plugin's state directory, which the plugin creates.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Where the test finds a path of the node's mount namespace.
    pub(crate) fn outside(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.holder.0.id())).join(path.strip_prefix("/").unwrap())
    }

    /// Path of the node's own network namespace.
    pub(crate) fn netns(&self) -> PathBuf {
        self.holder.netns()
    }

    /// A host beside the node, at [`OUTSIDE`]; the node has [`NODE`].
    pub(crate) fn neighbour(&self) -> Pod {
        let outside = Pod::new("outside");
        let process = outside.holder.0.id();
        self.sh(&format!(
            "ip link add eth0 type veth peer name eth0 netns {process} && ip link set eth0 up
             ip address add {}/24 dev eth0 && ip address add {}/64 dev eth0 nodad",
            NODE[0], NODE[1]
        ));
        outside.sh(&format!(
            "ip link set lo up && ip link set eth0 up
             ip address add {}/24 dev eth0 && ip address add {}/64 dev eth0 nodad",
            OUTSIDE[0], OUTSIDE[1]
        ));
        outside
    }

    /// Runs something in the node's network namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        NetworkNamespace::open(&self.netns()).unwrap().run(work).unwrap()
    }

    /// A call for a container called `container`.
    pub(crate) fn call(&self, command: &str, container: &str, netns: &Path) -> Call<'_> {
        let conf = json!({
            "cniVersion": "1.1.0",
            "name": "meshd",
            "type": "mesh-cni",
            "nodeFile": self.node_file(),
            "stateDir": self.state_dir(),
        });
        Call { node: self, env: Vec::new(), conf }
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns.to_str().unwrap())
            .env("CNI_PATH", "/opt/cni/bin")
    }

    /// A call for the pod.
    pub(crate) fn pod_call(&self, command: &str, pod: &Pod) -> Call<'_> {
        self.call(command, &pod.name, &pod.netns())
    }

    pub(crate) fn add(&self, pod: &Pod) -> Outcome {
        self.pod_call("ADD", pod).run()
    }

    pub(crate) fn del(&self, pod: &Pod) {
        self.pod_call("DEL", pod).run().silent();
    }

    /// GC that leaves alone what belongs to these pods.
    pub(crate) fn gc(&self, valid: &[&Pod]) -> Outcome {
        let valid: Vec<Value> =
            valid.iter().map(|pod| json!({"containerID": pod.name, "ifname": "eth0"})).collect();
        self.bare_call("GC").conf("cni.dev/valid-attachments", valid).run()
    }

    /// A call without a container: STATUS, GC, VERSION.
    pub(crate) fn bare_call(&self, command: &str) -> Call<'_> {
        self.call(command, "", Path::new("")).env("CNI_IFNAME", "")
    }

    /// Runs a shell line that must succeed; returns what it printed.
    pub(crate) fn sh(&self, line: &str) -> String {
        succeed(self.holder.command("sh", true).args(["-ec", line]), line)
    }

    /// Everything of the network that ADD could leave behind.
    pub(crate) fn listing(&self) -> String {
        self.sh("ip -j address; ip -j route show table all; ip -j -6 route show table all; \
             ip -j neigh show nud permanent; ip -j -6 neigh show nud permanent")
    }

    /// The pods' links and routes alone: unlike all else, the kernel has nothing left to do about them once a
    /// call has ended.
    pub(crate) fn attached(&self) -> String {
        self.sh("ip -o link | cut -d: -f2; ip route show proto 84; ip -6 route show proto 84")
    }

    /// Names of the reservations and of anything else beside them.
    pub(crate) fn reservations(&self) -> Vec<String> {
        let directory = self.outside(&self.state_dir()).join("attachments");
        let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Asserts that the node is as it was, and that nothing is reserved.
    pub(crate) fn assert_clean(&self, listing_before: &str) {
        assert_eq!(self.listing(), listing_before, "links, addresses, routes or neighbours are left");
        assert_eq!(self.reservations(), Vec::<String>::new());
    }

    /// Whether a ping arrives and comes back.
    pub(crate) fn pings(&self, address: IpAddr) -> bool {
        ping(self.holder.command("ping", true), address, &[])
    }
}

/// A pod's network namespace.
pub(crate) struct Pod {
    holder: Holder,
    /// Its container's id.
    pub(crate) name: String,
}

impl Pod {
    pub(crate) fn new(name: &str) -> Self {
        Self { holder: Holder::new(&["--net"]), name: name.to_owned() }
    }

    pub(crate) fn netns(&self) -> PathBuf {
        self.holder.netns()
    }

    /// Runs a shell line that must succeed; returns what it printed.
    pub(crate) fn sh(&self, line: &str) -> String {
        succeed(self.holder.command("sh", false).args(["-ec", line]), line)
    }

    /// Runs something in the pod's network namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        NetworkNamespace::open(&self.netns()).unwrap().run(work).unwrap()
    }

    /// What `ip -j` prints.
    pub(crate) fn ip(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.sh(&format!("ip -j {arguments}"))).unwrap()
    }

    /// Whether a ping arrives and comes back.
    pub(crate) fn pings(&self, address: IpAddr, options: &[&str]) -> bool {
        ping(self.holder.command("ping", false), address, options)
    }
}

fn ping(mut command: Command, address: IpAddr, options: &[&str]) -> bool {
    let ping = command.args(["-n", "-q", "-c3", "-i0.05", "-W2"]).args(options).arg(address.to_string());
    ping.output().expect("start ping").status.success()
}

fn succeed(command: &mut Command, line: &str) -> String {
    let Output { status, stdout, stderr } = command.output().expect("start nsenter");
    assert!(status.success(), "{line}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}
