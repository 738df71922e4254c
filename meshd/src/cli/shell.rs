//! Completions and manual pages of the program.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::{CommandError, arguments, output};

/// `meshd completions`
pub(super) fn completions(command: Command) -> Command {
    command
        .about("Print completions for a shell")
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell))
                .help("Which"),
        )
        .after_help("Example:\n  meshd completions bash > /etc/bash_completion.d/meshd")
}

/// `meshd man`
pub(super) fn man(command: Command) -> Command {
    command
        .about("Write manual pages into a directory, one for each command")
        .arg(
            Arg::new("directory")
                .value_name("DIR")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The directory; it has to exist"),
        )
        .after_help("Example:\n  meshd man /usr/local/share/man/man1")
}

/// Prints completions.
pub(super) fn print_completions(matches: &ArgMatches) -> Result<(), CommandError> {
    let mut text = Vec::new();
    if let Some(shell) = matches.get_one::<Shell>("shell") {
        clap_complete::generate(*shell, &mut arguments::command(), "meshd", &mut text);
    }
    output::print(&String::from_utf8_lossy(&text))
}

/// Writes manual pages.
pub(super) fn write_man(matches: &ArgMatches) -> Result<(), CommandError> {
    let directory = arguments::path(matches, "directory");
    clap_mangen::generate_to(arguments::command(), &directory)
        .map_err(|source| CommandError::Man { directory, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_manual_page_with_an_example_and_is_completed() {
        let directory = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(arguments::command(), directory.path()).unwrap();
        let mut completions = Vec::new();
        clap_complete::generate(Shell::Bash, &mut arguments::command(), "meshd", &mut completions);
        let completions = String::from_utf8(completions).unwrap();
        for name in arguments::command().get_subcommands().map(Command::get_name) {
            let page = std::fs::read_to_string(directory.path().join(format!("meshd-{name}.1"))).unwrap();
            assert!(page.contains("Example:") || ["options", "audit"].contains(&name), "{name}");
            assert!(completions.contains(name), "{name}");
        }
    }
}
