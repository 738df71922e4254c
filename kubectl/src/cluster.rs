//! The API server: Nodes, the daemons' pods, and what a daemon answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::ArgMatches;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{
    ApiResource, AttachParams, DynamicObject, ListParams, LogParams, PartialObjectMeta, Patch, PatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Labels of the daemons' pods (`deploy/base/daemonset.yaml`).
const PODS: &str = "app.kubernetes.io/name=meshd";
/// Labels of a Node: its operating system, and its zone.
const OS: &str = "kubernetes.io/os";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Namespace of the control plane.
const SYSTEM: &str = "kube-system";
/// The container in them, and the program in it.
const CONTAINER: &str = "meshd";
const PROGRAM: &str = "/meshd";
/// How many objects are listed at once.
const PAGE: u32 = 500;
/// How long a daemon may take to answer, with everything in between.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// The longest answer in bytes: with many peers in trouble a status has some hundred kilobytes.
const LONGEST: u64 = 16 << 20;

/// A cluster, as somebody with a kubeconfig sees it.
pub(crate) struct Cluster {
    client: Client,
    namespace: String,
}

/// A node, as the API server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its daemon.
    pub(crate) daemon: Daemon,
    /// Its zone; empty without one.
    pub(crate) zone: String,
}

/// The daemon of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Daemon {
    /// Its pod runs.
    Pod(String),
    /// Its pod does not, and why.
    Waiting(String),
    /// There is none.
    None,
}

impl Cluster {
    /// A client by the kubeconfig and the flags of the command line.
    pub(crate) async fn connect(matches: &ArgMatches) -> Result<Self, ClusterError> {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let options = KubeConfigOptions { context: text("context"), ..KubeConfigOptions::default() };
        let mut config = match matches.get_one::<std::path::PathBuf>("kubeconfig") {
            Some(path) => Config::from_custom_kubeconfig(read(path)?, &options).await,
            None => Config::from_kubeconfig(&options).await,
        }
        .map_err(ClusterError::Kubeconfig)?;
        config.auth_info.impersonate = text("as");
        let client = Client::try_from(config).map_err(|source| ClusterError::Client(Box::new(source)))?;
        Ok(Self { client, namespace: text("namespace").unwrap_or_default() })
    }

    /// Every Linux node, by its name.
    pub(crate) async fn nodes(&self) -> Result<BTreeMap<String, Listed>, ClusterError> {
        let nodes = self.node_objects().await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pods = all(&pods, &ListParams::default().labels(PODS), "the daemons' pods").await?;
        Ok(listed(&nodes, &pods))
    }

    /// Every Node as it is.
    pub(crate) async fn node_objects(&self) -> Result<Vec<Node>, ClusterError> {
        all(&self.node_api(), &ListParams::default(), "Nodes").await
    }

    /// The Nodes.
    pub(crate) fn node_api(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// The Nodes without spec and status, for a watch.
    pub(crate) fn node_metadata(&self) -> Api<PartialObjectMeta<Node>> {
        Api::all(self.client.clone())
    }

    /// Sets an annotation of the Node with this UID.
    pub(crate) async fn annotate(
        &self,
        node: &str,
        uid: &str,
        name: &str,
        value: &str,
    ) -> Result<(), ClusterError> {
        let body = serde_json::json!({"metadata": {"uid": uid, "annotations": {name: value}}});
        let patched =
            self.node_api().patch_metadata(node, &PatchParams::default(), &Patch::Merge(body)).await;
        let failed = |error| ClusterError::Annotate { node: node.to_owned(), cause: words(&error) };
        patched.map(drop).map_err(failed)
    }

    /// The last lines that the daemon in a pod has logged; of the one before it with `previous`.
    pub(crate) async fn log(&self, pod: &str, lines: i64, previous: bool) -> Result<String, AskError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let wanted = LogParams {
            container: Some(CONTAINER.to_owned()),
            tail_lines: Some(lines),
            limit_bytes: i64::try_from(LONGEST).ok(),
            timestamps: true,
            previous,
            ..LogParams::default()
        };
        pods.logs(pod, &wanted).await.map_err(|error| AskError::Exec(words(&error)))
    }

