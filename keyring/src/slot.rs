//! The two slots of a node: the key of one is replaced while the other carries traffic.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of a node's two positions for a key, each with a WireGuard device and a UDP port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// The first slot; a new node prefers it.
    A,
    /// The second slot.
    B,
}

impl Slot {
    /// Both slots, in order.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The slot that carries traffic while this one's key is replaced.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The letter used in interface names, annotations and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Slot {
    type Err = SlotError;

    fn from_str(text: &str) -> Result<Self, SlotError> {
        match text {
            "a" => Ok(Self::A),
            "b" => Ok(Self::B),
            other => Err(SlotError(other.chars().take(16).collect())),
        }
    }
}

/// The text is neither `a` nor `b`.
#[derive(Debug, thiserror::Error)]
#[error("slot {0:?}: expected a or b")]
pub struct SlotError(String);

/// One value for each slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PerSlot<T> {
    /// The value of slot a.
    pub a: T,
    /// The value of slot b.
    pub b: T,
}

impl<T> PerSlot<T> {
    /// Makes the value of each slot.
    pub fn from_fn(mut make: impl FnMut(Slot) -> T) -> Self {
        Self { a: make(Slot::A), b: make(Slot::B) }
    }

    /// Makes the value of each slot; stops at the first error.
    pub fn try_from_fn<E>(mut make: impl FnMut(Slot) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self { a: make(Slot::A)?, b: make(Slot::B)? })
    }

    /// The value of `slot`.
    pub const fn get(&self, slot: Slot) -> &T {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }

    /// The value of `slot`, mutable.
    pub const fn get_mut(&mut self, slot: Slot) -> &mut T {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }

    /// Both values with their slots, a first.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        Slot::ALL.into_iter().map(|slot| (slot, self.get(slot)))
    }

    /// Applies `f` to both values.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerSlot<U> {
        PerSlot { a: f(self.a), b: f(self.b) }
    }
}
