//! The implementations that are compared, and how each is started: as its own documentation says, in the foreground.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use tunnel::bare::{BareOptions, run};

use crate::lab::{Family, Host, Lab, Process, eventually, key_file, unique};

/// Set for a copy of this program that is to be one of our interfaces: then it is built as everything here is.
const SERVE: &str = "TUNNEL_BENCH_SERVE";
/// MTU of every tunnel in bytes.
const MTU: u16 = 1420;
const PORT: u16 = 51840;

pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    program: PathBuf,
    arguments: &'static [&'static str],
}

/// A contender on both ends of a cable. The processes go before the namespaces.
pub(crate) struct Running {
    processes: [Process; 2],
    pub(crate) devices: [String; 2],
    pub(crate) lab: Lab,
}

/// If this process was started to be an interface, is one until it is told to end.
pub(crate) fn serve_if_asked() -> Option<ExitCode> {
    let name = std::env::var(SERVE).ok()?;
    Some(match run(&BareOptions { mtu: Some(MTU), ..BareOptions::new(name) }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

/// Ours first.
pub(crate) fn all() -> Vec<Contender> {
    // `make bench-tunnel` sets it, after it has filled the directory.
    let directory = PathBuf::from(std::env::var_os("WIREGUARDS").unwrap());
    let version = |name: &str| {
        std::fs::read_to_string(directory.join(format!("{name}.version"))).unwrap().trim().to_owned()
    };
    let debian = Command::new("dpkg-query").args(["-W", "-f=${Version}", "wireguard-go"]).output().unwrap();
    vec![
        Contender {
            name: "ours",
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: std::env::current_exe().unwrap(),
            arguments: &[],
        },
        Contender {
            name: "wireguard-go (sid)",
            version: version("wireguard-go"),
            program: directory.join("wireguard-go"),
            arguments: &["-f"],
        },
        Contender {
            name: "gotatun-cli",
            version: version("gotatun-cli"),
            program: directory.join("gotatun-cli"),
            arguments: &["-f", "--disable-drop-privileges"],
        },
        Contender {
            name: "boringtun-cli",
            version: version("boringtun-cli"),
            program: directory.join("boringtun-cli"),
            arguments: &["-f", "--disable-drop-privileges"],
        },
        Contender {
            name: "wireguard-go (12)",
            version: String::from_utf8(debian.stdout).unwrap(),
            program: "/usr/bin/wireguard-go".into(),
            arguments: &["-f"],
        },
    ]
}

impl Contender {
    /// Starts it on `host` as `device` and waits until it can be configured.
    pub(crate) fn start(&self, host: &Host, device: &str) -> Process {
        let arguments = [self.arguments, &[device]].concat().join(" ");
        let mut command = host.command(self.program.to_str().unwrap(), &arguments);
        if self.arguments.is_empty() {
            command.env(SERVE, device);
        }
        let process = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        eventually("it can be configured", || {
            host.command("wg", &format!("show {device}")).output().unwrap().status.success().then_some(())
        });
        process
    }
}

impl Running {
    /// Starts `contender` on both ends of a new cable; each knows the other.
    pub(crate) fn start(contender: &Contender) -> Self {
        let lab = Lab::new();
        let devices = [unique("tv"), unique("tv")];
        let processes = [contender.start(&lab.a, &devices[0]), contender.start(&lab.b, &devices[1])];
        let ((file_a, key_a), (file_b, key_b)) = (key_file(), key_file());
        for (host, device, file, peer, other) in
            [(&lab.a, &devices[0], &file_a, key_b, &lab.b), (&lab.b, &devices[1], &file_b, key_a, &lab.a)]
        {
            host.wg(&format!(
                "set {device} private-key {} listen-port {PORT} peer {peer} endpoint {} allowed-ips {}/32",
                file.path().display(),
                other.endpoint(Family::V4, PORT),
                other.inner(Family::V4),
            ));
            host.configure(device);
            host.ip(&format!("link set {device} mtu {MTU}"));
        }
        let running = Self { processes, devices, lab };
        assert!(
            running.lab.a.reaches(&running.lab.b.inner(Family::V4), 56),
            "{} does not connect",
            contender.name
        );
        running
    }

    /// CPU seconds that both ends have used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.processes.iter().map(|process| cpu_ticks(process.0.id())).sum::<f64>() / ticks_per_second()
    }
}

/// User and system time of a process, all threads, in ticks (proc(5), fields 14 and 15).
fn cpu_ticks(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
}

fn ticks_per_second() -> f64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    f64::from(i32::try_from(ticks).unwrap())
}

/// Resident memory of a process in MB (proc(5), `VmRSS`).
pub(crate) fn resident(process: &Process) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
