//! Completions and manual pages of the plugin. kubectl completes a plugin's arguments by running `kubectl_complete-NAME` with them,
//! which prints one candidate a line, and a number at the end (Cobra's `ShellCompDirective`).

use std::io;
use std::path::PathBuf;

use ::status::mesh::Verdict;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::output;
use crate::{CommandError, arguments};

/// The program that kubectl runs to complete arguments of `kubectl meshd`.
const FOR_KUBECTL: &str = "#!/bin/sh\nexec kubectl-meshd __complete -- \"$@\"\n";
/// Tells kubectl not to add names of files (`ShellCompDirectiveNoFileComp`).
const NO_FILES: &str = ":4\n";
/// The shells, and kubectl.
const SHELLS: [(&str, Option<Shell>); 6] = [
    ("bash", Some(Shell::Bash)),
    ("elvish", Some(Shell::Elvish)),
    ("fish", Some(Shell::Fish)),
    ("powershell", Some(Shell::PowerShell)),
    ("zsh", Some(Shell::Zsh)),
    ("kubectl", None),
];

/// The subcommand that prints completions.
pub(crate) fn completions(command: Command) -> Command {
    command
        .about("Print completions for a shell, or for kubectl")
        .long_about(
            "Print completions for a shell, which complete `kubectl-meshd`, or the program kubectl_complete-meshd, by which kubectl 1.26 \
             and newer completes `kubectl meshd`: it has to be executable, in a directory of PATH.",
        )
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .required(true)
                .value_parser(PossibleValuesParser::new(SHELLS.map(|(name, _)| name)))
                .help("Which"),
        )
        .after_help(
            "Example:\n  kubectl meshd completions bash > /etc/bash_completion.d/kubectl-meshd\n  \
             kubectl meshd completions kubectl > ~/bin/kubectl_complete-meshd",
        )
}

/// The subcommand that writes manual pages.
pub(crate) fn man(command: Command) -> Command {
    command
        .about("Write manual pages into a directory, one for each command")
        .arg(
            Arg::new("directory")
                .value_name("DIR")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The directory; it has to exist"),
        )
        .after_help("Example:\n  kubectl meshd man /usr/local/share/man/man1")
}

/// The subcommand that kubectl runs by way of `kubectl_complete-meshd`.
pub(crate) fn complete(command: Command) -> Command {
    command
        .about("Print what may stand for the last of these words")
        .hide(true)
        .arg(
            Arg::new("words")
                .value_name("WORD")
                .num_args(0..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .help("The command line so far"),
        )
        .after_help("Example:\n  kubectl meshd __complete -- peers --d")
}

/// Prints completions.
pub(crate) fn print_completions(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let wanted = matches.get_one::<String>("shell");
    let shell = SHELLS.iter().find(|(name, _)| wanted.is_some_and(|wanted| wanted == name));
    let text = match shell.and_then(|(_, shell)| *shell) {
        Some(shell) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut arguments::command(), "kubectl-meshd", &mut text);
            String::from_utf8_lossy(&text).into_owned()
        }
        None => FOR_KUBECTL.to_owned(),
    };
    output::print(&text)?;
    Ok(Verdict::Good)
}

/// Writes manual pages.
pub(crate) fn write_man(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let directory = matches.get_one::<PathBuf>("directory").cloned().unwrap_or_default();
    let failed = |source: io::Error| CommandError::File { path: directory.clone(), source };
    clap_mangen::generate_to(arguments::command(), &directory).map_err(failed)?;
    Ok(Verdict::Good)
}

/// Prints candidates for kubectl.
pub(crate) fn print_candidates(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let words: Vec<String> =
        matches.get_many("words").map(|words| words.cloned().collect()).unwrap_or_default();
    let mut text: String = candidates(&words).into_iter().map(|candidate| candidate + "\n").collect();
    text.push_str(NO_FILES);
    output::print(&text)?;
    Ok(Verdict::Good)
}

/// What may stand for the last word, each with its description after a tab.
fn candidates(words: &[String]) -> Vec<String> {
    let Some((last, before)) = words.split_last() else { return Vec::new() };
    let mut command = arguments::command();
    command.build();
    let mut at = &command;
    for word in before {
        at = at.find_subcommand(word).unwrap_or(at);
    }
    let described = |name: String, about: Option<&clap::builder::StyledStr>| match about {
        Some(about) => format!("{name}\t{about}"),
        None => name,
    };
    let values = |arg: &Arg| arg.get_possible_values().into_iter().map(|value| value.get_name().to_owned());
    // The value of a flag, after it or beside it.
    let named = |name: &str| {
        at.get_arguments().find(|arg| {
            let long = arg.get_long().is_some_and(|long| name.strip_prefix("--") == Some(long));
            let short = arg.get_short().is_some_and(|short| name == format!("-{short}"));
            arg.get_action().takes_values() && (long || short)
        })
    };
    if let Some(arg) = before.last().and_then(|flag| named(flag)) {
        return values(arg).filter(|value| value.starts_with(last.as_str())).collect();
    }
    if let Some((flag, begun)) = last.split_once('=') {
        let found = named(flag).into_iter().flat_map(values).filter(|value| value.starts_with(begun));
        return found.map(|value| format!("{flag}={value}")).collect();
    }
    let subcommands = at.get_subcommands().filter(|command| !command.is_hide_set());
    let subcommands =
        subcommands.map(|command| described(command.get_name().to_owned(), command.get_about()));
    let flags = at
        .get_arguments()
        .filter_map(|arg| Some(described(format!("--{}", arg.get_long()?), arg.get_help())))
        .filter(|_| last.starts_with('-'));
    let positional = at.get_positionals().flat_map(values);
    subcommands.chain(flags).chain(positional).filter(|found| found.starts_with(last.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let name = |found: String| found.split('\t').next().unwrap_or_default().to_owned();
        candidates(&words).into_iter().map(name).collect()
    }

    #[test]
    fn kubectl_is_told_what_may_stand_for_the_last_word() {
        assert_eq!(names(&["pe"]), ["peers"]);
        assert!(!names(&[""]).contains(&"__complete".to_owned()), "it is nobody's business");
        assert_eq!(names(&["audit", "ver"]), ["verify"]);
        assert_eq!(names(&["peers", "--do"]), ["--down"]);
        assert_eq!(names(&["peers", "-o", "w"]), ["wide"]);
        assert_eq!(names(&["graph", "--format=s"]), ["--format=svg"]);
        assert_eq!(names(&["completions", "z"]), ["zsh"]);
        assert_eq!(names(&[]), [""; 0]);
        assert!(candidates(&["pe".to_owned()])[0].contains("\tShow each pair"));
    }

    #[test]
    fn each_command_has_a_manual_page_and_each_shell_completes_it() {
        let directory = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(arguments::command(), directory.path()).unwrap();
        let command = arguments::command();
        for name in command.get_subcommands().filter(|command| !command.is_hide_set()).map(Command::get_name)
        {
            let page = directory.path().join(format!("kubectl-meshd-{name}.1"));
            let page = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{page:?}: {error}"));
            assert!(page.contains("Example:"), "{name}");
            for (_, shell) in SHELLS {
                let Some(shell) = shell else { continue };
                let mut text = Vec::new();
                clap_complete::generate(shell, &mut arguments::command(), "kubectl-meshd", &mut text);
                assert!(String::from_utf8(text).unwrap().contains(name), "{shell}: {name}");
            }
        }
    }
}
