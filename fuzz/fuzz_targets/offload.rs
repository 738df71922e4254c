//! Headers and packets of the TUN device at the code that splits and puts together.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tunnel::fuzzing::offload(bytes));
