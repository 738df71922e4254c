//! The annotations by which nodes find each other: strict to read, canonical to write.
//!
//! Unknown fields of a known version are ignored, so that a later release can add some. An unknown version is refused,
//! and so is a duplicate key, because two readers could take different ones.

mod endpoints;

use std::fmt;
use std::net::IpAddr;

use keyring::rotation::MAX_GENERATION;
use keyring::{KeyError, PerSlot, Proof, ProofError, PublicKey, Slot};
use serde::{Deserialize, Serialize};

use crate::node::NodeUid;

pub use endpoints::{Endpoints, MAX_ENDPOINTS, MAX_EXTERNAL, MAX_OBSERVED, Mapping};

/// Names of the annotations.
pub mod names {
    /// Keys, ports and generation of a node; written by its daemon.
    pub const STATE: &str = "meshd.dev/state";
    /// Addresses that a node is reached at; written by its daemon.
    pub const ENDPOINTS: &str = "meshd.dev/endpoints";
    /// Endpoint that an operator prescribes.
    pub const CONFIG_ENDPOINT: &str = "config.meshd.dev/endpoint";
    /// Keepalive interval that an operator prescribes.
    pub const CONFIG_KEEPALIVE: &str = "config.meshd.dev/keepalive";
    /// Where an operator says that the node is.
    pub const CONFIG_LOCATION: &str = "config.meshd.dev/location";
    /// An operator's request to replace older keys.
    pub const CONFIG_RENEWAL: &str = "config.meshd.dev/renew-keys-before";
}

/// Longest annotation that is parsed, in bytes.
pub const MAX_LEN: usize = 1024;
/// The version that this code writes and reads.
const VERSION: u64 = 1;

/// The annotation `meshd.dev/state`. It has no times: order is the generation alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// UID of the Node that it was written for, so that a copy on another Node is found.
    pub uid: NodeUid,
    /// Grows with every change of a key.
    pub generation: u64,
    /// Key and port of each slot.
    pub slots: PerSlot<SlotState>,
    /// Slot that peers should send to.
    pub prefer: Slot,
    /// Slot that peers must not send to, because its key is about to be replaced.
    pub drain: Option<Slot>,
    /// Where the node is in the life of its keys.
    pub phase: Phase,
    /// By each slot's private key, the proof that the node has it; none from daemons of version 0.1.
    pub proofs: Option<PerSlot<Proof>>,
}

/// One slot in a node's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Public key.
    pub key: PublicKey,
    /// Generation in which the key was made.
    pub generation: u64,
    /// UDP port.
    pub port: u16,
}

/// Where a node is in the life of its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Both slots have keys that stay.
    #[default]
    Steady,
    /// A slot is being left, and still has its key.
    Draining,
    /// The drained slot has another key, over which peers have not answered yet. Of two nodes that drain different
    /// slots the one in this phase goes first.
    Verifying,
    /// The node started with new keys in both slots.
    Cold,
}