    /// Objects of a kind, those of the namespace where the kind has one.
    pub(crate) async fn objects<K>(
        &self,
        namespaced: bool,
        what: &'static str,
    ) -> Result<Vec<DynamicObject>, ClusterError>
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let kind = ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = if namespaced {
            Api::namespaced_with(self.client.clone(), &self.namespace, &kind)
        } else {
            Api::all_with(self.client.clone(), &kind)
        };
        all(&api, &ListParams::default(), what).await
    }

    /// What kubeadm has written down of the cluster.
    pub(crate) async fn kubeadm_config(&self) -> Result<Option<ConfigMap>, ClusterError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
        api.get_opt("kubeadm-config").await.map_err(|error| failed("ConfigMaps of kube-system", &error))
    }

    /// The pods of the control plane, where it runs in pods.
    pub(crate) async fn control_plane(&self) -> Result<Vec<Pod>, ClusterError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        let wanted = ListParams::default().labels("component in (kube-apiserver, kube-controller-manager)");
        all(&api, &wanted, "pods of kube-system").await
    }

    /// The ranges of services, where the API server has objects for them (1.33 and newer).
    pub(crate) async fn service_cidrs(&self) -> Result<Vec<String>, ClusterError> {
        let api: Api<ServiceCIDR> = Api::all(self.client.clone());
        match api.list(&ListParams::default()).await {
            Ok(found) => Ok(found.items.into_iter().filter_map(|item| item.spec?.cidrs).flatten().collect()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) => Err(failed("ServiceCIDRs", &error)),
        }
    }

    /// The `DaemonSets` of meshd's namespace, or of all.
    pub(crate) async fn daemon_sets(&self, everywhere: bool) -> Result<Vec<DaemonSet>, ClusterError> {
        let api: Api<DaemonSet> = if everywhere {
            Api::all(self.client.clone())
        } else {
            Api::namespaced(self.client.clone(), &self.namespace)
        };
        all(&api, &ListParams::default(), "DaemonSets").await
    }

    /// A file of a `ConfigMap` in meshd's namespace.
    pub(crate) async fn config(&self, name: &str, file: &str) -> Result<Option<String>, ClusterError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = api.get_opt(name).await.map_err(|error| failed("ConfigMaps", &error))?;
        Ok(found.and_then(|found| found.data?.remove(file)))
    }

    /// The API server's version: major and minor.
    pub(crate) async fn version(&self) -> Result<(String, String), ClusterError> {
        let version = self.client.apiserver_version().await.map_err(|error| failed("the version", &error))?;
        Ok((version.major, version.minor))
    }

    /// Applies an object, as `kubectl apply --server-side` does.
    pub(crate) async fn apply(&self, object: &serde_json::Value) -> Result<(), ClusterError> {
        let unapplied = |cause: String| ClusterError::Apply {
            what: format!("{} {}", object["kind"], object["metadata"]["name"]),
            cause,
        };
        let wanted: DynamicObject =
            serde_json::from_value(object.clone()).map_err(|error| unapplied(error.to_string()))?;
        let types = wanted.types.clone().unwrap_or_default();
        let kind = GroupVersionKind::try_from(&types).map_err(|error| unapplied(error.to_string()))?;
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = match &wanted.metadata.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let applied = api.patch(&name, &PatchParams::apply("kubectl-meshd"), &Patch::Apply(&wanted)).await;
        applied.map(drop).map_err(|error| unapplied(words(&error)))
    }

    /// Runs the daemon's program in its pod, and returns what it prints.
    pub(crate) async fn ask(&self, pod: &str, arguments: &[&str]) -> Result<String, AskError> {
        self.ask_within(ANSWER_TIMEOUT, pod, arguments, &[]).await
    }

    /// The same within a time. With one of the exit codes `answers` what it prints is an answer as well.
    pub(crate) async fn ask_within(
        &self,
        limit: Duration,
        pod: &str,
        arguments: &[&str],
        answers: &[u8],
    ) -> Result<String, AskError> {
        let asked = self.exec(pod, arguments, answers);
        tokio::time::timeout(limit, asked).await.unwrap_or(Err(AskError::Late { limit }))
    }

    async fn exec(&self, pod: &str, arguments: &[&str], answers: &[u8]) -> Result<String, AskError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let how = AttachParams::default().container(CONTAINER).stdout(true).stderr(true);
        let command = std::iter::once(PROGRAM).chain(arguments.iter().copied());
        let mut process =
            pods.exec(pod, command, &how).await.map_err(|error| AskError::Exec(words(&error)))?;
        let (out, error) = (process.stdout(), process.stderr());
        let ended = process.take_status();
        let (out, error) = tokio::try_join!(text(out), text(error))?;
        let status = match ended {
            Some(ended) => ended.await,
            None => None,
        };
        let success = status.as_ref().and_then(|status| status.status.as_deref()) == Some("Success");
        let is_answer =
            |status| answers.iter().any(|code| exit_code(status).as_deref() == Some(&code.to_string()));
        if success || (!out.is_empty() && status.as_ref().is_some_and(is_answer)) {
            Ok(out)
        } else {
            Err(AskError::Failed(error.trim().to_owned()))
        }
    }
}

