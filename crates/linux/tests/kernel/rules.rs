//! Policy rules, of both families.

use std::collections::BTreeSet;

use plan::network::Rule;

use crate::namespace::{Namespace, ip};

fn rules() -> [Rule; 2] {
    [("10.244.1.0/24", "0.0.0.0/0"), ("fd00:10:244:1::/64", "::/0")].map(|(from, to)| Rule {
        priority: 1000,
        from: ip(from),
        to: ip(to),
        table: 5184,
    })
}

/// Rules for a destination, from anywhere and from some source.
fn to_pods() -> [Rule; 3] {
    [("0.0.0.0/0", "10.244.0.0/16"), ("::/0", "fd00:10:244::/48"), ("192.0.2.0/24", "10.245.0.0/16")]
        .map(|(from, to)| Rule { priority: 1001, from: ip(from), to: ip(to), table: 254 })
}

#[test]
fn a_rule_is_added_twice_and_removed_twice_alike() {
    let namespace = Namespace::new();
    namespace.host(async |host| {
        for rule in rules().into_iter().chain(to_pods()) {
            for _ in 0..2 {
                host.add_rule(&rule).await.unwrap();
                assert_eq!(host.rules().await.unwrap(), BTreeSet::from([rule.clone()]));
            }
            for _ in 0..2 {
                host.remove_rule(&rule).await.unwrap();
                assert_eq!(host.rules().await.unwrap(), BTreeSet::new());
            }
        }
    });
}

#[test]
fn the_kernel_has_the_rule_as_it_is_meant() {
    let namespace = Namespace::new();
    namespace.host(async |host| {
        for rule in rules().iter().chain(&to_pods()) {
            host.add_rule(rule).await.unwrap();
        }
    });
    let shown = namespace.ip("-4 rule show");
    for wanted in ["from all to 10.244.0.0/16", "from 192.0.2.0/24 to 10.245.0.0/16"] {
        let wanted = format!("1001:\t{wanted} lookup main proto 84");
        assert!(shown.contains(&wanted), "{wanted} in {shown}");
    }
    for (family, rule) in ["-4", "-6"].into_iter().zip(rules()) {
        let shown = namespace.ip(&format!("{family} rule show"));
        let wanted = format!("1000:\tfrom {} lookup 5184 proto 84", rule.from);
        assert!(shown.contains(&wanted), "{shown}");
    }
}

#[test]
fn rules_of_others_are_neither_seen_nor_removed() {
    let namespace = Namespace::new();
    namespace.ip("rule add from 10.244.1.0/24 lookup 5184 priority 1000 protocol boot");
    namespace.ip("-6 rule add from fd00:10:244:1::/64 lookup 5184 priority 1000 protocol boot");
    namespace.host(async |host| {
        assert_eq!(host.rules().await.unwrap(), BTreeSet::new());
        for rule in rules() {
            host.remove_rule(&rule).await.unwrap();
        }
    });
    for family in ["-4", "-6"] {
        assert!(namespace.ip(&format!("{family} rule show")).contains("lookup 5184"), "{family}");
    }
}

#[test]
fn rules_that_differ_in_one_thing_stand_side_by_side() {
    let namespace = Namespace::new();
    let [rule, _] = rules();
    let others = [
        Rule { priority: 1001, ..rules()[0].clone() },
        Rule { from: ip("10.244.2.0/24"), ..rules()[0].clone() },
        Rule { table: 100, ..rules()[0].clone() },
    ];
    namespace.host(async |host| {
        host.add_rule(&rule).await.unwrap();
        for other in &others {
            host.add_rule(other).await.unwrap();
        }
        host.remove_rule(&rule).await.unwrap();
        assert_eq!(host.rules().await.unwrap(), others.into_iter().collect());
    });
}
