//! A fake ML-KEM that is fast enough for ten thousand exchanges a second.

use keyring::pq::{PendingExchange, ProviderError, PskProvider, SharedSecret};
use sha2::{Digest as _, Sha256};

/// Fake ML-KEM: the secret is a digest of both messages and of a seed that only the initiator's offer
/// contains.
#[derive(Debug, Default)]
pub(super) struct Stand(std::cell::Cell<u64>);

#[derive(Debug)]
struct Seed(Vec<u8>);

impl Stand {
    /// How often it was used.
    pub(super) fn count(&self) -> u64 {
        self.0.get()
    }

    fn next(&self) -> Vec<u8> {
        self.0.set(self.0.get() + 1);
        self.0.get().to_be_bytes().to_vec()
    }
}

fn secret(offer: &[u8], answer: &[u8]) -> SharedSecret {
    SharedSecret::take(&mut Sha256::new().chain_update(offer).chain_update(answer).finalize().into())
}

impl PskProvider for Stand {
    fn begin(&self) -> Result<Box<dyn PendingExchange>, ProviderError> {
        Ok(Box::new(Seed(self.next())))
    }

    fn answer(&self, material: &[u8]) -> Result<(Vec<u8>, SharedSecret), ProviderError> {
        let answer = self.next();
        let secret = secret(material, &answer);
        Ok((answer, secret))
    }
}

impl PendingExchange for Seed {
    fn material(&self) -> &[u8] {
        &self.0
    }

    fn finish(&self, answer: &[u8]) -> Result<SharedSecret, ProviderError> {
        Ok(secret(&self.0, answer))
    }
}
