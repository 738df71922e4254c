//! Encrypts the key file under a key that the operator supplies.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// First line of a sealed file; authenticated with the rest.
const HEADER: &[u8] = b"meshd sealed keys 1\n";
/// Bytes of the nonce: 24 are enough for random nonces never to repeat (draft-irtf-cfrg-xchacha, section 1).
const NONCE: usize = 24;
/// Bytes of the key.
const KEY: usize = 32;
/// Longest file that is read: a key in base64 with white space around it.
const MAX_LEN: usize = 256;

/// The key that the key file is encrypted with, by XChaCha20-Poly1305. Wiped on drop.
pub struct SealingKey(Zeroizing<[u8; KEY]>);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

impl SealingKey {
    /// Takes 32 bytes as the key.
    pub fn new(bytes: [u8; KEY]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads the key from a file: 32 bytes, or their base64 in one line. Fails if anyone but its owner may
    /// read the file, and if it contains anything else.
    pub fn read(path: &Path) -> Result<Self, SealError> {
        let failed = |source| SealError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SealError::Mode { path: path.to_owned(), found: mode });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_LEN + 1));
        file.take(MAX_LEN as u64 + 1).read_to_end(&mut text).map_err(failed)?;
        Self::parse(&text).ok_or_else(|| SealError::NotAKey { path: path.to_owned() })
    }

    fn parse(text: &[u8]) -> Option<Self> {
        if let Ok(raw) = <[u8; KEY]>::try_from(text) {
            return Some(Self::new(raw));
        }
        let mut raw = Zeroizing::new([0; KEY + 1]);
        let len = BASE64.decode_slice(text.trim_ascii(), &mut *raw).ok()?;
        let key = raw.get(..len)?.try_into().ok()?;
        Some(Self::new(key))
    }

    /// Whether a file looks like a sealed one.
    pub(super) fn has_sealed(text: &[u8]) -> bool {
        text.starts_with(HEADER)
    }

    /// Header, nonce, encrypted text, tag.
    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(SealError::Random)?;
        // Allocated in full: a growing buffer would leave plain text behind in memory.
        let mut sealed = Vec::with_capacity(HEADER.len() + NONCE + plain.len() + 16);
        sealed.extend_from_slice(HEADER);
        sealed.extend_from_slice(&nonce);
        let start = sealed.len();
        sealed.extend_from_slice(plain);
        let cipher = XChaCha20Poly1305::new((&*self.0).into());
        let (head, body) = sealed.split_at_mut(start);
        let tag = cipher
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), head, body)
            .map_err(|_| SealError::WrongKey)?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Nonce, encrypted text, tag, for a part of a file; `place` says which, and is authenticated too.
    pub(super) fn seal_part(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(SealError::Random)?;
        let mut sealed = Vec::with_capacity(NONCE + plain.len() + 16);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let cipher = XChaCha20Poly1305::new((&*self.0).into());
        let tag = cipher
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), place, &mut sealed[NONCE..])
            .map_err(|_| SealError::WrongKey)?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// The decrypted text of a part; none if it was sealed with another key, for another place, or changed.
    pub(super) fn open_part(&self, place: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE>()?;
        let (body, tag) = body.split_last_chunk::<16>()?;
        let mut plain = Zeroizing::new(body.to_vec());
        let cipher = XChaCha20Poly1305::new((&*self.0).into());
        cipher.decrypt_in_place_detached(XNonce::from_slice(nonce), place, &mut plain, tag.into()).ok()?;
        Some(plain)
    }

    /// The decrypted text.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let body = sealed.strip_prefix(HEADER).ok_or(SealError::NotSealed)?;
        let (nonce, body) = body.split_first_chunk::<NONCE>().ok_or(SealError::WrongKey)?;
        let (body, tag) = body.split_last_chunk::<16>().ok_or(SealError::WrongKey)?;
        let mut plain = Zeroizing::new(body.to_vec());
        let cipher = XChaCha20Poly1305::new((&*self.0).into());
        let head = &sealed[..HEADER.len() + NONCE];
        cipher
            .decrypt_in_place_detached(XNonce::from_slice(nonce), head, &mut plain, tag.into())
            .map_err(|_| SealError::WrongKey)?;
        Ok(plain)
    }
}

/// Why the key file could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file with the sealing key could not be read.
    #[error("read the sealing key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others may read the sealing key.
    #[error("sealing key {} has mode {found:04o}: expected no rights for group and others, such as 0400", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        found: u32,
    },
    /// Not a sealing key.
    #[error("sealing key {}: expected 32 bytes, or their base64 in one line (`openssl rand -base64 32`)", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// The file is not sealed.
    #[error(
        "it is not sealed: check who wrote it; remove it to give this node a new identity, or set key-storage to what it was written with"
    )]
    NotSealed,
    /// The tag does not match.
    #[error(
        "it can't be opened: sealed with another key, truncated or changed; no new keys are generated while it exists"
    )]
    WrongKey,
    /// There is no randomness.
    #[error("take a nonce from the operating system's random source")]
    Random(#[source] getrandom::Error),
}
