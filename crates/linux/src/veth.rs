//! The pair of interfaces between a node and one of its pods.
