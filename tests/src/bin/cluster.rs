//! `make cluster`: whole Kubernetes clusters on this machine, with meshd in them. See `e2e/README.md`.
//!
//! A cluster is kept by a process of its own, `cluster serve`, which `cluster create` starts in the background. Everything
//! but a few directories ends with it.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches};
use lab::Family;
use lab::cluster::{Cluster, ClusterError, Image, PAUSE_IMAGE, ProxyMode, Record, Records, Settings};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where a cluster writes how far it is, and why it ended.
const PROGRESS: &str = "progress";
/// The file that is there once a cluster is ready.
const READY: &str = "kubeconfig";
/// The same with the API server's own address, for programs in a host's network.
const FOR_HOSTS: &str = "kubeconfig.hosts";
/// The socket on which a cluster answers what was seen on its nodes' uplinks, and is told what to do.
const CONTROL: &str = "control.sock";
/// A client that neither asks nor listens for so long is left alone.
const CLIENT_WITHIN: Duration = Duration::from_secs(5);
/// The exit code of `check` where no cluster can run (`EX_UNAVAILABLE`, sysexits.h).
const UNAVAILABLE: u8 = 69;
/// The image of small pods for trying things, and for the suite.
const POD_IMAGE: &str = "localhost/e2e-pod:1";

fn main() -> ExitCode {
    let matches = cli().get_matches();
    if matches.subcommand_name() == Some("check") {
        return check();
    }
    let done = match matches.subcommand() {
        Some(("create", arguments)) => create(arguments),
        Some(("serve", arguments)) => serve(arguments),
        Some(("delete", arguments)) => delete(arguments),
        Some(("list", _)) => list(),
        Some(("enter", arguments)) => enter(arguments),
        Some(("act", arguments)) => act(arguments),
        Some(("logs", arguments)) => logs(arguments),
        Some(("kubeconfig", arguments)) => kubeconfig(arguments),
        _ => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("cluster: {}", lab::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn cli() -> clap::Command {
    let id = || {
        Arg::new("id")
            .long("id")
            .env("CLUSTER")
            .help("which cluster; by default the only one, or a free number")
    };
    let settings = |command: clap::Command| {
        command.args([
            id(),
            Arg::new("nodes")
                .long("nodes")
                .default_value("3")
                .value_parser(clap::value_parser!(u8).range(1..=50)),
            Arg::new("family").long("family").default_value("ipv4").value_parser(["ipv4", "ipv6", "dual"]),
            Arg::new("proxy-mode")
                .long("proxy-mode")
                .default_value("iptables")
                .value_parser(["iptables", "nftables", "ipvs"]),
            Arg::new("image")
                .long("image")
                .action(ArgAction::Append)
                .help("an archive of an image that all nodes get: meshd's, and that of small pods"),
            Arg::new("pod").long("pod").help(
                "the static program e2e-pod, from which the pause image and that of small pods are made",
            ),
            Arg::new("without-meshd").long("without-meshd").action(ArgAction::SetTrue).help("deploy nothing"),
        ])
    };
    clap::Command::new("cluster")
        .subcommand_required(true)
        .subcommand(settings(
            clap::Command::new("create").about("start a cluster and wait until it is ready"),
        ))
        .subcommand(settings(clap::Command::new("serve").about("keep a cluster until killed").hide(true)))
        .subcommand(
            clap::Command::new("check")
                .about("say why this machine can't run a cluster, and end with code 69 then"),
        )
        .subcommand(clap::Command::new("list").about("list the clusters of this checkout"))
        .subcommand(clap::Command::new("delete").about("end a cluster and remove everything of it").args([
            id(),
            Arg::new("all").long("all").action(ArgAction::SetTrue).help("all clusters of this checkout"),
        ]))
        .subcommand(
            clap::Command::new("enter").about("run a program, or a shell, on a host of a cluster").args([
                id(),
                Arg::new("net")
                    .long("net")
                    .action(ArgAction::SetTrue)
                    .help("enter its network alone: files and processes are this machine's"),
                Arg::new("host").default_value("api").help("n1, n2, ..., api or outside"),
                Arg::new("program").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true),
            ]),
        )
        .subcommand(
            clap::Command::new("act")
                .about("have a cluster do something to its nodes or to its API server")
                .after_help(
                    "Verbs: stop-api, start-api, add-node, enforce-policies; and of a node kill-daemon, restart-kubelet, reboot, \
                     reboot-elsewhere (it comes back with another address), renumber, remove-node, uninstall, reinstall, \
                     impersonate (creates the Node NODE-impostor with its podCIDRs and keys).",
                )
                .args([id(), Arg::new("verb").required(true), Arg::new("node").help("n1, n2, ...")]),
        )
        .subcommand(
            clap::Command::new("kubeconfig").about("print the path of a cluster's kubeconfig").arg(id()),
        )
        .subcommand(
            clap::Command::new("logs")
                .about("list the logs of a cluster, or print one")
                .args([id(), Arg::new("log").help("its name, for example n1-kubelet")]),
        )
}

/// Ends with a code of its own where a cluster can't run, so that scripts don't take a failure for that.
fn check() -> ExitCode {
    match lab::cluster::check() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&lab::chain(&error));
            ExitCode::from(UNAVAILABLE)
        }
    }
}

