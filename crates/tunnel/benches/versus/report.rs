//! What was found: a line for each round, medians, ratios, and the two files.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::json;

use crate::contender::Contender;
use crate::measure::{Sample, median};

/// What is compared.
type Field = fn(&Sample) -> f64;

/// One promise and whether it is kept.
pub(crate) struct Row {
    name: &'static str,
    ours: f64,
    theirs: f64,
    peer: String,
    ratio: f64,
    /// The bound: for [`Better::Lower`] the ratio may not be above it.
    at_least: f64,
    better: Better,
}

#[derive(Clone, Copy, PartialEq)]
enum Better {
    Higher,
    Lower,
}

impl Row {
    fn reached(&self) -> bool {
        match self.better {
            Better::Higher => self.ratio >= self.at_least,
            Better::Lower => self.ratio <= self.at_least,
        }
    }
}

/// Prints what everything runs on.
pub(crate) fn machine(contenders: &[Contender]) {
    for contender in contenders {
        println!("{:<22} {}", contender.name, contender.version);
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("cores {}, load {}, Linux {}", cores(), load.trim(), kernel.trim());
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
}

pub(crate) fn heading() {
    println!("round  implementation         TCP 1  TCP 4 Gbit/s  UDP 1300  UDP 64 kpps  added us  CPU s/GB");
}

pub(crate) fn round(number: usize, name: &str, sample: &Sample) {
    let Sample { tcp1, tcp4, udp1300, udp64, added, cpu } = sample;
    println!(
        "{number:>5}  {name:<22} {tcp1:>5.2}  {tcp4:>5.2}         {udp1300:>8.1}  {udp64:>6.1}       {added:>8.0}  {cpu:>8.2}"
    );
}

/// All promises, from the medians over the rounds.
pub(crate) fn rows(
    contenders: &[Contender],
    samples: &[Vec<Sample>],
    crowded: &[(f64, f64)],
    memory: &[Vec<f64>],
    alone: &[f64],
) -> Vec<Row> {
    let of = |place: usize, what: Field| median(samples[place].iter().map(what).collect());
    let row = |name, what: Field, place: usize, at_least, better| {
        let (ours, theirs) = (of(0, what), of(place, what));
        Row {
            name,
            ours,
            theirs,
            peer: contenders[place].name.to_owned(),
            ratio: ours / theirs,
            at_least,
            better,
        }
    };
    let best =
        |what: Field| (1..contenders.len()).max_by(|a, b| of(*a, what).total_cmp(&of(*b, what))).unwrap_or(1);
    let (udp1300, udp64): (Field, Field) = (|s| s.udp1300, |s| s.udp64);
    let (one, many) = (
        median(crowded.iter().map(|pair| pair.0).collect()),
        median(crowded.iter().map(|pair| pair.1).collect()),
    );
    let (own_memory, their_memory) = (median(memory[0].clone()), median(memory[1].clone()));
    vec![
        row("TCP, 1 flow, Gbit/s", |s| s.tcp1, 1, 1.5, Better::Higher),
        row("TCP, 4 flows, Gbit/s", |s| s.tcp4, 1, 1.5, Better::Higher),
        row("TCP, 1 flow, Gbit/s", |s| s.tcp1, 3, 5.0, Better::Higher),
        row("TCP, 1 flow, Gbit/s", |s| s.tcp1, 2, 4.0, Better::Higher),
        row("UDP 1,300 B, thousands delivered per second", udp1300, best(udp1300), 1.3, Better::Higher),
        row("UDP 64 B, thousands delivered per second", udp64, best(udp64), 1.3, Better::Higher),
        row("round trip added, idle, us", |s| s.added, 1, 1.0, Better::Lower),
        row("CPU seconds per GB", |s| s.cpu, 1, 0.7, Better::Lower),
        Row {
            name: "engine alone, share of the AEAD's own speed",
            ours: median(alone.to_vec()),
            theirs: 1.0,
            peer: "ring's cipher".to_owned(),
            ratio: median(alone.to_vec()),
            at_least: 0.8,
            better: Better::Higher,
        },
        Row {
            name: "memory with 1,000 idle peers, MB",
            ours: own_memory,
            theirs: their_memory,
            peer: contenders[1].name.to_owned(),
            ratio: own_memory / their_memory,
            at_least: 0.5,
            better: Better::Lower,
        },
        Row {
            name: "TCP, 1 flow, plus 1,000 idle peers, Gbit/s",
            ours: many,
            theirs: one,
            peer: "ours with 1 peer".to_owned(),
            ratio: median(crowded.iter().map(|pair| pair.1 / pair.0).collect()),
            at_least: 0.97,
            better: Better::Higher,
        },
    ]
}

/// Prints the rows, writes both files, and says whether every promise is kept.
pub(crate) fn finish(
    contenders: &[Contender],
    samples: &[Vec<Sample>],
    memory: &[Vec<f64>],
    rows: &[Row],
) -> bool {
    println!("\n| what | ours | theirs | peer | ratio | bound | |\n|---|---|---|---|---|---|---|");
    for row in rows {
        let (sign, state) = (
            if row.better == Better::Higher { ">=" } else { "<=" },
            if row.reached() { "" } else { "MISSED" },
        );
        println!(
            "| {} | {:.2} | {:.2} | {} | {:.2} | {sign} {} | {state} |",
            row.name, row.ours, row.theirs, row.peer, row.ratio, row.at_least
        );
    }
    let directory = directory();
    std::fs::create_dir_all(&directory).unwrap();
    let rounds = contenders.iter().zip(samples).map(|(contender, samples)| {
        let rounds: Vec<_> = samples
            .iter()
            .map(|s| {
                json!({"tcp1_gbps": s.tcp1, "tcp4_gbps": s.tcp4, "udp1300_kpps": s.udp1300,
                    "udp64_kpps": s.udp64, "added_us": s.added, "cpu_s_per_gb": s.cpu})
            })
            .collect();
        (contender.name.to_owned(), json!({"version": contender.version, "rounds": rounds}))
    });
    let report = json!({
        "rows": rows.iter().map(|row| json!({
            "name": row.name, "ours": row.ours, "theirs": row.theirs, "peer": row.peer, "ratio": row.ratio,
            "at_least": row.at_least, "better": if row.better == Better::Higher { "higher" } else { "lower" },
        })).collect::<Vec<_>>(),
        "contenders": rounds.collect::<serde_json::Map<_, _>>(),
        "memory_mb": contenders.iter().zip(memory)
            .map(|(contender, all)| (contender.name.to_owned(), json!(all)))
            .collect::<serde_json::Map<_, _>>(),
        "cores": cores(),
        "load": std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
    });
    let path = directory.join("tunnel.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&report).unwrap()).unwrap();
    std::fs::write(directory.join("tunnel.svg"), plot(rows)).unwrap();
    println!("\nwritten to {} and tunnel.svg in the same directory", path.display());
    rows.iter().all(Row::reached)
}

/// `target/bench`, from where this program was built to.
fn directory() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().find(|directory| directory.join("CACHEDIR.TAG").exists());
    target.map_or_else(|| PathBuf::from("target"), Into::into).join("bench")
}

/// A bar for each row: how many times better ours is, with a mark where the promise lies.
fn plot(rows: &[Row]) -> String {
    const UNIT: f64 = 40.0;
    const LEFT: f64 = 480.0;
    let height = rows.len() * 30 + 50;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1100\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-weight=\"bold\">Times better than the other; the mark is the bound</text>\n"
    );
    for (number, row) in rows.iter().enumerate() {
        let better = |ratio: f64| if row.better == Better::Higher { ratio } else { 1.0 / ratio };
        let (y, width) = (40 + number * 30, (better(row.ratio) * UNIT).min(560.0));
        let mark = (LEFT + better(row.at_least) * UNIT).min(LEFT + 570.0);
        let colour = if row.reached() { "#2a7f62" } else { "#b3452c" };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} / {}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" fill=\"{colour}\"/>\
             <line x1=\"{mark:.1}\" x2=\"{mark:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"black\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{}\">{:.2}</text>",
            LEFT - 8.0,
            y + 14,
            row.name,
            row.peer,
            y - 3,
            y + 21,
            LEFT + width + 8.0,
            y + 14,
            better(row.ratio),
        );
    }
    svg + "</svg>\n"
}
