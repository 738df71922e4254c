//! The source of shared secrets: a trait, and its implementation with ML-KEM-768.

use std::fmt;

use zeroize::{Zeroize as _, ZeroizeOnDrop};

/// A secret that two nodes share after an exchange. Wiped on drop; it can't be printed.
#[derive(ZeroizeOnDrop)]
pub struct SharedSecret(Box<[u8; 32]>);

impl SharedSecret {
    /// Takes 32 secret bytes, and wipes the caller's copy.
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        let mut secret = Self(Box::new([0; 32]));
        secret.0.copy_from_slice(bytes.as_slice());
        bytes.zeroize();
        secret
    }

    /// The raw secret, for deriving keys.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

/// The initiator's state of an exchange until the answer arrives. Holds a secret; must wipe it on drop.
pub trait PendingExchange: fmt::Debug + Send {
    /// The offer to send to the peer, at most [`super::MAX_OFFER_LEN`] bytes.
    fn material(&self) -> &[u8];

    /// The shared secret, from the peer's answer. A modified answer need not be detected here: the secret is
    /// then a different one, and key confirmation fails.
    fn finish(&self, answer: &[u8]) -> Result<SharedSecret, ProviderError>;
}

/// A key exchange with one message in each direction over an authenticated channel.
pub trait PskProvider: fmt::Debug + Send {
    /// Starts an exchange. Fails if there is no randomness.
    fn begin(&self) -> Result<Box<dyn PendingExchange>, ProviderError>;

    /// Answers an offer: returns the answer, at most [`super::MAX_ANSWER_LEN`] bytes, and the shared secret.
    /// Fails if the offer is invalid.
    fn answer(&self, material: &[u8]) -> Result<(Vec<u8>, SharedSecret), ProviderError>;
}

/// Why there is no shared secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// No key pair could be generated.
    #[error("generate a key pair for the exchange")]
    Make,
    /// The peer's offer is not a valid key.
    #[error("the offer of {found} bytes is not an encapsulation key")]
    Offer {
        /// Its length in bytes.
        found: usize,
    },
    /// The peer's answer is not a valid ciphertext.
    #[error("the answer of {found} bytes is not a ciphertext")]
    Answer {
        /// Its length in bytes.
        found: usize,
    },
}

#[cfg(feature = "ml-kem")]
pub use ml_kem::MlKem768;

