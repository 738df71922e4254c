//! What a peer may send about preshared keys.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keyring::fuzzing::pq_message(bytes));
