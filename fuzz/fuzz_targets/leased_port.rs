//! Datagrams at the leased ports of a relay.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay::fuzzing::leased_port(bytes));
