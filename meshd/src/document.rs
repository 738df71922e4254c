//! The contents of a state file: one value as JSON, with a version and a checksum over its exact text.

use serde::de::DeserializeOwned;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use sha2::{Digest as _, Sha256};

/// What is in the file.
#[derive(serde::Deserialize)]
struct Document {
    v: u32,
    checksum: String,
    /// The value as text, so that the checksum covers exact bytes. Each file has a name of its own for it.
    #[serde(alias = "memory", alias = "leases", alias = "paths")]
    text: String,
}

/// The same to write, with the file's name for the value.
struct Written<'a> {
    version: u32,
    field: &'static str,
    text: &'a str,
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("v", &self.version)?;
        map.serialize_entry("checksum", &checksum(self.text))?;
        map.serialize_entry(self.field, self.text)?;
        map.end()
    }
}

/// A digest of a text.
pub(crate) fn checksum(text: impl AsRef<[u8]>) -> String {
    format!("{:x}", Sha256::digest(text))
}

/// Reads the value; none if the file is damaged or has another version.
pub(crate) fn read<T: DeserializeOwned>(contents: &[u8], version: u32) -> Option<T> {
    let document: Document = serde_json::from_slice(contents).ok()?;
    let is_whole = document.v == version && document.checksum == checksum(&document.text);
    serde_json::from_str(&document.text).ok().filter(|_| is_whole)
}

/// The contents for a value, which the file names `field`.
pub(crate) fn render(
    value: &impl Serialize,
    version: u32,
    field: &'static str,
) -> Result<Vec<u8>, serde_json::Error> {
    let text = serde_json::to_string(value)?;
    serde_json::to_vec(&Written { version, field, text: &text })
}
