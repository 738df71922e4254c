//! `kubectl meshd doctor`: what is wrong, by its causes.

use ::status::mesh::causes::Diagnosis;
use ::status::mesh::{Mesh, Verdict};
use clap::{ArgMatches, Command};

use crate::CommandError;
use crate::arguments::flag;
use crate::ask::{Peers, answers};
use crate::cluster::Cluster;
use crate::output::{self, Format};

/// Its name.
pub(crate) const NAME: &str = "doctor";

/// Its arguments.
pub(crate) fn command(command: Command) -> Command {
    command
        .about("Say what is wrong, each cause with what it explains, and what to do")
        .long_about(
            "Say what is wrong, each cause with what it explains, and what to do. It asks what status asks, and names checks of the host \
             by their own codes. docs/faults.md has common faults and how they are named. Exits as status does.",
        )
        .arg(flag("strict", "Let warnings count as problems"))
        .after_help("Example:\n  kubectl meshd doctor\n  kubectl meshd doctor -o json | jq -r .causes[].code")
}

/// Shows the causes.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let nodes = cluster.nodes().await?;
    let mesh = Mesh::new(&answers(&cluster, nodes, Peers::Unwell).await);
    let diagnosis = Diagnosis::new(&mesh);
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let table = || diagnosis.render(output::paint(matches, no_color));
    output::print(&Format::of(matches).render(&diagnosis, table)?)?;
    Ok(mesh.verdict(matches.get_flag("strict")))
}
