//! What arrives on the control channel, from peers and from everybody else.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd::fuzzing::channel(bytes));