#[cfg(feature = "ml-kem")]
mod ml_kem {
    use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};

    use super::{PendingExchange, ProviderError, PskProvider, SharedSecret};

    /// ML-KEM-768 (FIPS 203): an encapsulation key of 1,184 bytes in one direction, a ciphertext of 1,088
    /// bytes in the other. Each exchange has a key pair of its own, which is wiped when it ends.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct MlKem768;

    struct KeyPair {
        secret: DecapsulationKey,
        public: Vec<u8>,
    }

    impl std::fmt::Debug for KeyPair {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("KeyPair(..)")
        }
    }

    impl PskProvider for MlKem768 {
        fn begin(&self) -> Result<Box<dyn PendingExchange>, ProviderError> {
            let secret = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| ProviderError::Make)?;
            let public = secret.encapsulation_key().map_err(|_| ProviderError::Make)?;
            let public = public.key_bytes().map_err(|_| ProviderError::Make)?.as_ref().to_vec();
            Ok(Box::new(KeyPair { secret, public }))
        }

        fn answer(&self, material: &[u8]) -> Result<(Vec<u8>, SharedSecret), ProviderError> {
            let refused = ProviderError::Offer { found: material.len() };
            let public = EncapsulationKey::new(&ML_KEM_768, material).map_err(|_| refused)?;
            let (ciphertext, secret) = public.encapsulate().map_err(|_| refused)?;
            Ok((ciphertext.as_ref().to_vec(), take(secret.as_ref()).ok_or(refused)?))
        }
    }

    impl PendingExchange for KeyPair {
        fn material(&self) -> &[u8] {
            &self.public
        }

        fn finish(&self, answer: &[u8]) -> Result<SharedSecret, ProviderError> {
            let refused = ProviderError::Answer { found: answer.len() };
            let secret = self.secret.decapsulate(Ciphertext::from(answer)).map_err(|_| refused)?;
            take(secret.as_ref()).ok_or(refused)
        }
    }

    /// Copies a secret out of the library's buffer, which wipes itself.
    fn take(bytes: &[u8]) -> Option<SharedSecret> {
        let mut copy = zeroize::Zeroizing::new(*bytes.first_chunk()?);
        (bytes.len() == copy.len()).then(|| SharedSecret::take(&mut copy))
    }

    #[cfg(test)]
    mod tests {
        use aws_lc_rs::kem::DecapsulationKey;
        use ml_kem_reference::kem::Decapsulate as _;
        use ml_kem_reference::{
            B32, EncapsulateDeterministic as _, Encoded, EncodedSizeUser as _, KemCore as _,
        };

        use super::*;

        type Other = ml_kem_reference::MlKem768;
        type OtherPublic = <Other as ml_kem_reference::KemCore>::EncapsulationKey;

        fn seed(byte: u8) -> B32 {
            B32::from([byte; 32])
        }

        #[test]
        fn both_ends_derive_the_same_secret_and_each_exchange_a_new_one() {
            let exchange = || {
                let pending = MlKem768.begin().unwrap();
                let (answer, theirs) = MlKem768.answer(pending.material()).unwrap();
                let ours = pending.finish(&answer).unwrap();
                assert_eq!(ours.expose(), theirs.expose());
                assert_eq!((pending.material().len(), answer.len()), (1184, 1088));
                *ours.expose()
            };
            assert_ne!(exchange(), exchange());
        }

        #[test]
        fn another_implementation_decapsulates_our_answer() {
            let (secret, public) = Other::generate_deterministic(&seed(1), &seed(2));
            let (answer, ours) = MlKem768.answer(&public.as_bytes()).unwrap();
            let ciphertext = ml_kem_reference::Ciphertext::<Other>::try_from(answer.as_slice()).unwrap();
            assert_eq!(secret.decapsulate(&ciphertext).unwrap().as_slice(), ours.expose());
        }

        #[test]
        fn another_implementation_answers_our_offer() {
            let pending = MlKem768.begin().unwrap();
            let encoded = Encoded::<OtherPublic>::try_from(pending.material()).unwrap();
            let (answer, theirs) =
                OtherPublic::from_bytes(&encoded).encapsulate_deterministic(&seed(3)).unwrap();
            assert_eq!(pending.finish(&answer).unwrap().expose(), theirs.as_slice());
        }

        #[test]
        fn the_same_seeds_give_the_same_secret_in_both_implementations() {
            let (secret, public) = Other::generate_deterministic(&seed(4), &seed(5));
            let (answer, theirs) = public.encapsulate_deterministic(&seed(6)).unwrap();
            let secret = DecapsulationKey::new(&ML_KEM_768, &secret.as_bytes()).unwrap();
            let pair = KeyPair { secret, public: public.as_bytes().to_vec() };
            assert_eq!(pair.finish(&answer).unwrap().expose(), theirs.as_slice());
            // FIPS 203 section 7.3: a modified ciphertext gives another secret, not an error.
            let mut changed = answer.to_vec();
            changed[500] ^= 1;
            assert_ne!(pair.finish(&changed).unwrap().expose(), theirs.as_slice());
        }

        #[test]
        fn invalid_keys_and_ciphertexts_are_refused() {
            for len in [0, 1, 1183, 1185] {
                let refused = MlKem768.answer(&vec![1; len]).unwrap_err();
                assert_eq!(refused, ProviderError::Offer { found: len });
            }
            // FIPS 203 section 7.2: coefficients above the modulus.
            assert!(MlKem768.answer(&[0xff; 1184]).is_err());
            let pending = MlKem768.begin().unwrap();
            for len in [0, 1087, 1089] {
                let refused = pending.finish(&vec![1; len]).unwrap_err();
                assert_eq!(refused, ProviderError::Answer { found: len });
            }
        }

        #[test]
        fn no_secret_is_printed() {
            let pending = MlKem768.begin().unwrap();
            let (_, secret) = MlKem768.answer(pending.material()).unwrap();
            assert_eq!(format!("{pending:?} {secret:?}"), "KeyPair(..) SharedSecret(..)");
        }
    }
}
