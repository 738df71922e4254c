//! Writes to standard output; nothing else does.

use std::io::Write as _;

use super::CommandError;

/// Prints text. A closed pipe (`meshd status | head`) is not an error.
pub(super) fn print(text: &str) -> Result<(), CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CommandError::Output(error)),
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(CommandError::Render)?;
    print(&(text + "\n"))
}
