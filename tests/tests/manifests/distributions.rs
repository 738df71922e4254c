//! docs/distributions.md and the overlays: an overlay has the values of the page, and differs from the base in nothing
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use meshd::config::Config;
use serde_json::{Value, json};

use super::daemonset::configuration;
use super::overlay::{apply_inline, base_objects, files, rendered};
use super::{QUICKSTART, list, parse, read};

const PAGE: &str = "docs/distributions.md";
/// The directory of the overlays.
const OVERLAYS: &str = "deploy/overlays";
/// The overlay for API servers that know no admission policies, whatever the distribution.
const WITHOUT_POLICIES: &str = "deploy/overlays/without-policies";
/// Rows of the page whose values an overlay has.
const OVERLAY: &str = "overlay";
const CONF_DIR: &str = "CNI configuration directory";
const BIN_DIR: &str = "CNI plugin directory";
const POD_NETWORK: &str = "pod network";
const SERVICE_NETWORK: &str = "service network";
const ALLOCATOR: &str = "account that sets podCIDRs";

/// A section of the page about one distribution.
#[derive(Debug)]
struct Distribution {
    name: String,
    /// The values in code, by row.
    values: BTreeMap<String, String>,
}

impl Distribution {
    fn value(&self, row: &str) -> &str {
        self.values.get(row).unwrap_or_else(|| panic!("{}: no row {row:?} with a value in code", self.name))
    }
}

#[test]
fn every_overlay_is_that_of_a_distribution_on_the_page() {
    let named: BTreeSet<String> =
        distributions().iter().map(|distribution| distribution.value(OVERLAY).to_owned()).collect();
    let mut found: BTreeSet<String> =
        files(OVERLAYS).iter().map(|name| format!("{OVERLAYS}/{name}")).collect();
    assert!(found.remove(WITHOUT_POLICIES));
    assert_eq!(named, found);
    let listed: BTreeSet<String> = read(PAGE)
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| Some(line.split('`').nth(1)?.to_owned()))
        .collect();
    assert_eq!(listed, found, "the table at the top of the page");
}

#[test]
fn the_daemon_gets_the_values_of_the_page() {
    for distribution in distributions() {
        let config = configuration(&rendered(distribution.value(OVERLAY)));
        let name = &distribution.name;
        let networks =
            |networks: &[IpNetwork]| networks.iter().map(ToString::to_string).collect::<Vec<String>>();
        assert_eq!(networks(&config.cluster_cidrs), [distribution.value(POD_NETWORK)], "{name}");
        assert_eq!(networks(&config.service_cidrs), [distribution.value(SERVICE_NETWORK)], "{name}");
        assert_eq!(config.cni_conf_dir.to_str(), Some(distribution.value(CONF_DIR)), "{name}");
        assert_eq!(config.cni_bin_dir.to_str(), Some(distribution.value(BIN_DIR)), "{name}");
    }
}

#[test]
fn options_that_the_page_does_not_name_are_those_of_the_quickstart() {
    let others = |overlay: &str| Config {
        cluster_cidrs: Vec::new(),
        service_cidrs: Vec::new(),
        cni_conf_dir: PathBuf::new(),
        cni_bin_dir: PathBuf::new(),
        ..configuration(&rendered(overlay))
    };
    for distribution in distributions() {
        let overlay = distribution.value(OVERLAY);
        assert_eq!(others(overlay), others(QUICKSTART), "{overlay}");
    }
}

#[test]
fn without_policies_nothing_else_is_missing() {
    let mut expected = base_objects();
    let is_policy =
        |object: &Value| object["kind"].as_str().unwrap().starts_with("ValidatingAdmissionPolicy");
    let all = expected.len();
    expected.retain(|object| !is_policy(object));
    assert_eq!(all - expected.len(), 6, "three policies and their bindings");
    let mut found = rendered(WITHOUT_POLICIES);
    assert_eq!(configuration(&found), configuration(&rendered(QUICKSTART)));
    assert_eq!(found.pop().unwrap()["kind"], "ConfigMap");
    assert_eq!(found, expected);
}

