//! Where the shared secrets come from: a trait, and its implementation with ML-KEM-768.

use std::fmt;

use zeroize::{Zeroize as _, ZeroizeOnDrop};

/// A secret that two nodes share after an exchange. Wiped on drop; it can't be printed.
#[derive(ZeroizeOnDrop)]
pub struct SharedSecret(Box<[u8; 32]>);

impl SharedSecret {
    /// Takes 32 bytes that nobody else can know, and wipes them where they were.
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        let mut secret = Self(Box::new([0; 32]));
        secret.0.copy_from_slice(bytes.as_slice());
        bytes.zeroize();
        secret
    }

    /// The raw secret, for the derivation of keys.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

/// The half of an exchange that its beginner keeps until the answer comes. Holds a secret; dropping it must wipe it.
pub trait Begun: fmt::Debug + Send {
    /// What to send to the peer, at most [`super::LONGEST_OFFER`] bytes.
    fn material(&self) -> &[u8];

    /// The shared secret, from the peer's answer. An answer that was changed on its way need not be found here: the
    /// secret is then another one, and its confirmation fails.
    fn finish(&self, answer: &[u8]) -> Result<SharedSecret, ProviderError>;
}

/// A way to agree on shared secrets by one message each way over a channel that is authenticated already.
pub trait PskProvider: fmt::Debug + Send {
    /// Begins an exchange. Fails if there is no randomness.
    fn begin(&self) -> Result<Box<dyn Begun>, ProviderError>;

    /// Answers one: what to send back, at most [`super::LONGEST_ANSWER`] bytes, and the shared secret. Fails for material
    /// that is none.
    fn answer(&self, material: &[u8]) -> Result<(Vec<u8>, SharedSecret), ProviderError>;
}

/// Why there is no shared secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// No key pair could be made.
    #[error("make a key pair for the exchange")]
    Make,
    /// What the peer sent is no key of the kind that was expected.
    #[error("the offer of {found} bytes is not an encapsulation key")]
    Offer {
        /// Its length in bytes.
        found: usize,
    },
    /// What the peer sent is no ciphertext of the kind that was expected.
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

    use super::{Begun, ProviderError, PskProvider, SharedSecret};

    /// ML-KEM-768 (FIPS 203): an encapsulation key of 1,184 bytes one way, a ciphertext of 1,088 bytes back. Each
    /// exchange has a key pair of its own, which is gone when the exchange is over.
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
        fn begin(&self) -> Result<Box<dyn Begun>, ProviderError> {
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

    impl Begun for KeyPair {
        fn material(&self) -> &[u8] {
            &self.public
        }

        fn finish(&self, answer: &[u8]) -> Result<SharedSecret, ProviderError> {
            let refused = ProviderError::Answer { found: answer.len() };
            let secret = self.secret.decapsulate(Ciphertext::from(answer)).map_err(|_| refused)?;
            take(secret.as_ref()).ok_or(refused)
        }
    }

    /// Copies a secret out of the library's own, which wipes itself.
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
        fn both_ends_come_to_one_secret_and_each_exchange_to_another() {
            let exchange = || {
                let begun = MlKem768.begin().unwrap();
                let (answer, theirs) = MlKem768.answer(begun.material()).unwrap();
                let ours = begun.finish(&answer).unwrap();
                assert_eq!(ours.expose(), theirs.expose());
                assert_eq!((begun.material().len(), answer.len()), (1184, 1088));
                *ours.expose()
            };
            assert_ne!(exchange(), exchange());
        }

        #[test]
        fn another_implementation_opens_our_answer() {
            let (secret, public) = Other::generate_deterministic(&seed(1), &seed(2));
            let (answer, ours) = MlKem768.answer(&public.as_bytes()).unwrap();
            let ciphertext = ml_kem_reference::Ciphertext::<Other>::try_from(answer.as_slice()).unwrap();
            assert_eq!(secret.decapsulate(&ciphertext).unwrap().as_slice(), ours.expose());
        }

        #[test]
        fn another_implementation_answers_our_offer() {
            let begun = MlKem768.begin().unwrap();
            let encoded = Encoded::<OtherPublic>::try_from(begun.material()).unwrap();
            let (answer, theirs) =
                OtherPublic::from_bytes(&encoded).encapsulate_deterministic(&seed(3)).unwrap();
            assert_eq!(begun.finish(&answer).unwrap().expose(), theirs.as_slice());
        }

        #[test]
        fn the_same_seeds_give_the_same_secret_in_both_implementations() {
            let (secret, public) = Other::generate_deterministic(&seed(4), &seed(5));
            let (answer, theirs) = public.encapsulate_deterministic(&seed(6)).unwrap();
            let secret = DecapsulationKey::new(&ML_KEM_768, &secret.as_bytes()).unwrap();
            let pair = KeyPair { secret, public: public.as_bytes().to_vec() };
            assert_eq!(pair.finish(&answer).unwrap().expose(), theirs.as_slice());
            // FIPS 203 section 7.3: a ciphertext that was changed gives another secret, not an error.
            let mut changed = answer.to_vec();
            changed[500] ^= 1;
            assert_ne!(pair.finish(&changed).unwrap().expose(), theirs.as_slice());
        }

        #[test]
        fn what_is_no_key_and_no_ciphertext_is_refused() {
            for len in [0, 1, 1183, 1185] {
                let refused = MlKem768.answer(&vec![1; len]).unwrap_err();
                assert_eq!(refused, ProviderError::Offer { found: len });
            }
            // FIPS 203 section 7.2: coefficients above the modulus.
            assert!(MlKem768.answer(&[0xff; 1184]).is_err());
            let begun = MlKem768.begin().unwrap();
            for len in [0, 1087, 1089] {
                let refused = begun.finish(&vec![1; len]).unwrap_err();
                assert_eq!(refused, ProviderError::Answer { found: len });
            }
        }

        #[test]
        fn no_secret_is_printed() {
            let begun = MlKem768.begin().unwrap();
            let (_, secret) = MlKem768.answer(begun.material()).unwrap();
            assert_eq!(format!("{begun:?} {secret:?}"), "KeyPair(..) SharedSecret(..)");
        }
    }
}
