//! What a runtime puts on the CNI plugin's standard input.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni::fuzzing::conf(bytes));