/// Starts `serve` in the background and shows its progress until the cluster is ready.
fn create(arguments: &ArgMatches) -> Result<(), Failure> {
    let records = Records::open()?;
    let id = records.reserve(named_id(arguments))?;
    let directory = records.directory(&id);
    let progress = directory.join(PROGRESS);
    let output = File::create(&progress)?;
    let own: Vec<_> = std::env::args_os().skip(2).collect();
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .args(own)
        .env("CLUSTER", &id)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Not ended by what ends this terminal's programs.
        .process_group(0)
        .spawn()?;
    let since = Instant::now();
    let mut shown = 0;
    loop {
        let ended = child.try_wait()?;
        let text = fs::read_to_string(&progress)?;
        if let Some(new) = text.get(shown..).filter(|new| !new.is_empty()) {
            eprint!("{new}");
            shown = text.len();
        }
        if ended.is_some() {
            return Err(format!("cluster {id} did not start; logs: {}", directory.display()).into());
        }
        if directory.join(READY).is_file() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    let kubeconfig = directory.join(READY);
    say(&format!(
        "==> cluster {id} is ready after {} s\n\
         kubectl     KUBECONFIG={} kubectl get nodes\n\
         enter       make cluster-enter CLUSTER={id} NODE=n1\n\
         logs        make cluster-logs CLUSTER={id}\n\
         delete      make cluster-delete CLUSTER={id}",
        since.elapsed().as_secs(),
        kubeconfig.display()
    ));
    Ok(())
}

/// Keeps a cluster until this process is killed.
fn serve(arguments: &ArgMatches) -> Result<(), Failure> {
    let records = Records::open()?;
    let id = arguments.get_one::<String>("id").ok_or("serve: --id is missing")?.clone();
    let directory = records.directory(&id);
    let mut images: Vec<PathBuf> =
        arguments.get_many::<String>("image").into_iter().flatten().map(PathBuf::from).collect();
    if let Some(pod) = arguments.get_one::<String>("pod") {
        images.extend(own_images(Path::new(pod), &directory)?);
    }
    let named = |name: &str| arguments.get_one::<String>(name).map(String::as_str).unwrap_or_default();
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
    let settings = Settings {
        id,
        nodes: arguments.get_one::<u8>("nodes").copied().unwrap_or(3),
        family: match named("family") {
            "ipv6" => Family::V6,
            "dual" => Family::Dual,
            _ => Family::V4,
        },
        proxy_mode: match named("proxy-mode") {
            "nftables" => ProxyMode::Nftables,
            "ipvs" => ProxyMode::Ipvs,
            _ => ProxyMode::Iptables,
        },
        images,
        directory: directory.clone(),
        manifests: (!arguments.get_flag("without-meshd")).then(|| manifests.into()),
    };
    let since = Instant::now();
    let mut progress = |text: &str| say(&format!("==> {:>3} s: {text}", since.elapsed().as_secs()));
    let mut cluster = Cluster::start(settings, &mut progress)?;
    // From here on it can be entered, also to see why the rest does not succeed.
    records.save(&cluster.record())?;
    cluster.deploy(&mut progress)?;
    let listener = UnixListener::bind(directory.join(CONTROL))?;
    fs::write(directory.join(FOR_HOSTS), cluster.kubeconfig_for_hosts()?)?;
    let new = directory.join("kubeconfig.new");
    fs::write(&new, cluster.publish()?)?;
    fs::rename(&new, directory.join(READY))?;
    let mut excused = 0;
    loop {
        // A client that is gone needs no answer.
        let _ended = listener.accept().and_then(|(client, _)| answer(&mut cluster, &client, &mut excused));
        // Hosts may have come and gone.
        records.save(&cluster.record())?;
    }
}

/// Answers one question, or does what it says.
fn answer(cluster: &mut Cluster, mut client: &UnixStream, excused: &mut u64) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_WITHIN))?;
    client.set_write_timeout(Some(CLIENT_WITHIN))?;
    let mut question = String::new();
    BufReader::new(client).read_line(&mut question)?;
    writeln!(client, "{}", cluster.answer(&question, excused))
}

