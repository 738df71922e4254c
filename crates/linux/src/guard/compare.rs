//! Whether a rule that the kernel shows is the rule that was sent to it.
//!
//! The comment alone is no proof: `nft list ruleset` prints it, so it survives when someone edits such a listing
//! and loads it again.

use std::collections::BTreeMap;

use netlink_packet_core::{NLA_TYPE_MASK, Nla};
use netlink_packet_netfilter::nftables::{ExpressionAttribute, Expressions, ListAttribute};

use super::expression::Expression;

/// An expression's attributes by their number, as bytes.
type Attributes = BTreeMap<u16, Vec<u8>>;

/// Whether the kernel's list of expressions does what the wanted one does.
///
/// The kernel adds attributes that were not sent, with the value for "not set": zero, in all
/// expressions that the guard uses (`nft_bitwise_dump`, `nft_lookup_dump` and others in `net/netfilter`). An added
/// attribute with any other value, such as a lookup's flag "inverted", makes it another rule.
pub(super) fn same(wanted: &[Expression], found: &[Expression]) -> bool {
    wanted.len() == found.len() && wanted.iter().zip(found).all(|(wanted, found)| agree(wanted, found))
}

fn agree(wanted: &Expression, found: &Expression) -> bool {
    let (Some((wanted_kind, wanted)), Some((found_kind, found))) = (parts(wanted), parts(found)) else {
        return false;
    };
    if wanted_kind != found_kind {
        return false;
    }
    // What a counter has counted is no part of the rule.
    wanted_kind == "counter"
        || wanted.iter().all(|(kind, value)| found.get(kind) == Some(value))
            && found
                .iter()
                .all(|(kind, value)| wanted.contains_key(kind) || value.iter().all(|byte| *byte == 0))
}

/// The name of the expression and its attributes. `None` if it has a shape that ours never have.
fn parts(expression: &Expression) -> Option<(&str, Attributes)> {
    let ListAttribute::Element(parts) = expression else { return None };
    let [ExpressionAttribute::Name(name), ExpressionAttribute::Data(data)] = parts.as_slice() else {
        return None;
    };
    let attributes = match data {
        Expressions::Bitwise(attributes) => bytes(attributes),
        Expressions::Cmp(attributes) => bytes(attributes),
        Expressions::Immediate(attributes) => bytes(attributes),
        Expressions::Lookup(attributes) => bytes(attributes),
        Expressions::Meta(attributes) => bytes(attributes),
        Expressions::Payload(attributes) => bytes(attributes),
        Expressions::Other { attributes, .. } => bytes(attributes),
        _ => return None,
    };
    Some((name, attributes))
}

fn bytes<T: Nla>(attributes: &[T]) -> Attributes {
    let read = |attribute: &T| {
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        (attribute.kind() & NLA_TYPE_MASK, value)
    };
    attributes.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::nftables::{Lookup, Register};

    use super::*;
    use crate::guard::expression::count;

    fn lookup(set: &str, more: &[Lookup]) -> Vec<Expression> {
        let own = [Lookup::Set(set.to_owned()), Lookup::SourceRegister(Register::Reg1)];
        vec![Expressions::Lookup(own.into_iter().chain(more.iter().cloned()).collect()).into()]
    }

    #[test]
    fn attributes_that_the_kernel_adds_count_unless_they_are_zero() {
        let wanted = lookup("nodes4", &[]);
        assert!(same(&wanted, &lookup("nodes4", &[Lookup::Flags(0)])));
        assert!(!same(&wanted, &lookup("nodes4", &[Lookup::Flags(1)])), "the inverted lookup");
        assert!(!same(&wanted, &lookup("nodes6", &[])));
    }

    #[test]
    fn every_expression_counts() {
        let wanted = lookup("nodes4", &[]);
        assert!(!same(&wanted, &[]));
        assert!(!same(&[], &wanted));
        assert!(!same(&wanted, &[count()]));
        assert!(!same(&wanted, &[wanted.clone(), vec![count()]].concat()));
    }
}
