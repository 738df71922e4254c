//! What a WireGuard device promises, on every backend: one suite over the engine, the kernel and the strict
//! stand-in that plans are tested with.
//!
//! The tests with the kernel's device are marked as ignored, because the kernel of a build machine may have none;
//! `make test-kernel` runs them in a virtual machine.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod fake;
mod sessions;
mod settings;
mod subject;

/// One test of a backend's: run as any other, or only where the kernel has WireGuard.
macro_rules! case {
    (anywhere, $name:ident, $test:path, $make:expr) => {
        #[test]
        fn $name() {
            $test($make);
        }
    };
    (kernel, $name:ident, $test:path, $make:expr) => {
        #[test]
        #[ignore = "needs WireGuard in the kernel: make test-kernel"]
        fn $name() {
            $test($make);
        }
    };
}

/// Each test of a file as a test of a backend's.
macro_rules! suite {
    ($module:ident, $file:ident, $place:tt, $make:expr, [$($name:ident),* $(,)?]) => {
        mod $module {
            #[allow(unused_imports, reason = "not every backend has kinds")]
            use crate::subject::Kind;
            $(case!($place, $name, super::$file::$name, $make);)*
        }
    };
}

macro_rules! settings {
    ($module:ident, $place:tt, $make:expr) => {
        suite!(
            $module,
            settings,
            $place,
            $make,
            [
                a_new_device_has_no_key_and_no_peers,
                a_key_reads_back_as_its_public_half,
                another_key_keeps_the_peers,
                a_port_reads_back_and_one_that_is_taken_is_refused,
                a_peer_reads_back_as_it_was_added,
                a_prefix_belongs_to_the_last_peer_it_was_given_to,
                an_update_changes_what_it_names_and_nothing_else,
                prefixes_are_taken_only_from_the_peer_that_is_named,
                two_peers_can_swap_their_prefixes,
                an_update_makes_no_peer,
                a_device_is_never_its_own_peer,
                a_removed_peer_is_gone_and_removing_it_again_is_no_error,
                thousands_of_prefixes_of_one_peer_read_back,
                hundreds_of_peers_read_back,
                a_preshared_key_is_set_and_removed,
            ]
        );
    };
}

macro_rules! sessions {
    ($module:ident, $place:tt, $make:expr) => {
        suite!(
            $module,
            sessions,
            $place,
            $make,
            [
                a_handshake_is_made_on_request_and_both_sides_see_it,
                a_handshake_leaves_the_interval_as_it_is,
                changes_lose_no_packet_of_a_stream,
                a_removed_peer_receives_nothing_more,
                sessions_need_the_same_preshared_key_on_both_sides,
                another_preshared_key_leaves_the_session_as_it_is,
                a_device_that_is_gone_says_so,
            ]
        );
    };
}

macro_rules! replays {
    ($module:ident, $place:tt, $make:expr) => {
        suite!(
            $module,
            sessions,
            $place,
            $make,
            [
                another_preshared_key_leaves_the_memory_of_handshakes_as_it_is,
                a_peer_that_is_added_again_is_forgotten_by_the_kernel_only,
            ]
        );
    };
}

settings!(fake_settings, anywhere, crate::fake::subject());
settings!(userspace_settings, anywhere, crate::subject::userspace());
settings!(kernel_settings, kernel, crate::subject::kernel());
sessions!(userspace_sessions, anywhere, crate::subject::pair(Kind::Userspace, Kind::Userspace));
sessions!(kernel_sessions, kernel, crate::subject::pair(Kind::Kernel, Kind::Kernel));
sessions!(mixed_sessions, kernel, crate::subject::pair(Kind::Kernel, Kind::Userspace));
// With one device: the other one is silent.
replays!(userspace_replays, anywhere, crate::subject::pair(Kind::Userspace, Kind::Userspace));
replays!(kernel_replays, kernel, crate::subject::pair(Kind::Kernel, Kind::Kernel));
suite!(
    kernel_added_again,
    sessions,
    kernel,
    crate::subject::pair(Kind::Kernel, Kind::Kernel),
    [a_peer_that_is_added_again_with_its_time_is_remembered]
);
