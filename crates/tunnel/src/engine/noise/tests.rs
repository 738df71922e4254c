//! The handshake against boringtun's, both ways, and what may not pass.

use boringtun::noise::{Tunn, TunnResult};
use keyring::PrivateKey;

use super::*;
use crate::engine::session::{MessageLimits, Session};

struct Side {
    identity: Identity,
    statics: Statics,
}

fn sides() -> [Side; 2] {
    let identity = |byte: u8| Identity::new(PrivateKey::from_bytes(&[byte; 32]).unwrap(), 1_000);
    let statics = |own: &Identity, other: &Identity| Statics::new(own, other.secret_public);
    let (a, b) = (identity(1), identity(2));
    let (of_a, of_b) = (statics(&a, &b), statics(&b, &a));
    [Side { identity: a, statics: of_a }, Side { identity: b, statics: of_b }]
}

fn tunn(own: &Identity, peer: &Identity, preshared: [u8; 32]) -> Tunn {
    Tunn::new(own.secret.as_ref().clone(), peer.secret_public, Some(preshared), None, 5, None)
}

fn begin(side: &Side) -> (Initiation, [u8; INITIATION]) {
    let mut message = [0; INITIATION];
    let ephemeral = Zeroizing::new([9; 32]);
    let begun = Initiation::begin(
        &side.identity.secret_public,
        &side.statics,
        77,
        &ephemeral,
        [3; 12],
        None,
        &mut message,
    );
    (begun.ok().unwrap(), message)
}

fn written(result: &TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
        other => panic!("nothing to send: {other:?}"),
    }
}

#[test]
fn boringtun_answers_what_we_begin_and_both_have_the_same_keys() {
    let [a, b] = sides();
    let mut theirs = tunn(&b.identity, &a.identity, [5; 32]);
    let (initiation, message) = begin(&a);
    let answer = written(&theirs.decapsulate(None, &message, &mut [0; 256]));
    let answer: [u8; RESPONSE] = answer.try_into().unwrap();
    assert!(initiation.complete(&a.identity, &[6; 32], &answer).is_err(), "another preshared key");
    let keys = initiation.complete(&a.identity, &[5; 32], &answer).ok().unwrap();
    let session = Session::new(&keys, 1, true);
    let mut keepalive = [0; 32];
    session.seal(&mut keepalive, MessageLimits::default()).unwrap();
    assert!(matches!(theirs.decapsulate(None, &keepalive, &mut [0; 256]), TunnResult::Done));
    let mut packet = written(&theirs.encapsulate(&[], &mut [0; 256]));
    assert_eq!(session.open(&mut packet, MessageLimits::default()).map(|text| text.len()), Ok(0));
}

#[test]
fn we_answer_what_boringtun_begins() {
    let [a, b] = sides();
    let mut theirs = tunn(&a.identity, &b.identity, [5; 32]);
    let message = written(&theirs.format_handshake_initiation(&mut [0; 256], false));
    let message: [u8; INITIATION] = message.try_into().unwrap();
    let opened = Opened::read(&b.identity, &message).ok().unwrap();
    assert_eq!(&opened.peer, a.identity.public.as_bytes());
    let received = opened.prove(&b.statics).ok().unwrap();
    let mut answer = [0; RESPONSE];
    let ephemeral = Zeroizing::new([8; 32]);
    let (keys, _) = received.answer(&b.statics, &[5; 32], 9, &ephemeral, None, &mut answer).ok().unwrap();
    let mut keepalive = written(&theirs.decapsulate(None, &answer, &mut [0; 256]));
    let session = Session::new(&keys, 1, false);
    assert_eq!(session.open(&mut keepalive, MessageLimits::default()).map(|text| text.len()), Ok(0));
}

#[test]
fn every_changed_bit_of_a_message_is_noticed() {
    let [a, b] = sides();
    let (initiation, message) = begin(&a);
    // The MACs are the admission guard's; the index of the sender is covered by nothing else.
    for at in 8..116 {
        let mut changed = message;
        changed[at] ^= 0x10;
        let passed = Opened::read(&b.identity, &changed).and_then(|opened| opened.prove(&b.statics));
        assert!(passed.is_err(), "byte {at} of the initiation");
    }
    let received =
        Opened::read(&b.identity, &message).and_then(|opened| opened.prove(&b.statics)).ok().unwrap();
    assert_eq!(received.timestamp, [3; 12]);
    let mut answer = [0; RESPONSE];
    assert!(received.answer(&b.statics, &[0; 32], 9, &Zeroizing::new([8; 32]), None, &mut answer).is_ok());
    assert!(initiation.complete(&a.identity, &[0; 32], &answer).is_ok());
    for at in 12..60 {
        let mut changed = answer;
        changed[at] ^= 0x10;
        assert!(initiation.complete(&a.identity, &[0; 32], &changed).is_err(), "byte {at} of the answer");
    }
}

#[test]
fn a_point_of_low_order_is_refused() {
    let [a, b] = sides();
    let (_, mut message) = begin(&a);
    message[8..40].fill(0);
    assert_eq!(Opened::read(&b.identity, &message).err(), Some(DropReason::InvalidHandshake));
}
