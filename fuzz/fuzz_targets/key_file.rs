//! What the daemon finds in the place of the key file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keyring::fuzzing::key_file(bytes));
