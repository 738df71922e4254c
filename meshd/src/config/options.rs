//! The table of options. Each row has the type, the parser, the default and the text of one option; flags, environment
//! variables, the YAML file and docs/options.md are derived from it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use keyring::pq::Mode;
use plan::names::Host;
use plan::network::LinkName;
use tunnel::OffloadOption;

use super::SealingSource;
use super::value::{self, Expected, Storage};
use crate::device::BackendOption;

/// What help texts and documentation say about an option of `meshd run`.
#[derive(Debug)]
pub struct OptionSpec {
    /// Name of the flag without dashes, and key in the YAML file.
    pub name: &'static str,
    /// Form of the value, for help texts.
    pub value: &'static str,
    /// Value if no source sets one.
    pub default: Option<&'static str>,
    /// Whether a source must set it.
    pub required: bool,
    /// What the option does, in one or two sentences.
    pub help: &'static str,
}

impl OptionSpec {
    /// Name of the environment variable.
    pub fn environment(&self) -> String {
        format!("MESHD_{}", self.name.replace('-', "_").to_uppercase())
    }
}

/// Parses the text of a value.
pub(super) type Parse<T> = fn(&str) -> Result<T, Expected>;

/// An option that always has a value: it is required or has a default.
pub(super) struct Valued<T: 'static> {
    pub(super) spec: OptionSpec,
    pub(super) parse: Parse<T>,
}

impl<T> Valued<T> {
    const fn required(name: &'static str, value: &'static str, parse: Parse<T>, help: &'static str) -> Self {
        Self { spec: OptionSpec { name, value, default: None, required: true, help }, parse }
    }

    const fn new(
        name: &'static str,
        value: &'static str,
        default: &'static str,
        parse: Parse<T>,
        help: &'static str,
    ) -> Self {
        Self { spec: OptionSpec { name, value, default: Some(default), required: false, help }, parse }
    }
}

/// An option that may be absent.
pub(super) struct Optional<T: 'static> {
    pub(super) spec: OptionSpec,
    pub(super) parse: Parse<T>,
}

impl<T> Optional<T> {
    const fn new(name: &'static str, value: &'static str, parse: Parse<T>, help: &'static str) -> Self {
        Self { spec: OptionSpec { name, value, default: None, required: false, help }, parse }
    }
}

/// Defines a typed constant for each row, and the list of all rows.
macro_rules! table {
    ($($row:ident: $type:ty = $option:expr;)*) => {
        $(pub(super) static $row: $type = $option;)*

        /// All options, in the order of help and documentation.
        pub static OPTIONS: &[&OptionSpec] = &[$(&$row.spec),*];
    };
}

