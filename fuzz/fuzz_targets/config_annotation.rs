//! What an operator, or whoever else may patch Nodes, writes into `config.meshd.dev/` annotations.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plan::fuzzing::config_annotation(bytes));
