//! Nodes, pods, an underlay, captures and API servers in network namespaces.
