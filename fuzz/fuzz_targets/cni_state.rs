//! What the CNI plugin finds in its store, and in the daemon's file for it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni::fuzzing::cni_state(bytes));