/// The pause image and that of small pods.
fn own_images(pod: &Path, directory: &Path) -> Result<Vec<PathBuf>, ClusterError> {
    let busybox = lab::cluster::Programs::find()?.path("busybox")?;
    let applets = ["sh", "ip", "ping", "nc", "wget", "nslookup", "cat", "sleep", "hostname", "netstat"];
    let links: Vec<(String, &str)> =
        applets.iter().map(|applet| (format!("/bin/{applet}"), "busybox")).collect();
    let links: Vec<(&str, &str)> = links.iter().map(|(link, target)| (link.as_str(), *target)).collect();
    let images = [
        Image { name: PAUSE_IMAGE, files: &[(pod, "/pause")], links: &[], entrypoint: &["/pause", "pause"] },
        Image {
            name: POD_IMAGE,
            files: &[(pod, "/bin/e2e-pod"), (&busybox, "/bin/busybox")],
            links: &links,
            entrypoint: &["/bin/e2e-pod"],
        },
    ];
    let archives = ["pause.tar", "e2e-pod.tar"].map(|name| directory.join(name));
    for (image, archive) in images.iter().zip(&archives) {
        image.write(archive)?;
    }
    Ok(archives.into())
}

fn delete(arguments: &ArgMatches) -> Result<(), Failure> {
    let records = Records::open()?;
    let ids = if arguments.get_flag("all") { records.ids()? } else { vec![chosen(&records, arguments)?] };
    for id in ids {
        records.delete(&id)?;
        say(&format!("==> cluster {id} is deleted"));
    }
    Ok(())
}

fn list() -> Result<(), Failure> {
    let records = Records::open()?;
    for id in records.ids()? {
        let line = match records.load(&id)? {
            Some(record) => {
                let state = match (record.process.is_alive(), records.directory(&id).join(READY).is_file()) {
                    (true, true) => "ready",
                    (true, false) => "starting",
                    (false, _) => "ended",
                };
                let hosts: Vec<&str> = record.hosts.iter().map(|host| host.name.as_str()).collect();
                format!("{id}\t{state}\t{}\t{}\t{}", record.version, record.family, hosts.join(" "))
            }
            None => format!("{id}\tnot recorded"),
        };
        writeln!(io::stdout(), "{line}")?;
    }
    Ok(())
}

