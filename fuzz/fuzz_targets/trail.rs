//! What an auditor may be given to read.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keyring::fuzzing::trail(bytes));
