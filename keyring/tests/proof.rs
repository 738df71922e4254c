//! Proofs against those of another implementation; `proof/vectors.py` says which, and how they are made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keyring::{PrivateKey, Proof, PublicKey};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vector {
    private: String,
    public: String,
    message: String,
    noise: String,
    proof: String,
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap())
        .collect()
}

fn array<const N: usize>(text: &str) -> [u8; N] {
    hex(text).try_into().unwrap()
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("proof/vectors.json")).unwrap()
}

#[test]
fn proofs_are_those_of_another_implementation() {
    let mut signs = [0; 2];
    for vector in vectors() {
        let private = PrivateKey::from_bytes(&array(&vector.private)).unwrap();
        let public = PublicKey::from_bytes(&array(&vector.public)).unwrap();
        assert_eq!(private.public(), public);
        let message = hex(&vector.message);
        let proof = Proof::sign(&private, &message, &array(&vector.noise));
        assert_eq!(proof, Proof::from_bytes(array(&vector.proof)));
        assert!(proof.verifies(&public, &message));
        let secret = curve25519_dalek::Scalar::from_bytes_mod_order(*private.expose());
        signs[usize::from(curve25519_dalek::EdwardsPoint::mul_base(&secret).compress().0[31] >> 7)] += 1;
    }
    assert!(signs.iter().all(|count| *count > 0), "both signs of the Edwards key occur: {signs:?}");
}

#[test]
fn a_changed_bit_anywhere_makes_a_proof_invalid() {
    for vector in vectors() {
        let public = PublicKey::from_bytes(&array(&vector.public)).unwrap();
        let (message, whole) = (hex(&vector.message), array::<64>(&vector.proof));
        for bit in 0..512 {
            let mut proof = whole;
            proof[bit / 8] ^= 1 << (bit % 8);
            assert!(!Proof::from_bytes(proof).verifies(&public, &message), "bit {bit}");
        }
        for bit in 0..message.len() * 8 {
            let mut message = message.clone();
            message[bit / 8] ^= 1 << (bit % 8);
            assert!(!Proof::from_bytes(whole).verifies(&public, &message), "bit {bit} of the message");
        }
        let longer = [message.as_slice(), &[0]].concat();
        assert!(!Proof::from_bytes(whole).verifies(&public, &longer));
        let other = PrivateKey::from_bytes(&[7; 32]).unwrap().public();
        assert!(!Proof::from_bytes(whole).verifies(&other, &message));
    }
}

#[test]
fn another_encoding_of_the_key_or_of_the_response_is_refused() {
    // The order of the group, 2^252 + 27742317777372353535851937790883648493, in little endian.
    let order: [u8; 32] = array("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    for vector in vectors() {
        let (message, mut proof) = (hex(&vector.message), array::<64>(&vector.proof));
        let mut high = array::<32>(&vector.public);
        high[31] |= 0x80;
        let high = PublicKey::from_bytes(&high).unwrap();
        assert!(!Proof::from_bytes(proof).verifies(&high, &message), "the ignored bit of the key");
        let mut carry = 0;
        for (byte, add) in proof[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        let public = PublicKey::from_bytes(&array(&vector.public)).unwrap();
        assert!(!Proof::from_bytes(proof).verifies(&public, &message), "the response plus the order");
    }
}
