//! Exchanges with a scripted kernel.

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
};
use proptest::prelude::*;

use crate::error::NetlinkError;
use crate::exchange::{Buffer, DUMP_ATTEMPTS, Exchange, Transport};
use crate::frame::Message;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
/// A message type of a protocol's.
const DATA: u16 = 24;

/// Answers with the given datagrams, whatever it is sent.
struct Answers {
    datagrams: std::vec::IntoIter<Vec<u8>>,
    sent: usize,
}

impl Transport for Answers {
    fn send(&mut self, _: &[u8]) -> Result<(), NetlinkError> {
        self.sent += 1;
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, NetlinkError> {
        let Some(datagram) = self.datagrams.next() else {
            // With the kernel this would block for ever.
            return Err(NetlinkError::from(std::io::Error::from(std::io::ErrorKind::WouldBlock)));
        };
        let length = datagram.len().min(buffer.len());
        buffer[..length].copy_from_slice(&datagram[..length]);
        Ok(datagram.len())
    }
}

fn exchange(datagrams: Vec<Vec<u8>>) -> Exchange<Answers> {
    Exchange::new(Answers { datagrams: datagrams.into_iter(), sent: 0 }, true)
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn data(sequence: u32, byte: u8) -> Vec<u8> {
    message(DATA, NLM_F_MULTIPART, sequence, &[byte])
}

fn done(sequence: u32, flags: u16) -> Vec<u8> {
    message(NLMSG_DONE, flags, sequence, &0_i32.to_ne_bytes())
}

/// An acknowledgement or, with an error number, a refusal, which repeats the request's header.
fn acknowledgement(sequence: u32, errno: i32) -> Vec<u8> {
    let mut body = (-errno).to_ne_bytes().to_vec();
    body.extend([0; 16]);
    message(NLMSG_ERROR, NLM_F_CAPPED, sequence, &body)
}

/// One exchange, numbered 1: the bodies that were taken, and whether the dump was unchanged.
fn run(datagrams: Vec<Vec<u8>>) -> Result<(Vec<Vec<u8>>, bool), NetlinkError> {
    let mut taken = Vec::new();
    let mut exchange = exchange(datagrams);
    let sequence = exchange.next_sequence(0);
    let unchanged = exchange.run(&[], sequence, |message| {
        taken.push(message.body.to_vec());
        Ok::<_, NetlinkError>(())
    })?;
    Ok((taken, unchanged))
}

fn errno(outcome: Result<impl Sized, NetlinkError>) -> Option<i32> {
    outcome.err().and_then(|error| error.errno())
}

#[test]
fn an_answer_is_read_over_several_datagrams_up_to_its_end() {
    let datagrams = vec![
        [data(1, 7), message(NLMSG_NOOP, 0, 1, &[]), data(1, 8)].concat(),
        data(1, 9),
        [done(1, 0), data(1, 10)].concat(),
    ];
    assert_eq!(run(datagrams).unwrap(), (vec![vec![7], vec![8], vec![9]], true));
    assert_eq!(run(vec![acknowledgement(1, 0)]).unwrap(), (vec![], true));
    assert_eq!(run(vec![message(NLMSG_DONE, 0, 1, &[])]).unwrap(), (vec![], true), "an end without a code");
}

#[test]
fn answers_to_other_requests_are_passed_over() {
    let datagrams = vec![
        [data(0, 1), acknowledgement(0, EPERM), data(1, 7), done(0, 0)].concat(),
        [data(2, 2), done(1, 0)].concat(),
    ];
    assert_eq!(run(datagrams).unwrap(), (vec![vec![7]], true));
}

#[test]
fn an_interrupted_dump_is_found_in_every_message() {
    for datagrams in [
        vec![message(DATA, NLM_F_DUMP_INTR, 1, &[7]), done(1, 0)],
        vec![data(1, 7), done(1, NLM_F_DUMP_INTR)],
    ] {
        assert_eq!(run(datagrams).unwrap(), (vec![vec![7]], false));
    }
    // That of another request does not count.
    assert!(run(vec![message(DATA, NLM_F_DUMP_INTR, 9, &[]), done(1, 0)]).unwrap().1);
}

#[test]
fn an_interrupted_dump_is_read_again_from_the_start() {
    let dump = |datagrams: Vec<Vec<u8>>| {
        let mut exchange = exchange(datagrams);
        let encode = |_| Buffer { bytes: Vec::new(), secret: false };
        let take = |found: &mut Vec<u8>, message: Message<'_>| {
            found.extend(message.body);
            Ok::<_, NetlinkError>(())
        };
        let found = exchange.dump(encode, Vec::new, take);
        (found.unwrap(), exchange.transport().sent)
    };
    let interrupted = |sequence| [data(sequence, 7), done(sequence, NLM_F_DUMP_INTR)].concat();
    let whole = |sequence| [data(sequence, 8), data(sequence, 9), done(sequence, 0)].concat();
    assert_eq!(dump(vec![whole(1), whole(2)]), (vec![8, 9], 1));
    assert_eq!(dump(vec![interrupted(1), whole(2)]), (vec![8, 9], 2));
    let always = (1..=9).map(interrupted).collect();
    assert_eq!(dump(always), (vec![7], usize::try_from(DUMP_ATTEMPTS).unwrap()), "the last attempt counts");
}

#[test]
fn truncated_answers_are_refused() {
    let whole = [data(1, 7), done(1, 0)].concat();
    // From 17 to 20 bytes the first message is whole, without or with its padding.
    for end in (0..whole.len()).filter(|end| !(17..=20).contains(end)) {
        let outcome = run(vec![whole[..end].to_vec()]);
        assert!(matches!(outcome, Err(NetlinkError::Malformed { .. })), "{end} bytes");
    }
    let mut short = data(1, 7);
    short[0] = 15;
    assert!(matches!(run(vec![short]), Err(NetlinkError::Malformed { .. })), "shorter than its header");
    let no_code = message(NLMSG_ERROR, 0, 1, &[0, 0]);
    assert!(matches!(run(vec![no_code]), Err(NetlinkError::Malformed { .. })));
    let huge = [vec![data(1, 7); 4000].concat(), done(1, 0)].concat();
    assert!(matches!(run(vec![huge]), Err(NetlinkError::Malformed { .. })), "longer than the buffer");
}

#[test]
fn a_refusal_has_the_kernels_number_and_text() {
    assert_eq!(errno(run(vec![acknowledgement(1, ENOENT)])), Some(ENOENT));
    let failed_dump = message(NLMSG_DONE, 0, 1, &(-EPERM).to_ne_bytes());
    assert_eq!(errno(run(vec![data(1, 7), failed_dump])), Some(EPERM));

    // The text is attribute 1, after a cookie; the repeated request is capped, whole, or (at a dump's end) missing.
    let text = [&[8_u8, 0, 3, 0, 1, 2, 3, 4][..], &[12, 0, 1, 0], b"no room\0"].concat();
    let request = message(DATA, 0, 1, &[5; 6]);
    let code = (-ENOENT).to_ne_bytes();
    let capped = [&code[..], &request[..16], &text].concat();
    let whole = [&code[..], &request, &text].concat();
    for (kind, flags, body) in [
        (NLMSG_ERROR, NLM_F_ACK_TLVS | NLM_F_CAPPED, capped.clone()),
        (NLMSG_ERROR, NLM_F_ACK_TLVS, whole),
        (NLMSG_DONE, NLM_F_ACK_TLVS, [&code[..], &text].concat()),
    ] {
        let error = run(vec![message(kind, flags, 1, &body)]).unwrap_err();
        assert_eq!(error.to_string(), "No such file or directory (os error 2): no room");
    }
    let error = run(vec![message(NLMSG_ERROR, NLM_F_CAPPED, 1, &capped)]).unwrap_err();
    assert_eq!(error.to_string(), "No such file or directory (os error 2)", "no attributes announced");
}

#[test]
fn an_answer_that_cannot_be_taken_is_read_to_its_end() {
    let mut exchange = exchange(vec![data(1, 7), [data(1, 8), done(1, 0)].concat(), acknowledgement(2, 0)]);
    let sequence = exchange.next_sequence(0);
    let mut calls = 0;
    let outcome = exchange.run(&[], sequence, |_| {
        calls += 1;
        Err(NetlinkError::Malformed { problem: "to the caller" })
    });
    assert!(matches!(outcome, Err(NetlinkError::Malformed { problem: "to the caller" })));
    assert_eq!(calls, 1);
    let sequence = exchange.next_sequence(0);
    exchange.run(&[], sequence, |_| Ok::<_, NetlinkError>(())).unwrap();
}

/// A transaction of three steps, numbered 1 (begin), 2, 3, 4 and 5 (end).
fn transaction(datagrams: Vec<Vec<u8>>) -> Result<(), NetlinkError> {
    let mut exchange = exchange(datagrams);
    let first = exchange.next_sequence(4);
    exchange.run_transaction(&[], first, 3)
}

#[test]
fn a_transaction_is_done_when_every_step_is_acknowledged() {
    let acknowledged = |sequence| acknowledgement(sequence, 0);
    transaction(vec![[acknowledged(2), acknowledged(3)].concat(), acknowledged(4)]).unwrap();
    // Neither other requests' acknowledgements nor that of the begin count.
    let missing = vec![[acknowledged(0), acknowledged(1), acknowledged(2), acknowledged(3)].concat()];
    assert!(transaction(missing).is_err());
}

#[test]
fn a_refusal_in_the_midst_of_a_transaction_fails_it() {
    for (datagrams, expected) in [
        (vec![acknowledgement(2, 0), acknowledgement(3, ENOENT), acknowledgement(4, 0)], ENOENT),
        (vec![[acknowledgement(2, 0), acknowledgement(3, 0), acknowledgement(4, ENOENT)].concat()], ENOENT),
        // The transaction as a whole, under its first number, and its end.
        (vec![acknowledgement(1, EPERM)], EPERM),
        (vec![acknowledgement(2, 0), acknowledgement(5, ENOENT)], ENOENT),
    ] {
        assert_eq!(errno(transaction(datagrams)), Some(expected));
    }
    // A late refusal of another request is not ours.
    transaction(vec![
        [acknowledgement(0, EPERM), acknowledgement(2, 0), acknowledgement(3, 0), acknowledgement(4, 0)]
            .concat(),
    ])
    .unwrap();
}

#[test]
fn what_was_received_is_wiped() {
    let mut exchange = exchange(vec![[data(1, 0xaa), done(1, 0)].concat()]);
    let sequence = exchange.next_sequence(0);
    exchange.run(&[], sequence, |_| Ok::<_, NetlinkError>(())).unwrap();
    assert!(exchange.received().iter().all(|byte| *byte == 0));
}

proptest! {
    #[test]
    fn no_answer_makes_the_reader_panic(
        kind in prop_oneof![Just(NLMSG_ERROR), Just(NLMSG_DONE), Just(DATA), any::<u16>()],
        flags in any::<u16>(),
        body in proptest::collection::vec(any::<u8>(), 0..64),
        rest in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let datagram = [message(kind, flags, 1, &body), rest].concat();
        let _refused_or_not = run(vec![datagram.clone()]);
        let _refused_or_not = Message::split(&datagram).map(|(message, _)| message.classify().is_ok());
    }
}
