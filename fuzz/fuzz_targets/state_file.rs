//! What the daemon finds on disk of the last known peers and of a relay's leases.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd::fuzzing::state_file(bytes));
