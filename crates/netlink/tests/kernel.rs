//! The socket against the kernel, in a network namespace of the test's own. Needs root.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "functions that tests share fail as tests do")]

use netlink::{NetlinkError, Protocol, Socket};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkDeserializable as _, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use nix::sched::{CloneFlags, unshare};

const ENODEV: i32 = 19;
const EEXIST: i32 = 17;

#[derive(Debug)]
enum Route {}

impl Protocol for Route {
    const NUMBER: isize = netlink_sys::protocols::NETLINK_ROUTE;
    type Request = RouteNetlinkMessage;
}

/// Runs a test on a thread in a new network namespace, which ends with the thread.
fn in_namespace(test: impl FnOnce(Socket<Route>) + Send + 'static) {
    let inside = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace: these tests need root");
        test(Socket::open().unwrap());
    });
    if let Err(panic) = inside.join() {
        std::panic::resume_unwind(panic);
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn create(socket: &mut Socket<Route>, name: &str, peer: &str, kind: InfoKind) -> Result<(), NetlinkError> {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(kind),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(named(peer)))),
    ]));
    socket.request(&RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn name(message: netlink::Message<'_>) -> Result<Option<String>, NetlinkError> {
    let mut header = NetlinkHeader::default();
    header.message_type = message.kind;
    let RouteNetlinkMessage::NewLink(link) = RouteNetlinkMessage::deserialize(&header, message.body)? else {
        return Ok(None);
    };
    Ok(link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    }))
}

fn names(socket: &mut Socket<Route>) -> Vec<String> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let take = |found: &mut Vec<String>, message: netlink::Message<'_>| {
        found.extend(name(message)?);
        Ok::<_, NetlinkError>(())
    };
    socket.dump(&request, Vec::new, take).unwrap()
}

#[test]
fn requests_are_performed_and_dumps_are_whole() {
    in_namespace(|mut socket| {
        let before = names(&mut socket).len();
        // More links than fit into one datagram.
        for number in 0..40 {
            create(&mut socket, &format!("a{number}"), &format!("b{number}"), InfoKind::Veth).unwrap();
        }
        let found = names(&mut socket);
        assert_eq!(found.len(), before + 80);
        assert!(found.contains(&"a0".to_owned()) && found.contains(&"b39".to_owned()));
        let mut one = Vec::new();
        let request = RouteNetlinkMessage::GetLink(named("a7"));
        let got = socket.get(&request, |message| {
            one.extend(name(message)?);
            Ok::<_, NetlinkError>(())
        });
        got.unwrap();
        assert_eq!(one, ["a7"]);
    });
}

#[test]
fn refusals_have_a_number_and_the_kernels_text() {
    in_namespace(|mut socket| {
        let missing = socket.request(&RouteNetlinkMessage::DelLink(named("none")), 0).unwrap_err();
        assert_eq!(missing.errno(), Some(ENODEV));
        create(&mut socket, "a", "b", InfoKind::Veth).unwrap();
        let twice = create(&mut socket, "a", "c", InfoKind::Veth).unwrap_err();
        assert_eq!(twice.errno(), Some(EEXIST));
        let unknown = create(&mut socket, "x", "y", InfoKind::Other("no-such-kind".to_owned())).unwrap_err();
        assert!(
            matches!(&unknown, NetlinkError::Refused { message: Some(text), .. } if text.contains("Unknown device type")),
            "{unknown}"
        );
        // The socket is good for more after a refusal.
        assert!(names(&mut socket).contains(&"a".to_owned()));
    });
}