table! {
    NODE_NAME: Valued<String> = Valued::required(
        "node-name", "NAME", value::node_name,
        "Name of the Node that this daemon runs on.",
    );
    CLUSTER_CIDR: Valued<Vec<IpNetwork>> = Valued::required(
        "cluster-cidr", "CIDR[,CIDR]", value::cidrs,
        "The cluster's pod CIDRs, as configured on the controller manager. Packets with such an address leave a node through WireGuard or not at all.",
    );
    SERVICE_CIDR: Valued<Vec<IpNetwork>> = Valued::required(
        "service-cidr", "CIDR[,CIDR]", value::cidrs,
        "The cluster's service CIDRs, as configured on the API server. No node may claim an address in them.",
    );
    NODE_CIDR: Optional<Vec<IpNetwork>> = Optional::new(
        "node-cidr", "CIDR[,CIDR]", value::cidrs,
        "CIDRs of the nodes' own addresses. With it, a kubelet can't redirect pod traffic for any other address to its node; without it, a node gets any address that no other Node lists.",
    );
    ACCEPT_UNPROVEN: Valued<bool> = Valued::new(
        "accept-unproven", "true|false", "false", value::boolean,
        "Accepts nodes that have never proved that they have the private keys of the public keys they publish. For a rolling update from version 0.1 only: then any node can claim the key of another one that runs version 0.1, and control messages to and from it are not authenticated.",
    );
    OPEN_NODE_CIDRS: Optional<Vec<IpNetwork>> = Optional::new(
        "open-node-cidrs", "CIDR[,CIDR]", value::cidrs,
        "CIDRs of nodes that never run meshd, such as Windows nodes and virtual kubelets. What pods send to the InternalIP of any other Node that is not in the mesh is dropped; what they send to these leaves unencrypted.",
    );
    CLOSE_EXTERNAL_IPS: Valued<bool> = Valued::new(
        "close-external-ips", "true|false", "false", value::boolean,
        "Drops what pods send to the ExternalIP of a Node that has it on no link, instead of masquerading it: an address of a cloud's NAT, which leads to a node outside the mesh. Only within `node-cidr` where that is set, so that a kubelet can't close any other address; but for the API server's and those in `open-node-cidrs`.",
    );
    INPUT_FROM_PODS: Valued<bool> = Valued::new(
        "input-from-pods", "true|false", "true", value::boolean,
        "What meshd's rules accept on the mesh links where the chain INPUT of iptables (nft variant) drops: everything, so that pods of other nodes reach each port that this node listens on, as the Kubernetes network model wants for host-network pods; or, if false, the control port and ICMP alone. Rules before meshd's hold in both cases.",
    );
    GUARD_OWNER: Valued<bool> = Valued::new(
        "guard-owner", "true|false", "true", value::boolean,
        "Whether the guard's nftables table belongs to the daemon while it runs, so that no other program changes or removes it, not even `nft flush ruleset`. Needs Linux 6.9; on older kernels, and without it, the daemon restores the table within two seconds.",
    );
    KUBECONFIG: Optional<PathBuf> = Optional::new(
        "kubeconfig", "FILE", value::file,
        "Kubeconfig file; without it the pod's service account is used.",
    );
    API_SERVER_ADDRESS: Optional<BTreeSet<IpAddr>> = Optional::new(
        "api-server-address", "IP[,IP]", value::addresses,
        "Further API server addresses that only control-plane nodes may claim, in addition to the endpoints of the service `kubernetes`.",
    );
    ENDPOINT: Optional<Vec<Host>> = Optional::new(
        "endpoint", "HOST[,HOST]", value::hosts,
        "Further addresses at which peers reach this node, on none of its own links, up to 4, or fully qualified names that stand for such, resolved once a minute. Peers send to the node's own ports there, `port-a` and `port-b`. Addresses on its links and its Node's external ones need not be named. The annotation config.meshd.dev/endpoint on the Node overrides all.",
    );
    NAT: Valued<bool> = Valued::new(
        "nat", "true|false", "false", value::boolean,
        "This node is behind NAT: keepalives keep the NAT's mapping open from the start. Without it the node notices that from what peers tell it.",
    );
    INTERFACE_A: Valued<LinkName> = Valued::new(
        "interface-a", "NAME", "mesh-a", value::link,
        "Interface of slot a.",
    );
    INTERFACE_B: Valued<LinkName> = Valued::new(
        "interface-b", "NAME", "mesh-b", value::link,
        "Interface of slot b.",
    );
    PORT_A: Valued<u16> = Valued::new("port-a", "PORT", "51840", value::port, "UDP port of slot a.");
    PORT_B: Valued<u16> = Valued::new("port-b", "PORT", "51841", value::port, "UDP port of slot b.");
    BACKEND: Valued<BackendOption> = Valued::new(
        "backend", "auto|kernel|userspace", "auto", value::backend,
        "WireGuard implementation: the kernel's, or the userspace engine in the daemon. auto selects the kernel's if a WireGuard link can be created and read. Existing devices keep theirs until their key is replaced.",
    );
    THREADED_NAPI: Valued<bool> = Valued::new(
        "threaded-napi", "true|false", "false", value::boolean,
        "Lets the kernel's WireGuard receive in one thread per peer, which spreads the load over CPUs where few peers send much. Needs write access to the node's /sys.",
    );
    UDP_OFFLOAD: Valued<OffloadOption> = Valued::new(
        "udp-offload", "auto|on|off", "auto", value::offload,
        "Whether the userspace engine lets the kernel cut large messages into datagrams and join those that arrive. auto: unless a test over loopback fails at start, or the kernel refuses several in a row. off: where a driver damages or loses them.",
    );
    TUN_OFFLOAD: Valued<OffloadOption> = Valued::new(
        "tun-offload", "auto|on|off", "auto", value::offload,
        "Whether the userspace engine exchanges large packets with the kernel over its TUN devices. auto: unless the kernel refuses several in a row.",
    );
    MTU: Optional<u32> = Optional::new(
        "mtu", "BYTES", value::mtu,
        "MTU of the mesh; without it that of the route to each endpoint less 80 bytes. What is found not to pass to a peer lowers that of its routes.",
    );
    TABLE: Valued<u32> = Valued::new(
        "table", "NUMBER", "5184", value::table,
        "Routing table for peers' node addresses.",
    );
    RULE_PRIORITY: Valued<u32> = Valued::new(
        "rule-priority", "NUMBER", "5184", value::priority,
        "Priority of the policy rules that look up that table for pods. The next number is the priority of the rules by which packets for pods look up the main table; they must come before the rules of other programs.",
    );
    CONTROL_PORT: Valued<u16> = Valued::new(
        "control-port", "PORT", "51842", value::port,
        "UDP port of the control channel between nodes, inside the tunnel.",
    );
    RELAY_PORTS: Valued<RangeInclusive<u16>> = Valued::new(
        "relay-ports", "FIRST-LAST", "24000-28095", value::ports,
        "UDP ports that this node leases to other nodes if its Node has the label meshd.node-restriction.kubernetes.io/relay=true: two for each pair of nodes and slot. Other nodes must be able to reach them.",
    );
    RELAY_RATE: Valued<u64> = Valued::new(
        "relay-rate", "MBIT/S", "10000", value::rate,
        "What this node forwards as a relay at most, in Mbit/s; a pair of nodes gets half of it at most on each slot.",
    );
    PROBE_INTERVAL: Valued<Duration> = Valued::new(
        "probe-interval", "TIME", "30s", value::time,
        "How often the path to each peer is probed inside the tunnel for its round-trip time and for the path MTU; at least a second for each 50 peers. 0 disables probes.",
    );
    ROTATION_INTERVAL: Valued<Duration> = Valued::new(
        "rotation-interval", "TIME", "24h", value::time,
        "Age at which this node's keys are replaced; 0 replaces them on request only. Times are numbers with ms, s, m, h or d.",
    );
    ROTATION_JITTER: Valued<u32> = Valued::new(
        "rotation-jitter", "PERCENT", "20", value::percent,
        "Random variation of that age, so that nodes do not rotate at the same time.",
    );
    MAX_KEY_AGE: Optional<Duration> = Optional::new(
        "max-key-age", "TIME", value::time,
        "Age at which a rotation no longer waits for peers that are alive but do not follow; without it twice the interval.",
    );
    ROTATION_DRAIN: Valued<Duration> = Valued::new(
        "rotation-drain", "TIME", "10s", value::time,
        "How long a slot must have been idle before its key is replaced.",
    );
    ROTATION_TIMEOUT: Valued<Duration> = Valued::new(
        "rotation-timeout", "TIME", "60s", value::time,
        "How long a peer may take to acknowledge a step of a rotation.",
    );
    PQ: Valued<Mode> = Valued::new(
        "pq", "off|prefer|require", "prefer", value::pq_mode,
        "Preshared keys from ML-KEM-768 with each peer, against traffic being recorded now and decrypted with a quantum computer later. off: none; prefer: with every peer that supports them; require: no pod traffic without.",
    );
    PQ_INTERVAL: Valued<Duration> = Valued::new(
        "pq-interval", "TIME", "1h", value::pq_interval,
        "Age at which a preshared key is replaced; at least 4 s for each peer. 0 replaces it only together with a private key.",
    );
    KEY_DIR: Valued<PathBuf> = Valued::new(
        "key-dir", "DIRECTORY", "/run/meshd/keys", value::directory,
        "Directory of the private keys, mode 0700.",
    );
    KEY_STORAGE: Valued<Storage> = Valued::new(
        "key-storage", "tmpfs|sealed|plain-on-disk", "tmpfs", value::storage,
        "How private keys at rest are protected. tmpfs: never on disk, new keys after a reboot; sealed: encrypted under sealing-key; plain-on-disk: not at all.",
    );
    SEALING_KEY: Optional<SealingSource> = Optional::new(
        "sealing-key", "FILE", value::sealing,
        "File with the key that encrypts the private keys, 32 bytes or their base64; credential:NAME is the systemd credential of that name.",
    );
    STATE_DIR: Valued<PathBuf> = Valued::new(
        "state-dir", "DIRECTORY", "/var/lib/meshd", value::directory,
        "Directory of the last known peers, for a start without the API server, and of the audit trail.",
    );
    RUN_DIR: Valued<PathBuf> = Valued::new(
        "run-dir", "DIRECTORY", "/run/meshd", value::directory,
        "Directory of the daemon's control socket and of the CNI plugin's node file.",
    );
    WIREGUARD_DIR: Valued<PathBuf> = Valued::new(
        "wireguard-dir", "DIRECTORY", "/var/run/wireguard", value::directory,
        "Directory of the control sockets that `wg show` reads.",
    );
    SYSCTL_DIR: Valued<PathBuf> = Valued::new(
        "sysctl-dir", "DIRECTORY", "/proc/sys", value::directory,
        "Directory of the kernel's sysctls. In a container /proc/sys is read-only, so the node's net/ is mounted below another directory.",
    );
    CNI_CONF_DIR: Valued<PathBuf> = Valued::new(
        "cni-conf-dir", "DIRECTORY", "/etc/cni/net.d", value::directory,
        "Directory in which the CNI network configuration is installed.",
    );
    CNI_BIN_DIR: Valued<PathBuf> = Valued::new(
        "cni-bin-dir", "DIRECTORY", "/opt/cni/bin", value::directory,
        "Directory in which the CNI plugin is installed.",
    );
    LISTEN: Valued<SocketAddr> = Valued::new(
        "listen", "IP:PORT", "127.0.0.1:9384", value::socket,
        "Address on which health and metrics are served.",
    );
    METRICS_PER_PEER: Valued<bool> = Valued::new(
        "metrics-per-peer", "true|false", "false", value::boolean,
        "Whether the metrics have series for each peer and slot, 15 a peer, besides sums, counts, and the 10 peers in the worst state.",
    );
    LOG_FORMAT: Valued<bool> = Valued::new(
        "log-format", "text|json", "text", value::log_json,
        "Format of log lines.",
    );
    LOG_LEVEL: Valued<String> = Valued::new(
        "log-level", "FILTER", "info,boringtun=off", value::log_filter,
        "Which lines are logged: a level, or a filter such as info,meshd=debug.",
    );
}

/// The options as a page of documentation.
pub fn reference() -> String {
    let mut page = String::from(
        "# Options of `meshd run`\n\n\
         Flags override environment variables, which override the YAML file (`--config FILE`), which overrides the\n\
         defaults. In the YAML file a list may be a YAML list or separated by commas. This page is the output of\n\
         `meshd options`; a test checks that it is up to date.\n\n\
         | flag and YAML key | environment | value | default | |\n|---|---|---|---|---|\n",
    );
    for option in OPTIONS {
        let default = match (option.default, option.required) {
            (Some(default), _) => format!("`{default}`"),
            (None, true) => "required".to_owned(),
            (None, false) => String::new(),
        };
        let value = option.value.replace('|', "\\|");
        let help = option.help.replace('|', "\\|");
        // Writing into a String can't fail.
        let _ = writeln!(
            page,
            "| `{}` | `{}` | {value} | {default} | {help} |",
            option.name,
            option.environment()
        );
    }
    page
}
