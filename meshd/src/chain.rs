//! An error with all its causes on one line, for log fields and status.

use std::error::Error;
use std::fmt;

/// Shows an error and, after colons, each of its causes. Our errors never repeat their cause themselves.
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