/// The mount points are the daemon's directories, so that `meshd uninstall --config config.yaml` on the node removes
/// what the daemon wrote.
#[test]
fn an_overlay_differs_from_the_base_only_in_what_the_page_says() {
    for distribution in distributions() {
        let mut expected = base_objects();
        for object in &mut expected {
            replace(object, "/etc/cni/net.d", distribution.value(CONF_DIR));
            replace(object, "/opt/cni/bin", distribution.value(BIN_DIR));
            let is_pod_cidr_policy = object["kind"] == "ValidatingAdmissionPolicy"
                && object["metadata"]["name"] == "meshd-pod-cidrs";
            if let Some(account) = distribution.values.get(ALLOCATOR).filter(|_| is_pod_cidr_policy) {
                let name = account.rsplit(':').next().unwrap();
                object["spec"]["matchConditions"].as_array_mut().unwrap().push(json!({
                    "name": format!("is-not-{name}"),
                    "expression": format!("request.userInfo.username != \"{account}\""),
                }));
            }
            sort_mounts(object);
        }
        let mut found = rendered(distribution.value(OVERLAY));
        found.iter_mut().for_each(sort_mounts);
        let config_map = found.pop().unwrap();
        assert_eq!(config_map["kind"], "ConfigMap");
        assert_eq!(found, expected, "{}", distribution.name);
    }
}

/// What the page says to add to an overlay does what the section is about, and nothing else.
#[test]
fn patches_of_the_page_can_be_applied_and_change_what_they_say() {
    let page = read(PAGE);
    let mut patched = page.split("```yaml\n").skip(1).map(|rest| {
        let block = parse(PAGE, rest.split("```").next().unwrap()).remove(0);
        let mut objects = base_objects();
        for patch in list(&block, "/patches") {
            apply_inline(&mut objects, patch);
        }
        objects
    });
    let expected = |pointer: &str, name: &str, value: Value| {
        let mut objects = base_objects();
        let daemon = objects.iter_mut().find(|object| object["kind"] == "DaemonSet").unwrap();
        daemon.pointer_mut(pointer).unwrap()[name] = value;
        objects
    };
    let selinux = ("/spec/template/spec/securityContext", "seLinuxOptions", json!({"type": "spc_t"}));
    let capabilities = (
        "/spec/template/spec/containers/0/securityContext/capabilities",
        "add",
        json!(["NET_ADMIN", "IPC_LOCK", "DAC_OVERRIDE"]),
    );
    for (pointer, name, value) in [selinux, capabilities] {
        assert_eq!(patched.next().unwrap(), expected(pointer, name, value), "{name}");
    }
    assert_eq!(patched.next(), None);
}

/// The sections that name an overlay, with the values in code in the second column of their tables.
fn distributions() -> Vec<Distribution> {
    let page = read(PAGE);
    let sections = page.split("\n## ").skip(1).filter_map(|section| {
        let (name, text) = section.split_once('\n')?;
        let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
        let values: BTreeMap<String, String> = rows
            .filter_map(|row| {
                let (title, rest) = row.split_once(" | ")?;
                let (value, _) = rest.strip_prefix('`')?.split_once('`')?;
                Some((title.to_owned(), value.to_owned()))
            })
            .collect();
        values.contains_key(OVERLAY).then(|| Distribution { name: name.to_owned(), values })
    });
    let distributions: Vec<Distribution> = sections.collect();
    assert!(distributions.len() > 5, "{distributions:?}");
    distributions
}

/// Replaces every string that equals `from`.
fn replace(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(text) if text == from => to.clone_into(text),
        Value::Array(entries) => entries.iter_mut().for_each(|entry| replace(entry, from, to)),
        Value::Object(fields) => fields.values_mut().for_each(|field| replace(field, from, to)),
        _ => {}
    }
}

/// The order of mounts and volumes has no meaning here: no mount point is below another one that a patch moves.
fn sort_mounts(object: &mut Value) {
    if object["kind"] != "DaemonSet" {
        return;
    }
    for pointer in ["/spec/template/spec/volumes", "/spec/template/spec/containers/0/volumeMounts"] {
        let mut sorted = list(object, pointer).clone();
        sorted.sort_by_key(|entry| entry["name"].to_string());
        *object.pointer_mut(pointer).unwrap() = Value::Array(sorted);
    }
}
