//! The nft ruleset of a router: pure text.
//!
//! The kernel's `masquerade` chooses the port of each flow by itself, so it does not map one internal port to the same
//! external port for all destinations. Routers with endpoint-independent mapping remember the first choice in a map.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::Nat;

/// A node behind 1:1 NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) number: u8,
    pub(super) internal: Ipv4Addr,
    pub(super) external: Ipv4Addr,
}

/// How long an unused mapping lasts: what RFC 4787 REQ-5 recommends.
const LIFETIME: &str = "5m";

/// The ruleset, which replaces the former one together with what that had remembered.
pub(super) fn render(nat: &Nat, external: Ipv4Addr, mappings: &[Mapping]) -> String {
    let Parts { sets, incoming, outgoing, record, forward } = parts(nat, external, mappings);
    format!(
        "table ip router\ndelete table ip router\ntable ip router {{\n{sets}\
         chain incoming {{ type nat hook prerouting priority dstnat; policy accept;\n{incoming}}}\n\
         chain outgoing {{ type nat hook postrouting priority srcnat; policy accept;\n{outgoing}}}\n\
         chain record {{ type filter hook postrouting priority srcnat + 10; policy accept;\n{record}}}\n\
         chain forward {{ type filter hook forward priority filter; policy drop;\n\
         iifname != \"wan\" accept\nct state established,related accept\n{forward}}}\n\
         chain local {{ type filter hook input priority filter; policy accept;\n\
         meta l4proto {{ tcp, udp }} ct state new drop\n}}\n}}\n"
    )
}

#[derive(Default)]
struct Parts {
    sets: String,
    incoming: String,
    outgoing: String,
    record: String,
    forward: String,
}

fn parts(nat: &Nat, external: Ipv4Addr, mappings: &[Mapping]) -> Parts {
    match nat {
        Nat::OneToOne(ports) => one_to_one(external, mappings, ports),
        Nat::FullCone => {
            let mut parts = independent(external);
            parts.let_in(external);
            parts.forward = "ct status dnat accept\n".into();
            parts
        }
        Nat::Restricted => {
            let mut parts = independent(external);
            parts.let_in(external);
            let _infallible = writeln!(
                parts.sets,
                "set contacted {{ type ipv4_addr . ipv4_addr . inet_service; flags dynamic,timeout; timeout {LIFETIME}; }}"
            );
            parts.record += "oifname \"wan\" meta l4proto udp ct direction original update @contacted \
                             { ip daddr . ct original ip saddr . ct original proto-src }\n";
            parts.forward = "ct status dnat ip saddr . ip daddr . udp dport @contacted accept\n".into();
            parts
        }
        Nat::Home => independent(external),
        Nat::Symmetric => Parts {
            outgoing: format!("oifname \"wan\" snat to {external} fully-random\n"),
            ..Parts::default()
        },
        Nat::Masquerade => Parts { outgoing: "oifname \"wan\" masquerade\n".into(), ..Parts::default() },
    }
}

fn one_to_one(external: Ipv4Addr, mappings: &[Mapping], open: &[RangeInclusive<u16>]) -> Parts {
    let mut parts = Parts::default();
    for Mapping { internal, external, .. } in mappings {
        // From inside as well: a cloud's nodes reach each other by their public addresses.
        let _infallible = writeln!(parts.incoming, "ip daddr {external} dnat to {internal}");
        let _infallible = writeln!(parts.outgoing, "oifname \"wan\" ip saddr {internal} snat to {external}");
        let _infallible = writeln!(parts.outgoing, "ct status dnat ip saddr {internal} snat to {external}");
    }
    let _infallible = writeln!(parts.outgoing, "oifname \"wan\" snat to {external}");
    parts.forward = match open {
        [] => "ct status dnat accept\n".into(),
        open => {
            let open: Vec<_> =
                open.iter().map(|ports| format!("{}-{}", ports.start(), ports.end())).collect();
            format!("ct status dnat udp dport {{ {} }} accept\n", open.join(", "))
        }
    };
    parts
}

/// Endpoint-independent mapping of UDP: an internal port keeps its number if no other host has it, else it gets a random one;
/// either is remembered for all destinations.
fn independent(external: Ipv4Addr) -> Parts {
    Parts {
        sets: format!(
            "map mapped {{ type ipv4_addr . inet_service : inet_service; flags dynamic,timeout; timeout {LIFETIME}; }}\n\
             set taken {{ type inet_service; flags dynamic,timeout; timeout {LIFETIME}; }}\n"
        ),
        outgoing: format!(
            "oifname \"wan\" meta l4proto udp snat ip to {external} : ip saddr . udp sport map @mapped\n\
             oifname \"wan\" udp sport != @taken snat to {external}\n\
             oifname \"wan\" meta l4proto udp snat to {external}:20000-60000 fully-random\n\
             oifname \"wan\" snat to {external}\n"
        ),
        record: "oifname \"wan\" meta l4proto udp ct direction original update @mapped \
                 { ct original ip saddr . ct original proto-src : udp sport }\n\
                 oifname \"wan\" meta l4proto udp ct direction original update @taken { udp sport }\n"
            .into(),
        ..Parts::default()
    }
}

impl Parts {
    /// Sends what comes to a mapped port to its internal host. Whether it may pass is for the chain `forward` to say.
    fn let_in(&mut self, external: Ipv4Addr) {
        let _infallible = writeln!(
            self.sets,
            "map reverse {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout {LIFETIME}; }}"
        );
        self.record += "oifname \"wan\" meta l4proto udp ct direction original update @reverse \
                        { udp sport : ct original ip saddr . ct original proto-src }\n";
        self.incoming = format!(
            "iifname \"wan\" ip daddr {external} meta l4proto udp dnat ip to udp dport map @reverse\n"
        );
    }
}
