//! Notices of changes, by any process.

use std::io::Write as _;
use std::time::Duration;

use linux::{Notice, RouteNotice};
use plan::network::{Route, Via};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::namespace::{Namespace, TIMEOUT};

/// Longer than the kernel takes from one change to its last message.
const QUIET: Duration = Duration::from_millis(300);

/// Takes notices until none comes for a while.
async fn drain(notices: &mut Receiver<Notice>) -> u32 {
    let mut count = 0;
    while let Ok(Some(Notice)) = timeout(QUIET, notices.recv()).await {
        count += 1;
    }
    count
}

#[test]
fn each_kind_of_change_is_noticed() {
    let namespace = Namespace::new();
    namespace.ip("link add eth0 type veth peer name out");
    namespace.host(async |host| {
        let mut notices = host.monitor().unwrap();
        for change in [
            "ip link set eth0 mtu 1400",
            "ip link set eth0 up",
            "ip addr add 192.0.2.1/24 dev eth0",
            "ip -6 addr add 2001:db8::1/64 dev eth0 nodad",
            "ip route add unreachable 10.244.0.0/16",
            "ip route del unreachable 10.244.0.0/16",
            "ip -6 route add unreachable fd00::/48",
            "ip -6 route del unreachable fd00::/48",
            "ip rule add from 10.244.1.0/24 lookup 5184",
            "ip -6 rule add from fd00::/64 lookup 5184",
            "nft add table inet meshd",
            "nft delete table inet meshd",
        ] {
            drain(&mut notices.routing).await;
            drain(&mut notices.filters).await;
            let (program, arguments) = change.split_once(' ').unwrap();
            let listener = if program == "nft" {
                namespace.nft(arguments);
                &mut notices.filters
            } else {
                namespace.ip(arguments);
                &mut notices.routing
            };
            let notice = timeout(TIMEOUT, listener.recv()).await;
            assert_eq!(notice.expect(change), Some(Notice), "{change}");
            if program == "nft" {
                assert_eq!(drain(&mut notices.routing).await, 0, "{change} is no change of routing");
            }
        }
    });
}

/// A notice says what has become of a route of the daemon's, whoever has changed it: what the daemon itself does is no news.
#[test]
fn of_the_daemons_routes_a_notice_says_what_they_are() {
    let namespace = Namespace::new();
    let add = |links: [&str; 2]| {
        namespace.ip(&format!("link add {} type veth peer name {}", links[0], links[1]));
        for link in links {
            namespace.ip(&format!("link set {link} addrgenmode none"));
            namespace.ip(&format!("link set {link} up"));
        }
    };
    add(["mesh-a", "out-a"]);
    namespace.host(async |host| {
        let mut notices = host.monitor().unwrap();
        drain(&mut notices.routing).await;
        add(["mesh-b", "out-b"]);
        drain(&mut notices.routing).await;
        for (link, destination, table) in [
            ("mesh-a", "10.244.1.0/24", 254),
            ("mesh-b", "10.244.1.0/24", 254),
            ("mesh-b", "fd00:10:244:1::/64", 254),
            ("mesh-a", "192.0.2.1/32", 5184),
        ] {
            let via = Via::Link { link: link.parse().unwrap(), source: None, mtu: Some(1380) };
            let route = Route { table, destination: destination.parse().unwrap(), metric: 84, via };
            host.set_route(&route).await.unwrap();
            let notice = timeout(TIMEOUT, notices.routes.recv()).await.expect(destination);
            assert_eq!(notice, Some(RouteNotice::Set(route.clone())));
            let family = if route.destination.is_ipv6() { "-6" } else { "-4" };
            let by_hand =
                format!("{family} route del {destination} metric 84 table {table} proto 84 dev {link}");
            namespace.ip(&by_hand);
            let notice = timeout(TIMEOUT, notices.routes.recv()).await.expect(destination);
            assert_eq!(notice, Some(RouteNotice::Removed(route)));
        }
        let unreachable = Route {
            table: 254,
            destination: "10.244.0.0/16".parse().unwrap(),
            metric: 50_000,
            via: Via::Unreachable,
        };
        host.set_route(&unreachable).await.unwrap();
        let notice = timeout(TIMEOUT, notices.routes.recv()).await.unwrap();
        assert_eq!(notice, Some(RouteNotice::Set(unreachable)));
        assert_eq!(drain(&mut notices.routing).await, 0);
        namespace.ip("route add 10.244.9.0/24 dev mesh-a");
        assert_eq!(
            timeout(TIMEOUT, notices.routing.recv()).await.unwrap(),
            Some(Notice),
            "another program's"
        );
        assert!(notices.routes.try_recv().is_err());
    });
}

#[test]
fn nothing_is_noticed_when_nothing_changes() {
    let namespace = Namespace::new();
    namespace.ip("link add eth0 type veth peer name out");
    namespace.host(async |host| {
        let mut notices = host.monitor().unwrap();
        drain(&mut notices.routing).await;
        host.routes().await.unwrap();
        host.rules().await.unwrap();
        assert_eq!(drain(&mut notices.routing).await, 0, "looking is no change");
        assert_eq!(drain(&mut notices.filters).await, 0, "looking is no change");
    });
}

#[test]
fn any_number_of_changes_that_nobody_looks_at_is_one_notice() {
    let namespace = Namespace::new();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for number in 0..4000 {
        writeln!(file, "route add unreachable 10.{}.{}.0/24", number / 250, number % 250).unwrap();
    }
    namespace.host(async |host| {
        let mut notices = host.monitor().unwrap().routing;
        // On this thread: the listeners get no turn while it runs, so their sockets overflow.
        namespace.ip(&format!("-batch {}", file.path().display()));
        assert!(notices.try_recv().is_err(), "the listeners had no turn yet");
        tokio::time::sleep(QUIET).await;
        assert_eq!(notices.len(), 1);
        assert_eq!(notices.recv().await, Some(Notice));
        drain(&mut notices).await;
        namespace.ip("route add unreachable 10.244.0.0/16");
        assert_eq!(
            timeout(TIMEOUT, notices.recv()).await.unwrap(),
            Some(Notice),
            "it goes on after an overflow"
        );
    });
}

#[test]
fn the_listeners_end_when_nobody_listens() {
    let namespace = Namespace::new();
    namespace.host(async |host| {
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let notices = host.monitor().unwrap();
        assert_eq!(tasks(), before + 2);
        drop(notices);
        // Nothing changes: they must not need a message to notice.
        let ended = async {
            while tasks() > before {
                tokio::task::yield_now().await;
            }
        };
        timeout(TIMEOUT, ended).await.unwrap();
    });
}
