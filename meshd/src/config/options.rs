//! The table of options: flags, environment variables, the YAML file and the documentation come from it.

use std::fmt::Write as _;

/// One option of `meshd run`.
#[derive(Debug)]
pub struct OptionSpec {
    /// Name of the flag without dashes, and of the key in the YAML file.
    pub name: &'static str,
    /// Shape of the value, for help texts.
    pub value: &'static str,
    /// Value that stands when no source has one; none means that the option is required or may be absent.
    pub default: Option<&'static str>,
    /// Whether there must be a value.
    pub required: bool,
    /// What the option does, in one or two sentences.
    pub help: &'static str,
}

impl OptionSpec {
    /// Name of the environment variable.
    pub fn environment(&self) -> String {
        format!("MESHD_{}", self.name.replace('-', "_").to_uppercase())
    }

    const fn new(
        name: &'static str,
        value: &'static str,
        default: Option<&'static str>,
        help: &'static str,
    ) -> Self {
        Self { name, value, default, required: false, help }
    }

    const fn required(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { name, value, default: None, required: true, help }
    }
}

/// All options, in the order in which help shows them.
pub static OPTIONS: &[OptionSpec] = &[
    OptionSpec::required("node-name", "NAME", "Name of the Node that this daemon runs on."),
    OptionSpec::required(
        "cluster-cidr",
        "CIDR[,CIDR]",
        "The cluster's pod ranges, as the controller manager has them. Packets with such an address leave a node through WireGuard or not at all.",
    ),
    OptionSpec::required(
        "service-cidr",
        "CIDR[,CIDR]",
        "The cluster's service ranges, as the API server has them. No node may claim an address in them.",
    ),
    OptionSpec::new(
        "node-cidr",
        "CIDR[,CIDR]",
        None,
        "Ranges of the nodes' own addresses. With it a kubelet can't draw pods' traffic to any other address to its node; without it the first claim of an address wins.",
    ),
    OptionSpec::new(
        "kubeconfig",
        "FILE",
        None,
        "Kubeconfig file; without it the pod's service account is used.",
    ),
    OptionSpec::new(
        "api-server-address",
        "IP[,IP]",
        None,
        "More addresses of the API server that only control-plane nodes may claim, beside those in the endpoints of the service `kubernetes`.",
    ),
    OptionSpec::new(
        "endpoint",
        "IP[,IP]",
        None,
        "Addresses that peers reach this node at; without it those of its Node that are on its own links. The annotation config.meshd.dev/endpoint on the Node wins over both.",
    ),
    OptionSpec::new(
        "nat",
        "true|false",
        Some("false"),
        "This node is behind NAT: peers follow the address that it really sends from, and keepalives hold the way open.",
    ),
    OptionSpec::new("interface-a", "NAME", Some("mesh-a"), "Interface of slot a."),
    OptionSpec::new("interface-b", "NAME", Some("mesh-b"), "Interface of slot b."),
    OptionSpec::new("port-a", "PORT", Some("51840"), "UDP port of slot a."),
    OptionSpec::new("port-b", "PORT", Some("51841"), "UDP port of slot b."),
    OptionSpec::new(
        "backend",
        "auto|kernel|userspace",
        Some("auto"),
        "Which WireGuard carries the packets: the kernel's, or an engine in the daemon. auto takes the kernel's where a WireGuard link can be made and read. Devices that are there keep theirs until their key is replaced.",
    ),
    OptionSpec::new(
        "threaded-napi",
        "true|false",
        Some("false"),
        "Has the kernel's WireGuard receive in a thread for each peer, which can spread over the CPUs, where few peers send much. Needs the node's /sys, writable.",
    ),
    OptionSpec::new(
        "mtu",
        "BYTES",
        None,
        "MTU of the mesh; without it that of the route to each endpoint less 80 bytes.",
    ),
    OptionSpec::new("table", "NUMBER", Some("5184"), "Routing table for peers' node addresses."),
    OptionSpec::new(
        "rule-priority",
        "NUMBER",
        Some("5184"),
        "Priority of the rule by which pods look that table up.",
    ),
    OptionSpec::new(
        "control-port",
        "PORT",
        Some("51842"),
        "UDP port on which nodes speak to each other inside the tunnel.",
    ),
    OptionSpec::new(
        "probe-interval",
        "TIME",
        Some("30s"),
        "How often the way to each peer is measured inside the tunnel: its round trip, and whether packets of full size pass; 0 never.",
    ),
    OptionSpec::new(
        "rotation-interval",
        "TIME",
        Some("24h"),
        "Age at which this node's keys are replaced; 0 replaces them on request only. Times are numbers with ms, s, m, h or d.",
    ),
    OptionSpec::new(
        "rotation-jitter",
        "PERCENT",
        Some("20"),
        "How far that age may differ by chance, so that nodes do not rotate together.",
    ),
    OptionSpec::new(
        "max-key-age",
        "TIME",
        None,
        "Age at which a rotation no longer waits for peers that are alive but do not follow; without it twice the interval.",
    ),
    OptionSpec::new(
        "rotation-drain",
        "TIME",
        Some("10s"),
        "How long a slot must have been quiet before its key is taken away.",
    ),
    OptionSpec::new(
        "rotation-timeout",
        "TIME",
        Some("60s"),
        "How long a peer may take to acknowledge a step of a rotation.",
    ),
    OptionSpec::new(
        "pq",
        "off|prefer|require",
        Some("prefer"),
        "Preshared keys from ML-KEM-768 with each peer, against whoever records traffic for a quantum computer: none, with every peer that has them too, or no pod's packet without.",
    ),
    OptionSpec::new(
        "pq-interval",
        "TIME",
        Some("1h"),
        "Age at which a preshared key is replaced; 0 replaces it only when a private key is.",
    ),
    OptionSpec::new("key-dir", "FOLDER", Some("/run/meshd/keys"), "Folder of the private keys, mode 0700."),
    OptionSpec::new(
        "key-storage",
        "tmpfs|sealed|plain-on-disk",
        Some("tmpfs"),
        "What keeps the keys from whoever gets hold of the disk: there is none, and after a reboot the node makes new keys; they are encrypted under sealing-key; or nothing.",
    ),
    OptionSpec::new(
        "sealing-key",
        "FILE",
        None,
        "File with the key that seals the private keys, 32 bytes or their base64; credential:NAME is the systemd credential of that name.",
    ),
    OptionSpec::new(
        "state-dir",
        "FOLDER",
        Some("/var/lib/meshd"),
        "Folder of the last known peers, for a start without the API server.",
    ),
    OptionSpec::new(
        "run-dir",
        "FOLDER",
        Some("/run/meshd"),
        "Folder of the daemon's socket and of the CNI plugin's input.",
    ),
    OptionSpec::new(
        "wireguard-dir",
        "FOLDER",
        Some("/var/run/wireguard"),
        "Folder of the control sockets that `wg show` looks for.",
    ),
    OptionSpec::new(
        "sysctl-dir",
        "FOLDER",
        Some("/proc/sys"),
        "Folder of the kernel's settings. In a container /proc/sys is read-only, so the node's net/ is mounted below another folder.",
    ),
    OptionSpec::new(
        "cni-conf-dir",
        "FOLDER",
        Some("/etc/cni/net.d"),
        "Folder that gets the CNI network configuration.",
    ),
    OptionSpec::new("cni-bin-dir", "FOLDER", Some("/opt/cni/bin"), "Folder that gets the CNI plugin."),
    OptionSpec::new("listen", "IP:PORT", Some("127.0.0.1:9384"), "Where health and metrics are served."),
    OptionSpec::new("log-format", "text|json", Some("text"), "Form of the log lines."),
    OptionSpec::new(
        "log-level",
        "FILTER",
        Some("info,boringtun=off"),
        "Which lines are logged: a level, or a filter such as info,meshd=debug.",
    ),
];

/// The options as a page of documentation.
pub fn reference() -> String {
    let mut page = String::from(
        "# Options of `meshd run`\n\n\
         Flags win over environment variables, those over the YAML file (`--config FILE`), that over the default.\n\
         In the YAML file a list may be written as a list or with commas. This page is printed by\n\
         `meshd options`; a test keeps it true.\n\n\
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
