//! Whether a cluster's network is what Kubernetes promises: scenarios as data, run with kubectl, with a report.
//!
//! [`scenario`] reads the rows, [`cases`] makes commands and expectations of them, with the [`services`] that the suite
//! creates, if nobody else has its [`ports`]; [`kubectl`] runs those in pods and [`outside`] beside the cluster;
//! [`capture`] asks what the nodes' uplinks carried; [`report`] says what came of it, as JSON, as [`junit`] and as a
//! [`page`], and keeps in [`pcap`] files what was in the clear. Nothing here knows meshd: any cluster will do.

pub mod capture;
pub mod cases;
pub mod junit;
pub mod kubectl;
pub mod outside;
pub mod page;
pub mod pcap;
pub mod ports;
pub mod report;
pub mod scenario;
pub mod services;
pub mod traffic;
pub mod versions;
