use super::*;

fn sources(pairs: &[(&str, &str)]) -> Sources {
    let required = [("node-name", "n1"), ("cluster-cidr", "10.244.0.0/16"), ("service-cidr", "10.96.0.0/16")];
    let flags =
        required.iter().chain(pairs).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Sources { flags, ..Sources::default() }
}

#[test]
fn defaults_apply_where_no_source_sets_a_value() {
    let config = from_sources(&sources(&[])).unwrap();
    assert_eq!(config.ports, PerSlot { a: 51840, b: 51841 });
    assert_eq!(config.listen.to_string(), "127.0.0.1:9384");
    assert_eq!(config.mtu, None);
}

#[test]
fn flags_override_environment_overrides_file() {
    let mut sources = sources(&[("port-a", "1")]);
    sources.environment =
        [("port-a".to_owned(), "2".to_owned()), ("port-b".to_owned(), "22".to_owned())].into();
    sources.file = Some(("/etc/meshd.yaml".into(), "port-a: 3\nport-b: 33\nmtu: 1400\n".to_owned()));
    let config = from_sources(&sources).unwrap();
    assert_eq!((config.ports.a, config.ports.b, config.mtu), (1, 22, Some(1400)));
}

#[test]
fn the_file_may_hold_lists_in_both_forms() {
    let mut sources = Sources::default();
    let text = "node-name: n1\ncluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']\nservice-cidr: 10.96.0.0/16, fd00:10:96::/112\n";
    sources.file = Some(("/etc/meshd.yaml".into(), text.to_owned()));
    let config = from_sources(&sources).unwrap();
    assert_eq!((config.cluster_cidrs.len(), config.service_cidrs.len()), (2, 2));
}

#[test]
fn on_and_off_need_no_quotes_in_the_file() {
    let read = |text: &str| {
        let mut sources = sources(&[]);
        sources.file = Some(("/etc/meshd.yaml".into(), text.to_owned()));
        from_sources(&sources)
    };
    for quote in ["", "'"] {
        let text =
            format!("pq: {quote}off{quote}\nudp-offload: {quote}on{quote}\ntun-offload: {quote}off{quote}\n");
        let config = read(&text).unwrap();
        assert_eq!(config.pq.mode, keyring::pq::Mode::Off, "{text}");
        assert_eq!(
            (config.udp_offload, config.tun_offload),
            (tunnel::OffloadOption::On, tunnel::OffloadOption::Off),
            "{text}"
        );
    }
    assert!(read("nat: on\n").unwrap().nat, "a boolean");
    let error = read("pq: on\n").unwrap_err().to_string();
    assert!(error.contains("off, prefer or require"), "{error}");
}

#[test]
fn every_error_names_the_option_and_what_was_expected() {
    for (name, value, expected) in [
        ("cluster-cidr", "10.244.0.1/16", "host bits are zero"),
        ("cluster-cidr", "10.244.0.0", "host bits are zero"),
        ("cluster-cidr", "0.0.0.0/0", "host bits are zero"),
        ("cluster-cidr", "", "no value"),
        ("port-a", "0", "1 to 65535"),
        ("control-port", "51840", "no slot uses"),
        ("rotation-interval", "24", "a time such as"),
        ("rotation-interval", "h", "a time such as"),
        ("rotation-interval", "1m", "four timeouts and two drains"),
        ("rotation-jitter", "60", "at most 50"),
        ("max-key-age", "1h", "at least the rotation interval"),
        ("port-a", "65536", "1 to 65535"),
        ("interface-a", "a-name-too-long-for-linux", "1 to 15"),
        ("nat", "yes", "true or false"),
        ("mtu", "100", "1280"),
        ("backend", "hardware", "auto, kernel or userspace"),
        ("threaded-napi", "2", "true or false"),
        ("udp-offload", "true", "auto, on or off"),
        ("table", "254", "other than"),
        ("key-dir", "keys", "absolute"),
        ("key-storage", "disk", "tmpfs, sealed or plain-on-disk"),
        ("key-storage", "sealed", "a sealing-key with key-storage sealed"),
        ("sealing-key", "/etc/key", "key-storage sealed with"),
        ("sealing-key", "key", "credential:NAME"),
        ("sealing-key", "credential:../key", "credential:NAME"),
        ("listen", "localhost:1", "IP address with a port"),
        ("node-name", "N1", "lower-case"),
        ("log-format", "xml", "text or json"),
        ("endpoint", "example.org:51840", "IP addresses or names"),
        ("port-b", "51840", "two different ports"),
        ("relay-ports", "24000", "24000-28095"),
        ("relay-ports", "24001-24000", "24000-28095"),
        ("relay-ports", "51841-51900", "ports that no slot uses"),
        ("relay-rate", "0", "Mbit/s"),
        ("service-cidr", "10.244.128.0/24", "don't overlap"),
    ] {
        let error = from_sources(&sources(&[(name, value)])).unwrap_err();
        let error = crate::chain::Chain(&error).to_string();
        assert!(error.contains(name) && error.contains(expected), "{name}={value}: {error}");
    }
}

#[test]
fn unknown_and_malformed_entries_of_the_file_are_refused() {
    for (text, part) in [
        ("clustercidr: x", "clustercidr"),
        ("port-a: {x: 1}", "port-a"),
        ("port-a:", "port-a"),
        ("- a\n- b", "config"),
        ("port-a: [[1]]", "port-a"),
        ("port-a: [1", "config"),
    ] {
        let mut sources = sources(&[]);
        sources.file = Some(("/etc/meshd.yaml".into(), text.to_owned()));
        let error = from_sources(&sources).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("meshd.yaml"), "{text}: {error}");
    }
}

/// A row of the table that the configuration does not read would be accepted and ignored.
#[test]
fn every_option_is_read() {
    for option in OPTIONS {
        let errors = ["", "!"].map(|value| from_sources(&sources(&[(option.name, value)])));
        let named = |error: &ConfigError| error.to_string().contains(option.name);
        assert!(errors.iter().any(|result| result.as_ref().is_err_and(named)), "{}", option.name);
    }
}

#[test]
fn the_page_of_options_is_the_table() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/options.md")).unwrap();
    assert_eq!(page, super::super::reference(), "run `cargo run -p meshd -- options > docs/options.md`");
}
