//! One mesh of one: the daemon on a node, all other nodes played, and what all scenarios use.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lab::{Daemon, IpVersion, KUBECONFIG, Lab, Node, Signal};
use serde_json::{Value, json};

use crate::Failure;
use crate::cluster::{self, Kubelets};
use crate::fleet;
use crate::report::{Delays, Row};
use crate::settings::Settings;
use crate::simulator::{Lateness, Simulator};
use crate::usage::{self, Process};

/// The node that the daemon runs on.
pub(crate) const NODE: &str = "n1";
/// How long the daemon may take to answer at all.
const ANSWERS_WITHIN: Duration = Duration::from_mins(5);

/// A run with one number of peers.
#[derive(Debug)]
pub(crate) struct Bench<'run> {
    pub(crate) lab: &'run Lab,
    pub(crate) simulator: &'run Arc<Simulator>,
    pub(crate) kubelets: &'run Kubelets,
    pub(crate) settings: &'run Settings,
    /// Played nodes at the start.
    pub(crate) size: usize,
    pub(crate) rows: Vec<Row>,
    pub(crate) delays: Vec<Delays>,
    daemon: Option<(Daemon, Process)>,
}

/// What became of a hand-made change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repair {
    /// Whether it was still there at the first look. If not, it was repaired before.
    pub(crate) was_seen: bool,
    /// From the change to the first look that shows what was there before; none if that did not come in time.
    pub(crate) took: Option<Duration>,
}

/// Measures one number of peers: sets up all that runs beside the daemon, and runs the scenarios.
pub(crate) fn measure(
    settings: &Settings,
    size: usize,
    scenarios: impl FnOnce(&mut Bench<'_>) -> Result<(), Failure>,
) -> Result<(Vec<Row>, Vec<Delays>), Failure> {
    let lab =
        Lab::builder().nodes(1).family(lab::Family::V4).api(lab::ApiKind::Real).register(false).build()?;
    lab.outside().ip(&format!("route add local {} dev lo", fleet::UNDERLAY))?;
    let node = lab.node(NODE)?;
    lab.register(node)?;
    let std::net::IpAddr::V4(underlay) = node.address(IpVersion::V4)? else { return Err("no IPv4".into()) };
    let simulator = Arc::new(lab.outside().net().run(Simulator::open)??);
    let kubelets = Kubelets::default();
    let threads = simulator.run(|| usage::place(None, false));
    let measured = thread::scope(|scope| {
        let reports = scope.spawn(|| kubelets.run(lab.api()));
        let follows = scope.spawn(|| cluster::follow(lab.api(), &kubelets, &simulator, (mesh(), underlay)));
        let mut bench = Bench {
            lab: &lab,
            simulator: &simulator,
            kubelets: &kubelets,
            settings,
            size,
            rows: Vec::new(),
            delays: Vec::new(),
            daemon: None,
        };
        let outcome = scenarios(&mut bench);
        kubelets.stop();
        simulator.stop();
        for helper in [reports, follows] {
            helper.join().map_err(|_| "a thread that plays the cluster has panicked")??;
        }
        outcome.map(|()| (bench.rows, bench.delays))
    });
    for thread in threads {
        thread.join().map_err(|_| "a thread of the simulator has panicked")?;
    }
    measured
}

/// The daemon's mesh address: the first usable one of the node's pod range.
const fn mesh() -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, 1)
}

