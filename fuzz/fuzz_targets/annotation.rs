//! What any node's daemon may write into its annotations.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plan::fuzzing::annotation(bytes));
