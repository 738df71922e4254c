//! Carrying out a request on a running interface.

use keyring::PublicKey;
use nix::errno::Errno;
use zeroize::Zeroizing;

use super::parse::{DeviceSettings, PeerBlock, PrivateKeyChange, Request, parse};
use super::{Refusal, render};
use crate::engine::Config;
use crate::error::{ChangeError, TunnelError};
use crate::interface::Core;
use wireguard::{PeerChange, PeerOp};

/// Carries out `request` and returns the whole reply, its empty line included.
pub(super) fn answer(core: &Core, request: &[u8]) -> Zeroizing<String> {
    let result = parse(request).and_then(|request| match request {
        Request::Get => Ok(show(core)),
        Request::Set(settings) => {
            set(core, settings).map(|()| Zeroizing::new(String::new())).map_err(|error| refusal(&error))
        }
    });
    match result {
        Ok(mut reply) => {
            reply.push_str("errno=0\n\n");
            reply
        }
        Err(Refusal(errno)) => Zeroizing::new(format!("errno={}\n\n", -(errno as i32))),
    }
}

fn show(core: &Core) -> Zeroizing<String> {
    let state = core.state();
    let engine = core.engine();
    // Taken out of the lock of the configuration, which the lookup of preshared keys takes again.
    let private = engine.with_private_key(|key| key.map(keyring::PrivateKey::duplicate));
    render::configuration(&state, private.as_ref(), |peer| engine.preshared_key(peer))
}

fn set(core: &Core, settings: DeviceSettings) -> Result<(), TunnelError> {
    match settings.private_key {
        Some(PrivateKeyChange::Set(key)) => core.set_private_key(Some(key)),
        Some(PrivateKeyChange::Clear) => core.set_private_key(None),
        None => {}
    }
    if let Some(fwmark) = settings.fwmark {
        core.set_fwmark(fwmark)?;
    }
    if let Some(port) = settings.listen_port {
        core.set_listen_port(port)?;
    }
    let (replace, blocks) = (settings.replace_peers, settings.peers);
    core.configure(|config| changes(config, replace, blocks))
}

/// The operations that apply `blocks` to `config`. Silently left out, as the protocol requires: a peer with our own key,
/// and an update of a peer that does not exist.
fn changes(config: &Config, replace: bool, blocks: Vec<PeerBlock>) -> Vec<PeerOp> {
    let mut changes: Vec<PeerOp> = Vec::new();
    if replace {
        changes.extend(config.keys().map(|peer| PeerOp::Remove { peer }));
    }
    for block in blocks {
        let peer = block.key;
        if block.remove {
            changes.push(PeerOp::Remove { peer });
            continue;
        }
        if config.own_key() == Some(peer) || (block.update_only && !present(config, &changes, &peer)) {
            continue;
        }
        changes.push(block.into_op(config, &changes));
    }
    changes
}

/// Whether `peer` exists once `changes` are applied.
fn present(config: &Config, changes: &[PeerOp], peer: &PublicKey) -> bool {
    match changes.iter().rfind(|change| change.peer() == peer) {
        Some(change) => !matches!(change, PeerOp::Remove { .. }),
        None => config.keys().any(|key| key == *peer),
    }
}

impl PeerBlock {
    fn into_op(mut self, config: &Config, earlier: &[PeerOp]) -> PeerOp {
        if self.replace_allowed_ips {
            self.disallow = config.allowed_ips(&self.key).collect();
            for op in earlier.iter().filter(|op| *op.peer() == self.key) {
                if let PeerOp::Add { change, .. } | PeerOp::Update { change, .. } = op {
                    self.disallow.extend(&change.allow);
                }
            }
        }
        let change = PeerChange {
            endpoint: self.endpoint,
            // Zero turns it off.
            keepalive: self.keepalive.map(|seconds| Some(seconds).filter(|seconds| *seconds > 0)),
            roaming: None,
            allow: self.allow,
            disallow: self.disallow,
        };
        PeerOp::Add { peer: self.key, change, preshared_key: self.preshared_key }
    }
}

fn refusal(error: &TunnelError) -> Refusal {
    Refusal(match error {
        TunnelError::Udp { source, .. } => *source,
        TunnelError::Change(ChangeError::Random { .. }) => Errno::EIO,
        TunnelError::Stopped { .. } => Errno::ENODEV,
        _ => Errno::EINVAL,
    })
}