impl State {
    /// Writes the canonical text.
    pub fn render(&self) -> String {
        let slot = |slot| {
            let state = self.slots.get(slot);
            WireSlot { key: state.key.to_base64(), g: state.generation, port: state.port }
        };
        let wire = WireState {
            v: VERSION,
            uid: self.uid.as_str().to_owned(),
            generation: self.generation,
            slots: WireSlots { a: slot(Slot::A), b: slot(Slot::B) },
            prefer: self.prefer,
            drain: self.drain,
            phase: self.phase,
            proofs: self
                .proofs
                .as_ref()
                .map(|proofs| WireProofs { a: proofs.a.to_base64(), b: proofs.b.to_base64() }),
        };
        // Numbers and strings always serialize.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// Reads an annotation.
    pub fn parse(text: &str) -> Result<Self, AnnotationError> {
        let wire: WireState = parse_versioned(text)?;
        let slots = PerSlot::try_from_fn(|slot| {
            let found = if slot == Slot::A { &wire.slots.a } else { &wire.slots.b };
            let key =
                PublicKey::from_base64(&found.key).map_err(|source| AnnotationError::Key { slot, source })?;
            if found.port == 0 {
                return Err(AnnotationError::Port { slot });
            }
            Ok(SlotState { key, generation: bounded(found.g)?, port: found.port })
        })?;
        if slots.a.key == slots.b.key {
            return Err(AnnotationError::SameKeyTwice);
        }
        if slots.a.port == slots.b.port {
            return Err(AnnotationError::SamePortTwice { port: slots.a.port });
        }
        let proofs = wire.proofs.map(|wire| {
            PerSlot::try_from_fn(|slot| {
                let found = if slot == Slot::A { &wire.a } else { &wire.b };
                Proof::from_base64(found).map_err(|source| AnnotationError::Proof { slot, source })
            })
        });
        Ok(Self {
            uid: NodeUid::new(wire.uid),
            generation: bounded(wire.generation)?,
            slots,
            prefer: wire.prefer,
            drain: wire.drain,
            phase: wire.phase,
            proofs: proofs.transpose()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct WireState {
    v: u64,
    uid: String,
    #[serde(rename = "gen")]
    generation: u64,
    slots: WireSlots,
    prefer: Slot,
    #[serde(default)]
    drain: Option<Slot>,
    phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proofs: Option<WireProofs>,
}

#[derive(Serialize, Deserialize)]
struct WireProofs {
    a: String,
    b: String,
}

#[derive(Serialize, Deserialize)]
struct WireSlots {
    a: WireSlot,
    b: WireSlot,
}

#[derive(Serialize, Deserialize)]
struct WireSlot {
    key: String,
    g: u64,
    port: u16,
}

/// The one field that is read before all others.
#[derive(Deserialize)]
struct Version {
    v: u64,
}

fn parse_versioned<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, AnnotationError> {
    if text.len() > MAX_LEN {
        return Err(AnnotationError::TooLarge { found: text.len() });
    }
    let Version { v } = serde_json::from_str(text).map_err(AnnotationError::json)?;
    if v != VERSION {
        return Err(AnnotationError::Version { found: v });
    }
    serde_json::from_str(text).map_err(AnnotationError::json)
}

const fn bounded(generation: u64) -> Result<u64, AnnotationError> {
    if generation <= MAX_GENERATION {
        Ok(generation)
    } else {
        Err(AnnotationError::Generation { found: generation })
    }
}

/// Why an annotation was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// Longer than any that a daemon writes.
    #[error("annotation of {found} bytes: expected at most {MAX_LEN}")]
    TooLarge {
        /// Its length in bytes.
        found: usize,
    },
    /// Not JSON, or not the fields that belong there.
    #[error("annotation is not the JSON that was expected: {kind} at line {line}, column {column}")]
    Json {
        /// What kind of mistake.
        kind: JsonMistake,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Written by another version.
    #[error("annotation version {found}: expected {VERSION}")]
    Version {
        /// The version.
        found: u64,
    },
    /// A slot's key is no key.
    #[error("key of slot {slot}: {source}")]
    Key {
        /// The slot.
        slot: Slot,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A slot's proof is no proof.
    #[error("proof of slot {slot}: {source}")]
    Proof {
        /// The slot.
        slot: Slot,
        /// What is wrong with it.
        source: ProofError,
    },
    /// A slot's port is zero.
    #[error("port of slot {slot} is 0: expected 1 to 65535")]
    Port {
        /// The slot.
        slot: Slot,
    },
    /// Both slots have the same key.
    #[error("both slots have the same key: expected two")]
    SameKeyTwice,
    /// Both slots have the same port.
    #[error("both slots have port {port}: expected two ports")]
    SamePortTwice {
        /// The port.
        port: u16,
    },
    /// The generation is beyond all bounds.
    #[error("generation {found}: expected at most {MAX_GENERATION}")]
    Generation {
        /// The generation.
        found: u64,
    },
    /// More endpoints of one kind than a node publishes.
    #[error("{found} endpoints of one kind: expected at most {most}")]
    TooManyEndpoints {
        /// How many.
        found: usize,
        /// How many there may be.
        most: usize,
    },
    /// An endpoint that no datagram can be sent to.
    #[error("endpoint {address}: expected a unicast address that is not link-local, and a port")]
    EndpointAddress {
        /// The address.
        address: IpAddr,
    },
}

/// How text failed to be the JSON that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonMistake {
    /// It is no JSON.
    Syntax,
    /// It is JSON with other fields or types, or with a field twice.
    Fields,
    /// It is cut off.
    CutOff,
}

impl fmt::Display for JsonMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "syntax error",
            Self::Fields => "missing, repeated or wrong field",
            Self::CutOff => "cut off",
        })
    }
}

impl AnnotationError {
    // The parser's own message is left out: it quotes what somebody else wrote, at any length.
    #[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
    fn json(error: serde_json::Error) -> Self {
        let kind = match error.classify() {
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => JsonMistake::Syntax,
            serde_json::error::Category::Data => JsonMistake::Fields,
            serde_json::error::Category::Eof => JsonMistake::CutOff,
        };
        Self::Json { kind, line: error.line(), column: error.column() }
    }

    /// A stable name for programs: logs, metrics and `-o json`.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "annotation-too-large",
            Self::Json { .. } => "annotation-json",
            Self::Version { .. } => "annotation-version",
            Self::Key { source, .. } => match source {
                KeyError::Length { .. } | KeyError::Base64 | KeyError::Fingerprint | KeyError::Random(_) => {
                    "key-base64"
                }
                KeyError::Zero => "key-zero",
                KeyError::LowOrder => "key-low-order",
            },
            Self::Proof { .. } => "proof-base64",
            Self::Port { .. } => "port-zero",
            Self::SameKeyTwice => "key-twice",
            Self::SamePortTwice { .. } => "port-twice",
            Self::Generation { .. } => "generation-bounds",
            Self::TooManyEndpoints { .. } => "endpoints-too-many",
            Self::EndpointAddress { .. } => "endpoint-address",
        }
    }
}