impl Bench<'_> {
    /// The daemon's node.
    pub(crate) fn node(&self) -> Result<&Node, Failure> {
        Ok(self.lab.node(NODE)?)
    }

    /// Starts the daemon; returns the time until it is ready.
    pub(crate) fn start(&mut self) -> Result<Duration, Failure> {
        let began = Instant::now();
        let pods = format!("{},{}", lab::address::cluster_range(IpVersion::V4), fleet::PODS);
        let services = lab::address::service_range(IpVersion::V4).to_string();
        let log = "info,boringtun=off,kube=off";
        let arguments = [
            ("--node-name", NODE),
            ("--cluster-cidr", &pods),
            ("--service-cidr", &services),
            ("--kubeconfig", KUBECONFIG),
            ("--log-format", "json"),
            ("--log-level", log),
            // Played nodes don't use the kernel's either, and machines without it measure the same.
            ("--backend", "userspace"),
            // Else nobody could change the guard's table by hand, which is measured.
            ("--guard-owner", "false"),
        ];
        let flags = arguments.iter().flat_map(|(name, value)| [*name, *value]);
        let command = self.node()?.command(&self.settings.daemon).arg("run").args(flags);
        let daemon = command.daemon("meshd")?;
        usage::place(Some(daemon.pid()), true);
        let process = Process::isolate(daemon.pid());
        self.daemon = Some((daemon, process));
        self.wait("ready", ANSWERS_WITHIN, Duration::from_millis(10), |bench| Ok(bench.is_ready()))?;
        Ok(began.elapsed())
    }

    /// Ends the daemon; its files stay.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        if let Some((daemon, _)) = self.daemon.take() {
            daemon.kill(Signal::TERM)?;
            daemon.wait(ANSWERS_WITHIN)?;
        }
        Ok(())
    }

    /// The daemon's process.
    pub(crate) fn process(&self) -> Result<&Process, Failure> {
        Ok(self.daemon.as_ref().map(|(_, process)| process).ok_or("the daemon was not started")?)
    }

    /// The program that is measured.
    pub(crate) fn program(&self) -> &PathBuf {
        &self.settings.daemon
    }

    /// Waits for a condition; returns how long that took, or none if it took longer.
    pub(crate) fn wait(
        &self,
        what: &str,
        within: Duration,
        every: Duration,
        mut condition: impl FnMut(&Self) -> Result<bool, Failure>,
    ) -> Result<Duration, Failure> {
        let since = Instant::now();
        while !condition(self)? {
            if let Some((daemon, _)) = &self.daemon
                && let Some(status) = daemon.ended()?
            {
                let log = daemon.log()?;
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!("the daemon ended with {status}; its log ends with {last:#?}").into());
            }
            if since.elapsed() > within {
                return Err(format!("not within {within:?}: {what}").into());
            }
            thread::sleep(every);
        }
        Ok(since.elapsed())
    }

    /// Runs a shell script on the daemon's node.
    pub(crate) fn shell(&self, script: &str) -> Result<String, Failure> {
        let output = self.node()?.command("sh").args(["-c", script]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Makes a change on the daemon's node, which has to succeed, and looks at what shows it until that is as before. All in one
    /// script: the time starts at the change, and no look waits for this process.
    pub(crate) fn repair(&self, change: &str, shows: &str, within: Duration) -> Result<Repair, Failure> {
        let most = within.as_millis();
        let script = format!(
            "look() {{ {shows}; }}; now() {{ date +%s%3N; }}; before=$(look); began=$(now); {change} || exit 1; \
             found=$(look); took=$(($(now) - began)); [ \"$found\" = \"$before\" ] && echo 0 $took && exit 0; \
             while [ \"$found\" != \"$before\" ]; do [ $took -gt {most} ] && echo 1 && exit 0; \
             found=$(look); took=$(($(now) - began)); done; echo 1 $took"
        );
        let output = self.node()?.command("sh").args(["-c", &script]).output()?;
        if !output.status.success() {
            return Err(format!("{change}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let mut words = text.split_whitespace();
        let was_seen = words.next() == Some("1");
        let took = words.next().map(str::parse).transpose()?.map(Duration::from_millis);
        Ok(Repair { was_seen, took })
    }

    /// Adds a measurement.
    pub(crate) fn row(&mut self, what: impl Into<String>, measured: Option<f64>, details: Value) {
        let row = Row { size: self.size, what: what.into(), measured, details };
        crate::say(&format!("  {:>6} peers  {}: {:?}", row.size, row.what, row.measured));
        self.rows.push(row);
    }

    /// Runs a scenario and measures how late the simulator was meanwhile. A failure is a row of its own, and ends nothing
    /// else.
    pub(crate) fn scenario(
        &mut self,
        scenario: &'static str,
        run: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Lateness {
        if !self.settings.runs(scenario) {
            return Lateness::default();
        }
        let _before = self.simulator.take_lateness();
        if let Err(error) = run(self) {
            let failed = json!({"error": lab::chain(&*error)});
            crate::say(&format!("  {:>6} peers  {scenario} failed: {}", self.size, lab::chain(&*error)));
            self.row(format!("{scenario}: failed"), None, failed);
        }
        let lateness = self.simulator.take_lateness();
        self.delays.push(Delays { size: self.size, scenario, lateness });
        lateness
    }

    fn is_ready(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect("127.0.0.1:9384")?;
            stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.node().ok().and_then(|node| node.run(ask).ok());
        answer.and_then(Result::ok).is_some_and(|answer| answer.split(' ').nth(1) == Some("200"))
    }
}
