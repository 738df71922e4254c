//! Requests at the configuration socket's parser.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tunnel::fuzzing::uapi(bytes));