/// One of the nodes alone.
pub(crate) fn only(
    mut nodes: BTreeMap<String, Listed>,
    node: &str,
) -> Result<BTreeMap<String, Listed>, crate::CommandError> {
    let found = nodes.remove_entry(node);
    found
        .map(|found| BTreeMap::from([found]))
        .ok_or_else(|| crate::CommandError::NoSuchNode { node: node.to_owned() })
}

/// The exit code of a program in a pod, as the kubelet says it.
fn exit_code(status: &Status) -> Option<String> {
    let causes = status.details.as_ref()?.causes.as_ref()?;
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"))?;
    code.message.clone()
}

fn read(path: &Path) -> Result<Kubeconfig, ClusterError> {
    Kubeconfig::read_from(path).map_err(ClusterError::Kubeconfig)
}

fn failed(what: &'static str, error: &kube::Error) -> ClusterError {
    ClusterError::List { what, cause: words(error) }
}

async fn all<K>(api: &Api<K>, wanted: &ListParams, what: &'static str) -> Result<Vec<K>, ClusterError>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut items = Vec::new();
    let mut page = wanted.clone().limit(PAGE);
    loop {
        let failed = |error| ClusterError::List { what, cause: words(&error) };
        let list = api.list(&page).await.map_err(failed)?;
        items.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = wanted.clone().limit(PAGE).continue_token(&token),
            None => return Ok(items),
        }
    }
}

async fn text(stream: Option<impl AsyncRead + Unpin>) -> Result<String, AskError> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(LONGEST).read_to_end(&mut bytes).await.map_err(AskError::Read)?;
    }
    String::from_utf8(bytes).map_err(|_| AskError::Unreadable("bytes that are not UTF-8".to_owned()))
}

/// An error in words. What the API server answers is printed by kube with everything that the answer contains.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

/// The nodes, and which pod is the daemon of which. While one replaces another, the one that runs is asked.
fn listed(nodes: &[Node], pods: &[Pod]) -> BTreeMap<String, Listed> {
    let label = |node: &Node, name: &str| node.metadata.labels.as_ref()?.get(name).cloned();
    let is_linux = |node: &&Node| label(node, OS).is_none_or(|os| os == "linux");
    let mut listed: BTreeMap<String, Listed> = nodes
        .iter()
        .filter(is_linux)
        .filter_map(|node| {
            let zone = label(node, ZONE).unwrap_or_default();
            Some((node.metadata.name.clone()?, Listed { daemon: Daemon::None, zone }))
        })
        .collect();
    for pod in pods {
        let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        let Some(Listed { daemon, .. }) = on.and_then(|node| listed.get_mut(node)) else { continue };
        let name = pod.metadata.name.clone().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
        let deleted = pod.metadata.deletion_timestamp.is_some();
        if phase == "Running" && !deleted {
            *daemon = Daemon::Pod(name);
        } else if *daemon == Daemon::None {
            let phase = if deleted { "is being deleted" } else { phase };
            *daemon = Daemon::Waiting(format!("pod {name}: {phase}{}", reason(pod)));
        }
    }
    listed
}

