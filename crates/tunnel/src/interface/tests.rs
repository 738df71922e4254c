//! What needs a device and the inside of an interface: failures of its threads.

use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use nix::errno::Errno;

use super::threads::run;
use super::tun::Tun;
use super::{Health, Interface, InterfaceConfig, OffloadOption};
use crate::batch::Packets;
use crate::error::{Failure, TunnelError};
use crate::offload::{Coalescer, VnetHeader, split};

/// Runs `body` on a thread in a namespace of its own, which has no name and goes with the last thread in it.
fn in_namespace(body: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            body();
        });
        inside.join().unwrap();
    });
}

#[test]
fn an_interface_says_when_one_of_its_threads_panics_and_stops_the_others() {
    in_namespace(|| {
        let mut interface = Interface::create(&InterfaceConfig::new("wg0")).unwrap();
        assert_eq!(interface.health(), Health::Running);
        run(&interface.core, "testing", |_| panic!("as a bug would"));
        assert_eq!(interface.health(), Health::Failed(Failure::Panic("testing")));
        let refused = interface.set_listen_port(0);
        assert!(matches!(refused, Err(TunnelError::Stopped { reason: Failure::Panic("testing"), .. })));
        let before = Instant::now();
        interface.threads.join();
        assert!(before.elapsed() < Duration::from_secs(5), "the others have ended too");
    });
}

#[test]
fn the_first_failure_is_the_one_that_is_told() {
    in_namespace(|| {
        let interface = Interface::create(&InterfaceConfig::new("wg0")).unwrap();
        run(&interface.core, "testing", |_| Err(Failure::TunGone));
        run(&interface.core, "testing", |_| panic!("too late"));
        assert_eq!(interface.health(), Health::Failed(Failure::TunGone));
    });
}

#[test]
fn a_device_that_could_not_be_served_is_not_left_behind() {
    in_namespace(|| {
        let uapi_dir = Some("/proc/nowhere".into());
        let config = InterfaceConfig { persistent: true, uapi_dir, ..InterfaceConfig::new("wg0") };
        assert!(matches!(Interface::create(&config), Err(TunnelError::Uapi { .. })));
        assert!(nix::net::if_::if_nametoindex("wg0").is_err());
    });
}

/// Three packets of one TCP stream over IPv4, as the kernel would cut them from a large one.
fn tcp_packets() -> Packets {
    let mut large = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    large.extend([3, 232, 7, 208, 0, 0, 0, 1, 0, 0, 0, 77, 0x50, 0x10, 1, 244, 0, 0, 0, 0]);
    large.extend((0..250u8).map(|byte| byte ^ 0x5a));
    let [len, segment] = [40u16, 100].map(u16::to_ne_bytes);
    let [start, offset] = [20u16, 16].map(u16::to_ne_bytes);
    let header = [&[1, 1][..], &len, &segment, &start, &offset].concat();
    let mut packets = Packets::new();
    split(VnetHeader::parse(header.try_into().unwrap()).unwrap(), &large, &mut packets).unwrap();
    packets
}

#[test]
fn joined_packets_that_the_kernel_refuses_are_written_one_by_one_until_none_are_joined() {
    thread_local!(static WRITTEN: std::cell::RefCell<Vec<Vec<u8>>> = const { std::cell::RefCell::new(Vec::new()) });
    in_namespace(|| {
        for (option, refused) in [(OffloadOption::Auto, 4), (OffloadOption::On, 10), (OffloadOption::Off, 0)]
        {
            let mut tun = Tun::open("wg0", option).unwrap();
            tun.set_write(|_, vectors| {
                if vectors.len() > 2 {
                    return Err(Errno::EINVAL);
                }
                WRITTEN.with_borrow_mut(|written| written.push(vectors[1].to_vec()));
                Ok(1)
            });
            for _ in 0..10 {
                let mut packets = tcp_packets();
                let expected: Vec<Vec<u8>> = packets.iter().map(<[u8]>::to_vec).collect();
                assert_eq!(tun.write(&mut packets.view(), &mut Coalescer::default()), Ok(0));
                assert_eq!(WRITTEN.take(), expected, "{option:?}");
            }
            assert_eq!(tun.refused_batches(), refused, "{option:?}");
            assert_eq!(tun.is_offload_used(), option == OffloadOption::On, "{option:?}");
        }
    });
}
