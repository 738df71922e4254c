//! Reads what the node is like beside the mesh: its own network, other programs' routes, rules and filters. Nothing here
//! changes anything.

mod own_network;
