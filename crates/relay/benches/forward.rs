//! What the relay costs: throughput, CPU and delay of one flow over loopback, directly and through the relay in turns.
//!
//!     cargo bench -p relay
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark ends by panicking, and prints")]
#![allow(clippy::cast_precision_loss, reason = "the numbers are rounded when they are printed")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyring::Slot;
use keyring::rotation::PeerId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use relay::{Forwarder, Limits, Relay};
use tunnel::udp::{Inbox, Message, Sockets, UdpOffload};

/// A datagram of the engine that carries a packet of 1,420 bytes.
const LEN: usize = 1452;
/// Datagrams in one message with segmentation offload: what the engine sends.
const SEGMENTS: usize = 44;
/// Bytes under way at most: UDP has no backpressure, and what overflows a buffer is no throughput.
const WINDOW: u64 = 1 << 20;
const TIME: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;

fn main() {
    let offload = Arc::new(UdpOffload::automatic("bench"));
    let ends = [(); 2].map(|()| Sockets::bind(0, 0, &offload).unwrap());
    let at = ends.each_ref().map(|end| SocketAddr::from(([127, 0, 0, 1], end.port())));
    let limits =
        Limits { ports: 24_200..=24_207, bytes_per_second: 10 << 30, pair_bytes_per_second: 10 << 30 };
    let forwarder = Forwarder::start(Relay::new(Duration::ZERO, limits), Instant::now()).unwrap();
    let names = [PeerId::new("u1"), PeerId::new("u2")];
    let ports = [0, 1].map(|of: usize| {
        let asked =
            forwarder.with(|now, relay| relay.ask(now, &names[of], &names[1 - of], Slot::A, Some(at[of])));
        asked.unwrap().port
    });
    std::thread::sleep(Duration::from_millis(200));
    println!("{:<10}{:>12}{:>16}{:>14}", "path", "Gbit/s", "CPU s per GB", "one way us");
    for _ in 0..ROUNDS {
        for (name, to) in [("direct", at[1]), ("relayed", SocketAddr::from(([127, 0, 0, 1], ports[0])))] {
            let (rate, cpu) = throughput(&ends, to);
            println!("{name:<10}{rate:>12.2}{cpu:>16.3}{:>14.1}", delay(&ends, to));
        }
    }
    println!("{:?}", forwarder.counters());
}

/// CPU seconds that this process has used.
fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Waits and receives; returns how many bytes.
fn receive(end: &Sockets, inbox: &mut Inbox) -> u64 {
    let Some(socket) = end.fds().next() else { return 0 };
    let mut waits = [PollFd::new(socket, PollFlags::POLLIN)];
    let _ = poll(&mut waits, PollTimeout::from(20_u8));
    match inbox.receive(socket) {
        Ok(_) => inbox.runs().map(|(_, run, _)| run.len() as u64).sum(),
        Err(_) => 0,
    }
}

/// Gbit/s that arrive, and CPU seconds of sender, receiver and relay together for each GB.
fn throughput(ends: &[Sockets; 2], to: SocketAddr) -> (f64, f64) {
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut datagrams = vec![0; LEN * SEGMENTS];
    datagrams.chunks_mut(LEN).for_each(|datagram| datagram[0] = 4);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut inbox = Inbox::new();
            while !stop.load(Ordering::Relaxed) {
                let bytes = receive(&ends[1], &mut inbox);
                received.fetch_add(bytes, Ordering::Relaxed);
            }
        });
        let (begun, before) = (Instant::now(), cpu());
        let segment = u16::try_from(LEN).ok();
        let mut sent = 0;
        while begun.elapsed() < TIME {
            ends[0].transmit(&[Message { to, bytes: &datagrams, segment }]);
            sent += datagrams.len() as u64;
            let waited = Instant::now();
            while sent.saturating_sub(received.load(Ordering::Relaxed)) > WINDOW {
                std::thread::sleep(Duration::from_micros(20));
                if waited.elapsed() > Duration::from_millis(20) {
                    // Lost: not to be waited for.
                    sent = received.load(Ordering::Relaxed);
                }
            }
        }
        let (time, used) = (begun.elapsed().as_secs_f64(), cpu() - before);
        let bytes = received.load(Ordering::Relaxed) as f64;
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
        (bytes * 8.0 / time / 1e9, used / (bytes / 1e9))
    })
}

/// Median time from the first end to the second, in microseconds.
fn delay(ends: &[Sockets; 2], to: SocketAddr) -> f64 {
    let mut inbox = Inbox::new();
    let mut datagram = [0; 128];
    datagram[0] = 4;
    while receive(&ends[1], &mut inbox) > 0 {}
    let mut times: Vec<Duration> = (0..2000)
        .map(|_| {
            let begun = Instant::now();
            ends[0].transmit(&[Message { to, bytes: &datagram, segment: None }]);
            receive(&ends[1], &mut inbox);
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}
