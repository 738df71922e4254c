//! Whether a rule that the kernel shows is the rule that was sent to it.
//!
//! The comment alone is no proof: `nft list ruleset` prints it, so it survives when someone edits such a listing
//! and loads it again.

use netlink_packet_core::{Emitable as _, NLA_HEADER_SIZE};
use netlink_packet_netfilter::nftables::{ExpressionAttribute, ListAttribute};

use super::expression::Expression;
use super::found_rules::{COUNTER, FoundExpression, attributes};

/// Whether the kernel's list of expressions does what the wanted one does.
///
/// The kernel adds attributes that were not sent, with the value for "not set": zero, in all
/// expressions that are used here (`nft_bitwise_dump`, `nft_lookup_dump` and others in `net/netfilter`). An added
/// attribute with any other value, such as a lookup's flag "inverted", makes it another rule.
pub(crate) fn same(wanted: &[Expression], found: &[FoundExpression]) -> bool {
    wanted.len() == found.len() && wanted.iter().zip(found).all(|(wanted, found)| agree(wanted, found))
}

fn agree(wanted: &Expression, found: &FoundExpression) -> bool {
    let Some(wanted) = as_found(wanted) else { return false };
    if wanted.name != found.name {
        return false;
    }
    // What a counter has counted is no part of the rule.
    wanted.name == COUNTER
        || wanted.attributes.iter().all(|(kind, value)| found.attributes.get(kind) == Some(value))
            && found.attributes.iter().all(|(kind, value)| {
                wanted.attributes.contains_key(kind) || value.iter().all(|byte| *byte == 0)
            })
}

/// An expression of ours as the kernel would show it. `None` if it has a shape that ours never have.
fn as_found(expression: &Expression) -> Option<FoundExpression> {
    let ListAttribute::Element(parts) = expression else { return None };
    let [ExpressionAttribute::Name(name), data @ ExpressionAttribute::Data(_)] = parts.as_slice() else {
        return None;
    };
    let mut bytes = vec![0; data.buffer_len()];
    data.emit(&mut bytes);
    let attributes = attributes(bytes.get(NLA_HEADER_SIZE..)?).ok()?;
    Some(FoundExpression { name: name.clone(), attributes })
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::nftables::{Expressions, Lookup, Register};

    use super::*;
    use crate::nft::expression::count;

    fn lookup(set: &str, more: &[Lookup]) -> Vec<Expression> {
        let own = [Lookup::Set(set.to_owned()), Lookup::SourceRegister(Register::Reg1)];
        vec![Expressions::Lookup(own.into_iter().chain(more.iter().cloned()).collect()).into()]
    }

    /// The same expressions as the kernel shows them.
    fn shown(expressions: &[Expression]) -> Vec<FoundExpression> {
        expressions.iter().map(|expression| as_found(expression).unwrap()).collect()
    }

    #[test]
    fn attributes_that_the_kernel_adds_count_unless_they_are_zero() {
        let wanted = lookup("nodes4", &[]);
        assert!(same(&wanted, &shown(&lookup("nodes4", &[Lookup::Flags(0)]))));
        assert!(!same(&wanted, &shown(&lookup("nodes4", &[Lookup::Flags(1)]))), "the inverted lookup");
        assert!(!same(&wanted, &shown(&lookup("nodes6", &[]))));
    }

    #[test]
    fn every_expression_counts() {
        let wanted = lookup("nodes4", &[]);
        assert!(!same(&wanted, &[]));
        assert!(!same(&[], &shown(&wanted)));
        assert!(!same(&wanted, &shown(&[count()])));
        assert!(!same(&wanted, &shown(&[wanted.clone(), vec![count()]].concat())));
    }
}
