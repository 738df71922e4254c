//! Writes to standard output, and progress to standard error.

use std::io::{IsTerminal as _, Write as _};

use ::status::mesh::Paint;
use clap::ArgMatches;
use serde::Serialize;

use crate::CommandError;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

impl Format {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        match matches.get_one::<String>("output").map(String::as_str) {
            Some("json") => Self::Json,
            Some("yaml") => Self::Yaml,
            _ => Self::Table,
        }
    }

    /// A value in this format; `table` makes the table of it.
    pub(crate) fn render(
        self,
        value: &impl Serialize,
        table: impl FnOnce() -> String,
    ) -> Result<String, CommandError> {
        let failed = |format, cause: String| CommandError::Render { format, cause };
        match self {
            Self::Table => Ok(table()),
            Self::Json => serde_json::to_string_pretty(value)
                .map(|text| text + "\n")
                .map_err(|error| failed("JSON", error.to_string())),
            Self::Yaml => serde_saphyr::to_string(value).map_err(|error| failed("YAML", error.to_string())),
        }
    }
}

/// Whether a table may be wider than a terminal.
pub(crate) fn is_wide(matches: &ArgMatches) -> bool {
    matches.get_one::<String>("output").is_some_and(|form| form == "wide")
}

/// Whether tables have colours (<https://no-color.org>).
pub(crate) fn paint(matches: &ArgMatches, no_color: bool) -> Paint {
    let colours = match matches.get_one::<String>("color").map(String::as_str) {
        Some("always") => true,
        Some("never") => false,
        _ => !no_color && std::io::stdout().is_terminal(),
    };
    if colours { Paint::Colours } else { Paint::None }
}

/// Prints text. A closed pipe is not an error.
pub(crate) fn print(text: &str) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CommandError::Output(error)),
        _ => Ok(()),
    }
}

/// Says how far something has come, where somebody looks.
pub(crate) fn progress(text: &str) {
    // Standard error may be closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