/// Replaces this process by a program in a host's namespaces.
fn enter(arguments: &ArgMatches) -> Result<(), Failure> {
    let records = Records::open()?;
    let id = chosen(&records, arguments)?;
    let record = running(&records, &id)?;
    let name = arguments.get_one::<String>("host").map(String::as_str).unwrap_or_default();
    let names = || record.hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", ");
    let host = record.hosts.iter().find(|host| host.name == name);
    let host = host.ok_or_else(|| format!("cluster {id} has no host {name:?}; it has {}", names()))?;
    let mut program: Vec<String> =
        arguments.get_many::<String>("program").into_iter().flatten().cloned().collect();
    if program.is_empty() {
        program.push(std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned()));
    }
    let holder = host.holder.pid.to_string();
    let mut namespaces = vec!["--target", holder.as_str(), "--net"];
    let mut kubeconfig = PathBuf::from("/run/lab/cluster/kubeconfig");
    if arguments.get_flag("net") {
        kubeconfig = records.directory(&id).join(FOR_HOSTS);
    } else {
        namespaces.extend(["--mount", "--uts", "--pid"]);
    }
    let error = Command::new("nsenter")
        .args(namespaces)
        .arg("--")
        .args(program)
        .env("PATH", &record.search_path)
        .env("KUBECONFIG", kubeconfig)
        .env("E2E_CAPTURE", records.directory(&id).join(CONTROL))
        .env("E2E_VERBS", records.directory(&id).join(CONTROL))
        .env("CONTAINERD_NAMESPACE", "k8s.io")
        .exec();
    Err(error.into())
}

/// Waits until it is done.
fn act(arguments: &ArgMatches) -> Result<(), Failure> {
    let records = Records::open()?;
    let id = chosen(&records, arguments)?;
    running(&records, &id)?;
    let named = |name: &str| arguments.get_one::<String>(name);
    let mut question = json!({"ask": "act", "verb": named("verb")});
    if let Some(node) = named("node") {
        question["node"] = node.as_str().into();
    }
    let mut stream = UnixStream::connect(records.directory(&id).join(CONTROL))?;
    writeln!(stream, "{question}")?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer)?;
    let answer: Value = serde_json::from_str(&answer)?;
    answer["error"].as_str().map_or(Ok(()), |error| Err(error.to_owned().into()))
}

fn logs(arguments: &ArgMatches) -> Result<(), Failure> {
    let records = Records::open()?;
    let id = chosen(&records, arguments)?;
    let directory = records.directory(&id).join("logs");
    let log = arguments.get_one::<String>("log");
    let mut names: Vec<String> =
        fs::read_dir(&directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let mut out = io::stdout();
    for name in names {
        let Some((of, _suffix)) = name.rsplit_once('.') else { continue };
        let path = directory.join(&name);
        match log {
            None if path.metadata()?.len() > 0 => writeln!(out, "{}", path.display())?,
            Some(log) if log == of => io::copy(&mut File::open(&path)?, &mut out).map(drop)?,
            _ => {}
        }
    }
    Ok(())
}

fn kubeconfig(arguments: &ArgMatches) -> Result<(), Failure> {
    let records = Records::open()?;
    let id = chosen(&records, arguments)?;
    running(&records, &id)?;
    Ok(writeln!(io::stdout(), "{}", records.directory(&id).join(READY).display())?)
}

/// The id that was given; a variable that is set to nothing gives none.
fn named_id(arguments: &ArgMatches) -> Option<&str> {
    arguments.get_one::<String>("id").map(String::as_str).filter(|id| !id.is_empty())
}

/// The cluster that is meant: the one that is named, or the only one.
fn chosen(records: &Records, arguments: &ArgMatches) -> Result<String, Failure> {
    if let Some(id) = named_id(arguments) {
        return Ok(id.to_owned());
    }
    let ids = records.ids()?;
    match ids.as_slice() {
        [id] => Ok(id.clone()),
        [] => Err("there is no cluster; start one: make cluster".into()),
        several => Err(format!("which cluster? CLUSTER={}", several.join(" or CLUSTER=")).into()),
    }
}

fn running(records: &Records, id: &str) -> Result<Record, Failure> {
    let record = records.load(id)?.filter(|record| record.process.is_alive());
    record.ok_or_else(|| format!("cluster {id} does not run").into())
}

fn say(text: &str) {
    let _nobody_listens = writeln!(io::stderr(), "{text}");
}
