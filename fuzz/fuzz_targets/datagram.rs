//! Hostile datagrams, tunnelled packets and TUN packets at an engine with a live session.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tunnel::fuzzing::datagram(bytes));
