//! Host ports of pods that an earlier version attached, which was chained with `portmap`.
//!
//! `portmap` made rules of its own for each of them, which lie before ours, and which nobody else knows how to remove. It
//! is no longer in the network configuration, so the runtime does not call it when such a pod is deleted. The plugin does
//! instead, as the CNI specification lets plugins call others (section 4).

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::attachment::Attachment;
use crate::child::{self, ChildError};
use crate::conf::Conf;
use crate::error::CniError;
use crate::store::Stored;

/// Its binary, and its type in the configuration.
const PORTMAP: &str = "portmap";

/// How long one call may take. `portmap` waits for the lock of iptables, but a DEL must end before the runtime gives up.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long all calls of one GC or ADD may take together: runtimes give up after a few minutes, and many pods may have gone.
/// None begins that could take longer.
const BUDGET: Duration = Duration::from_secs(30);

/// Calls `portmap` to remove the rules of an attachment, if the plugin is there. No lock may be held: it may hang.
///
/// It finds the rules by the network's name and the container's id and does not look at which ports they are for, but
/// does nothing unless some are named. GC and a range that ran out know none, so one stands for all.
pub(crate) fn unmap(conf: &Conf, attachment: &Attachment, dirs: &[PathBuf]) -> Result<(), CniError> {
    let Some(binary) = dirs.iter().map(|dir| dir.join(PORTMAP)).find(|path| path.is_file()) else {
        return Ok(());
    };
    let any = json!([{"hostPort": 1, "containerPort": 1, "protocol": "tcp"}]);
    let input = json!({
        "cniVersion": conf.version.as_str(), "name": conf.name, "type": PORTMAP,
        "runtimeConfig": {"portMappings": any},
    });
    let failed = |message: &str| CniError::Portmap { message: message.trim().chars().take(256).collect() };
    let path = std::env::join_paths(dirs).unwrap_or_default();
    let mut command = Command::new(&binary);
    command
        .env("CNI_COMMAND", "DEL")
        .env("CNI_CONTAINERID", &attachment.container)
        .env("CNI_IFNAME", &attachment.interface)
        .env("CNI_PATH", path);
    match child::run(&mut command, &input.to_string(), TIMEOUT) {
        Ok((status, _)) if status.success() => Ok(()),
        Ok((_, output)) => Err(failed(&String::from_utf8_lossy(&output))),
        Err(ChildError::Start(error) | ChildError::Read(error)) => Err(failed(&error.to_string())),
        Err(ChildError::Timeout) => {
            Err(failed(&format!("no answer within {} s; it was killed", TIMEOUT.as_secs())))
        }
    }
}

/// Does so for each of these that an earlier version attached; ends at the first call that fails, which may have taken long,
/// and when no further call fits into [`BUDGET`]. Returns those that are done, and the error.
pub(crate) fn unmap_all(
    conf: &Conf,
    leaving: Vec<Stored>,
    dirs: &[PathBuf],
) -> (Vec<Stored>, Option<CniError>) {
    let last_start = Instant::now() + BUDGET.saturating_sub(TIMEOUT);
    unmap_until(last_start, leaving, |attachment| unmap(conf, attachment, dirs))
}

fn unmap_until(
    last_start: Instant,
    leaving: Vec<Stored>,
    mut unmap: impl FnMut(&Attachment) -> Result<(), CniError>,
) -> (Vec<Stored>, Option<CniError>) {
    let (mut done, mut failed) = (Vec::new(), None);
    for stored in leaving {
        match stored.former() {
            None => done.push(stored),
            Some(_) if failed.is_some() => {}
            Some(_) if Instant::now() > last_start => {
                let message = format!("not all of them fit into {} s; call again", BUDGET.as_secs());
                failed = Some(CniError::Portmap { message });
            }
            Some(attachment) => match unmap(&attachment) {
                Ok(()) => done.push(stored),
                Err(error) => failed = Some(error),
            },
        }
    }
    (done, failed)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::Store;

    #[test]
    fn what_does_not_fit_into_the_budget_is_left_for_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for number in 1..=4_u8 {
            let container = format!("c{number}");
            let attachment = Attachment { container, interface: "eth0".to_owned() };
            store
                .reserve(&attachment, Path::new("/run/netns/x"), &[[10, 244, 1, number].into()], &[])
                .unwrap();
        }
        // As an earlier version wrote them: they name no ports.
        for file in std::fs::read_dir(dir.path().join("attachments")).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replace(r#","ports":[]"#, "")).unwrap();
        }
        let mut rest = store.all().unwrap();
        assert!(rest.iter().all(|stored| stored.former().is_some()));
        for left in [2, 0] {
            let last_start = Instant::now() + Duration::from_secs(1);
            let mut calls = 0;
            let second_is_slow = |_: &Attachment| {
                calls += 1;
                while calls == 2 && Instant::now() <= last_start {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            };
            let (done, failed) = unmap_until(last_start, rest.clone(), second_is_slow);
            assert_eq!((done.len(), failed.is_some()), (2, left > 0), "{failed:?}");
            rest.retain(|stored| !done.contains(stored));
            assert_eq!(rest.len(), left);
        }
    }
}