/// Why the container of a pod does not run, as far as the kubelet says.
fn reason(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let waiting = |status: &k8s_openapi::api::core::v1::ContainerStatus| {
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
        let message = waiting.message.as_ref().map(|text| format!(" ({text})")).unwrap_or_default();
        Some(format!(", {}{message}", waiting.reason.as_deref().unwrap_or("waits")))
    };
    containers.iter().find_map(waiting).unwrap_or_default()
}

/// Why the cluster could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// The kubeconfig can't be used.
    #[error(
        "read the kubeconfig: expected a file with a cluster, a user and a context; name one with --kubeconfig"
    )]
    Kubeconfig(#[source] KubeconfigError),
    /// No client can be made of it.
    #[error("set up the client for the API server")]
    Client(#[source] Box<kube::Error>),
    /// Objects could not be listed.
    #[error("list {what}: expected a reachable API server and permission to list them: {cause}")]
    List {
        /// What was listed.
        what: &'static str,
        /// The cause.
        cause: String,
    },
    /// An object could not be applied.
    #[error("apply {what}: expected permission to patch it, and no other owner of its fields: {cause}")]
    Apply {
        /// The object.
        what: String,
        /// The cause.
        cause: String,
    },
    /// A Node could not be annotated.
    #[error("annotate Node {node}: expected permission to patch Nodes: {cause}")]
    Annotate {
        /// The Node.
        node: String,
        /// The cause.
        cause: String,
    },
}

/// Why a daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The program could not be run in the pod.
    #[error("run {PROGRAM} in it: {0}")]
    Exec(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
    /// What it prints could not be read.
    #[error("the connection broke: {0}")]
    Read(std::io::Error),
    /// It took too long.
    #[error("no answer within {} s", limit.as_secs())]
    Late {
        /// How long it was waited for.
        limit: Duration,
    },
    /// It is not what was expected.
    #[error("an answer that can't be read: {0}")]
    Unreadable(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, os: &str) -> Node {
        serde_json::from_value(
            serde_json::json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": os}}}),
        )
        .unwrap()
    }

    fn pod(name: &str, node: &str, phase: &str, deleted: bool) -> Pod {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let waiting = serde_json::json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}});
        let state = if phase == "Pending" { waiting } else { serde_json::json!({}) };
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "deletionTimestamp": deleted},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "containerStatuses": [
                {"name": "meshd", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn the_pod_that_runs_is_asked_and_others_say_why_they_do_not() {
        let nodes = [
            node("n1", "linux"),
            node("n2", "linux"),
            node("n3", "linux"),
            node("n4", "linux"),
            node("w1", "windows"),
        ];
        let running = |name: &str| Daemon::Pod(name.to_owned());
        let found = listed(
            &nodes,
            &[
                pod("old", "n1", "Running", true),
                pod("new", "n1", "Running", false),
                pod("stuck", "n2", "Pending", false),
                pod("leaving", "n4", "Running", true),
                pod("elsewhere", "n9", "Running", false),
            ],
        );
        let found: BTreeMap<String, Daemon> =
            found.into_iter().map(|(node, listed)| (node, listed.daemon)).collect();
        let stuck = "pod stuck: Pending, ErrImagePull (not found)".to_owned();
        assert_eq!(
            found,
            [
                ("n1".to_owned(), running("new")),
                ("n2".to_owned(), Daemon::Waiting(stuck)),
                ("n3".to_owned(), Daemon::None),
                ("n4".to_owned(), Daemon::Waiting("pod leaving: is being deleted".to_owned())),
            ]
            .into()
        );
    }
}
