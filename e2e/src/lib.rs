//! Whether a cluster's network is what Kubernetes promises: scenarios as data, run with kubectl, with a report.
//!
//! [`scenario`] reads the rows, [`cases`] makes commands and expectations of them, with the [`services`] that the suite
//! creates, if nobody else has its [`ports`]; [`kubectl`] runs those in pods, [`change`] what happens meanwhile, by kubectl or
//! by a cluster that is [`acting`] itself, and [`outside`] beside the cluster; [`capture`] asks what the nodes' uplinks carried; [`report`] says what came of it, as
//! JSON, as [`junit`] and as a [`page`], and keeps in [`pcap`] files what was in the clear. Only rows with a change know
//! meshd: any cluster will do.

pub mod acting;
pub mod capture;
pub mod cases;
pub mod change;
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
