//! Every exchange with the kernel, in network namespaces that each test makes for itself. Needs root, `ip` and `nft`.

// Lints that spare tests know them by this attribute.
#[cfg(test)]
mod addresses;
#[cfg(test)]
mod facts;
#[cfg(test)]
mod guard_closed;
#[cfg(test)]
mod guard_leaks;
#[cfg(test)]
mod guard_passes;
#[cfg(test)]
mod guard_spoofing;
#[cfg(test)]
mod links;
#[cfg(test)]
mod monitor;
#[cfg(test)]
mod namespace;
#[cfg(test)]
mod namespaces;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod underlay;
#[cfg(test)]
mod veth;
