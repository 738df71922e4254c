//! What needs a device and the inside of an interface: failures of its threads.

use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::threads::run;
use super::{Health, Interface, InterfaceConfig};
use crate::error::{Failure, TunnelError};

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
