//! Carrying out a request on a running interface.

use keyring::PublicKey;
use nix::errno::Errno;
use zeroize::Zeroizing;

use super::parse::{DeviceSettings, PeerBlock, PrivateKeyChange, Request, parse};
use super::{Refusal, render};
use crate::engine::Config;
use crate::error::{ChangeError, TunnelError};
use crate::interface::Device;
use wireguard::{PeerOp, PeerSettings};

/// Carries out `request` and returns the whole reply, its empty line included.
pub(super) fn answer(device: &Device, request: &[u8]) -> Zeroizing<String> {
    let result = parse(request).and_then(|request| match request {
        Request::Get => Ok(show(device)),
        Request::Set(settings) => {
            set(device, settings).map(|()| Zeroizing::new(String::new())).map_err(|error| refusal(&error))
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

fn show(device: &Device) -> Zeroizing<String> {
    let state = device.state();
    let engine = device.engine();
    // Taken out of the lock of the configuration, which the lookup of preshared keys takes again.
    let private = engine.with_private_key(|key| key.map(keyring::PrivateKey::duplicate));
    render::configuration(&state, private.as_ref(), |peer| engine.preshared_key(peer))
}

fn set(device: &Device, settings: DeviceSettings) -> Result<(), TunnelError> {
    match settings.private_key {
        Some(PrivateKeyChange::Set(key)) => device.set_private_key(Some(key)),
        Some(PrivateKeyChange::Clear) => device.set_private_key(None),
        None => {}
    }
    if let Some(fwmark) = settings.fwmark {
        device.set_fwmark(fwmark)?;
    }
    if let Some(port) = settings.listen_port {
        device.set_listen_port(port)?;
    }
    let (replace, blocks) = (settings.replace_peers, settings.peers);
    device.configure(|config| changes(config, replace, blocks))
}

/// The changes that make `blocks` true for `config`. Silently left out, as the protocol has it: a peer with our
/// own key, and an update of a peer that isn't there.
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
        changes.push(PeerOp::Add { peer, settings: block.into_settings(config, &changes) });
    }
    changes
}

/// Whether `peer` is there once `changes` are made.
fn present(config: &Config, changes: &[PeerOp], peer: &PublicKey) -> bool {
    match changes.iter().rfind(|change| change.peer() == peer) {
        Some(change) => !matches!(change, PeerOp::Remove { .. }),
        None => config.keys().any(|key| key == *peer),
    }
}

impl PeerBlock {
    fn into_settings(mut self, config: &Config, earlier: &[PeerOp]) -> PeerSettings {
        if self.replace_allowed_ips {
            let given =
                earlier.iter().filter(|change| *change.peer() == self.key).flat_map(|change| match change {
                    PeerOp::Add { settings, .. } | PeerOp::Update { settings, .. } => &settings.allow[..],
                    PeerOp::Remove { .. } => &[],
                });
            self.disallow = config.allowed_ips(&self.key).chain(given.copied()).collect();
        }
        PeerSettings {
            endpoint: self.endpoint,
            keepalive: self.keepalive,
            allow: self.allow,
            disallow: self.disallow,
            roaming: None,
            preshared_key: self.preshared_key,
        }
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
