//! Texts that are keys of many maps: a clone shares the text, and two texts are compared without a look at them where their
//! beginnings differ. Most of the time that a lookup among thousands of peers takes went into fetching their texts.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// A text. Its order is that of the text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SharedText {
    /// The first bytes, the first one the most significant; zero after the end.
    head: u64,
    text: Arc<str>,
}

impl SharedText {
    /// Takes a text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        let mut head = [0; 8];
        for (to, byte) in head.iter_mut().zip(text.bytes()) {
            *to = byte;
        }
        Self { head: u64::from_be_bytes(head), text }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Default for SharedText {
    fn default() -> Self {
        Self::new("")
    }
}

impl Ord for SharedText {
    fn cmp(&self, other: &Self) -> Ordering {
        // Texts with the same beginning may still differ, by zeros at the end for instance.
        self.head.cmp(&other.head).then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for SharedText {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn shared_texts_are_ordered_as_texts(one in "[\0a-b\u{e9}]{0,10}", other in "[\0a-b\u{e9}]{0,10}") {
            let (first, second) = (SharedText::new(one.as_str()), SharedText::new(other.as_str()));
            prop_assert_eq!(first.cmp(&second), one.cmp(&other));
            prop_assert_eq!(first == second, one == other);
            prop_assert_eq!(first.as_str(), &one);
        }
    }
}
