//! An error with its chain of causes on one line, for log fields and status.

use std::error::Error;
use std::fmt;

/// Displays an error followed by each of its causes, separated by colons. Our errors never repeat their cause.
#[derive(Debug)]
pub(crate) struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
