#!/usr/bin/env bash
# Fails if a crate of the workspace imports what it must not know. The rules are the table below; they hold for what a
# crate pulls in directly or through others, as `cargo tree` has it.
#
#   scripts/layering.sh               check this workspace
#   scripts/layering.sh --self-test   break rules in workspaces made for it; each must be found
set -euo pipefail

# crate | the crates of ours that it may import | what it must not pull in, as patterns
rules="
keyring |                             | tokio kube* *netlink* hyper* boringtun defguard*
plan    | keyring wireguard           | tokio kube* *netlink* hyper* boringtun defguard* aws-lc*
wireguard | keyring                   | tokio kube* *netlink* hyper* boringtun defguard* aws-lc*
tunnel  | keyring wireguard           | kube* rtnetlink netlink-packet-route hyper* defguard* aws-lc*
netlink |                             | tokio kube* rtnetlink netlink-packet-route netlink-packet-netfilter hyper* boringtun defguard* aws-lc*
linux   | keyring plan wireguard netlink | kube* boringtun hyper* defguard* aws-lc*
kernel-wireguard | keyring wireguard netlink | kube* rtnetlink boringtun hyper* aws-lc*
status  | keyring plan wireguard   | tokio kube* *netlink* hyper* boringtun defguard* aws-lc* nix
relay   | keyring wireguard tunnel  | tokio kube* *netlink* hyper* defguard* aws-lc*
cni     | keyring plan wireguard netlink linux | kube* boringtun hyper* defguard* aws-lc*
meshd   | keyring plan netlink linux wireguard kernel-wireguard cni tunnel relay status |
lab     | keyring plan netlink linux wireguard kernel-wireguard cni tunnel relay status meshd |
kubectl-meshd | keyring plan wireguard status | *netlink* boringtun defguard* aws-lc* nix
e2e     |                             | kube* *netlink* hyper* boringtun defguard* aws-lc*
e2e-pod |                             | kube* *netlink* hyper* boringtun defguard* aws-lc* serde*
"
# AWS-LC comes with keyring's feature ml-kem, for the daemon alone: it agrees on preshared keys, and the plugin, which is
# started for each pod, neither needs it nor waits for it. That TLS keeps to ring is deny.toml's to say.
# What nothing at all may pull in: a second TLS library. A second boringtun, defguard's, comes with defguard_wireguard_rs
# whatever its features are; it is for kernel-wireguard alone, which calls nothing of it (it panics when a peer is changed).
nowhere="openssl openssl-sys native-tls*"
# The lock file is part of what is checked; the self-test's workspaces have none until cargo makes one.
locked=(--locked)
ours=$(awk -F'|' 'NF > 1 { gsub(/ /, "", $1); print $1 }' <<<"$rules")

# Prints each violation of a rule in the workspace of directory $1; succeeds if there is none. $2: the crates whose own rules
# are checked, by default all.
check() {
    local directory=$1 only=${2-$ours} violations=0 crate allowed forbidden
    # Before cargo looks at the lock file: it mends one that it may.
    check_sources "$directory" || violations=1
    while IFS='|' read -r crate allowed forbidden; do
        crate=${crate// /}
        [ -n "$crate" ] && is_in "$crate" "$only" || continue
        check_crate "$directory" "$crate" "$allowed" "$forbidden" || violations=1
    done <<<"$rules"
    check_secrets "$directory" || violations=1
    check_complete "$directory" || violations=1
    return $violations
}

# One crate under its rule. What foreign crates its tests use is free; crates of ours are not, even there.
check_crate() {
    local directory=$1 crate=$2 allowed=$3 forbidden=$4 found=0 name pattern normal all
    # No answer is no proof: callers of this function switch errexit off, so failure is handled here.
    if ! normal=$(dependencies "$directory" "$crate" normal) || ! all=$(dependencies "$directory" "$crate" normal,dev,build); then
        violation "the dependencies of $crate could not be listed"
        return 1
    fi
    set -f
    for name in $normal; do
        for pattern in $forbidden $nowhere; do
            # shellcheck disable=SC2254  # a pattern is what it is
            case $name in
                $pattern) violation "$crate must not pull in $name"; found=1 ;;
            esac
        done
    done
    for name in $all; do
        if is_in "$name" "$ours" && ! is_in "$name" "$crate $allowed"; then
            violation "$crate must not import $name"
            found=1
        fi
    done
    set +f
    return $found
}

# The names of everything that a crate pulls in over the given kinds of edges, itself included.
dependencies() {
    cargo tree --quiet "${locked[@]}" --manifest-path "$1/Cargo.toml" --package "$2" --edges "$3" --prefix none --format '{p}' |
        awk 'NF { print $1 }' | sort -u
}

# Plans are printed and written to files: the crate that makes them must not even name a secret, or a type that holds one.
# Its tests may, to sign what they read: files of tests, and what follows `#[cfg(test)]` at the end of a file.
check_secrets() {
    local named
    named=$(find "$1/crates/plan/src" -name '*.rs' ! -name '*tests.rs' -exec awk '
        FNR == 1 { tests = 0 }
        /^#\[cfg\(test\)\]$/ { tests = 1 }
        !tests && /(^|[^A-Za-z0-9_])(PrivateKey|PresharedKey|PresharedKeyChange|PeerOp|NodeKeys)([^A-Za-z0-9_]|$)/ {
            print FILENAME ":" FNR ":" $0
        }' {} +)
    [ -z "$named" ] || { violation "plan must not name a secret: $named"; return 1; }
}

# A member of the workspace without a rule would be under none.
check_complete() {
    local found=0 name members
    if ! members=$(cargo metadata --quiet "${locked[@]}" --manifest-path "$1/Cargo.toml" --no-deps --format-version 1 |
        grep -o '"name":"[^"]*","version":"[^"]*","id"' | cut -d'"' -f4); then
        violation "the members of the workspace could not be listed"
        return 1
    fi
    for name in $members; do
        is_in "$name" "$ours" || { violation "$name is a member of the workspace and has no rule"; found=1; }
    done
    return $found
}

# Foreign crates come from crates.io alone, as the lock file has them.
check_sources() {
    local elsewhere
    [ -e "$1/Cargo.lock" ] || return 0
    elsewhere=$(grep '^source = ' "$1/Cargo.lock" | grep -v '"registry+https://github.com/rust-lang/crates.io-index"' || true)
    [ -z "$elsewhere" ] || { violation "a crate comes from elsewhere than crates.io: $elsewhere"; return 1; }
}

is_in() {
    case " ${2//$'\n'/ } " in
        *" $1 "*) ;;
        *) return 1 ;;
    esac
}

violation() { printf 'layering: %s\n' "$1" >&2; }

# --- the self-test ---------------------------------------------------------------------------------------------------

# A workspace with our crates and empty stand-ins for foreign ones, all without any code.
fixture() {
    local directory=$1 crate
    local foreign="tokio kube-client rtnetlink netlink-packet-route boringtun defguard_wireguard_rs hyper openssl-sys aws-lc-rs"
    { echo '[workspace]'; echo 'resolver = "3"'; echo 'members = ["crates/*"]'; echo 'exclude = ["foreign"]'; } \
        >"$directory/Cargo.toml"
    for crate in $ours; do
        package "$directory/crates/$crate" "$crate"
    done
    for crate in $foreign; do
        package "$directory/foreign/$crate" "$crate"
        echo '[workspace]' >>"$directory/foreign/$crate/Cargo.toml"
    done
    import "$directory" plan keyring
    import "$directory" linux plan
    import "$directory" cni linux
    import "$directory" lab meshd
}

package() {
    mkdir -p "$1/src"
    : >"$1/src/lib.rs"
    printf '[package]\nname = "%s"\nversion = "0.0.0"\nedition = "2024"\n' "$2" >"$1/Cargo.toml"
}

# Lets crate $2 of the fixture in directory $1 import crate $3, in the table $4.
import() {
    local path=../$3
    [ -d "$1/crates/$3" ] || path=../../foreign/$3
    printf '\n[%s.%s]\npath = "%s"\n' "${4:-dependencies}" "$3" "$path" >>"$1/crates/$2/Cargo.toml"
}

# Breaks one rule in a fresh fixture by running the rest of the arguments in it, and expects the message $1. Of the rules of
# crates only that of the crate in the message is checked: starting cargo for all of them took a minute.
expect() {
    local message=$1 directory output word only=
    for word in $message; do
        ! is_in "$word" "$ours" || { only=$word; break; }
    done
    shift
    directory=$(mktemp -d "$scratch/XXXXXX")
    fixture "$directory"
    "$@" "$directory"
    if output=$(check "$directory" "$only" 2>&1); then
        echo "self-test: not found: $message" >&2
        return 1
    fi
    grep -qF "layering: $message" <<<"$output" || { printf 'self-test: expected "%s", got:\n%s\n' "$message" "$output" >&2; return 1; }
}

breaks() { local crate=$1 name=$2 directory=$3; import "$directory" "$crate" "$name"; }
breaks_in_tests() { local crate=$1 name=$2 directory=$3; import "$directory" "$crate" "$name" dev-dependencies; }
breaks_at_a_distance() { import "$1" keyring tokio; }
names() { echo "use $1;" >"$2/crates/plan/src/lib.rs"; }
comes_from_elsewhere() { printf '[[package]]\nname = "x"\nversion = "1.0.0"\nsource = "git+https://git.example/x#0"\n' >"$1/Cargo.lock"; }
hides_a_crate() { rm -r "$1/crates/cni"; }
adds_a_member() { package "$1/crates/newcomer" newcomer; }

self_test() {
    locked=()
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    local sound=$scratch/sound
    mkdir "$sound"
    fixture "$sound"
    check "$sound" || { echo "self-test: violations found where there are none" >&2; return 1; }
    # In parallel: most of the time goes into starting cargo some hundred times.
    local checks=()
    expect "keyring must not pull in tokio" breaks keyring tokio & checks+=($!)
    expect "meshd must not pull in openssl-sys" breaks meshd openssl-sys & checks+=($!)
    expect "keyring must not import tunnel" breaks keyring tunnel & checks+=($!)
    expect "plan must not pull in kube-client" breaks plan kube-client & checks+=($!)
    expect "plan must not pull in rtnetlink" breaks plan rtnetlink & checks+=($!)
    expect "cni must not pull in hyper" breaks cni hyper & checks+=($!)
    expect "cni must not pull in aws-lc-rs" breaks cni aws-lc-rs & checks+=($!)
    expect "cni must not import tunnel" breaks cni tunnel & checks+=($!)
    expect "tunnel must not pull in netlink-packet-route" breaks tunnel netlink-packet-route & checks+=($!)
    expect "tunnel must not import plan" breaks tunnel plan & checks+=($!)
    expect "linux must not pull in boringtun" breaks linux boringtun & checks+=($!)
    expect "cni must not pull in defguard_wireguard_rs" breaks cni defguard_wireguard_rs & checks+=($!)
    expect "kernel-wireguard must not import plan" breaks kernel-wireguard plan & checks+=($!)
    expect "linux must not import tunnel" breaks_in_tests linux tunnel & checks+=($!)
    expect "tunnel must not import lab" breaks_in_tests tunnel lab & checks+=($!)
    expect "netlink must not pull in tokio" breaks netlink tokio & checks+=($!)
    expect "keyring must not pull in netlink" breaks keyring netlink & checks+=($!)
    expect "wireguard must not pull in tokio" breaks wireguard tokio & checks+=($!)
    expect "plan must not pull in tokio" breaks_at_a_distance & checks+=($!)
    expect "plan must not name a secret" names keyring::PrivateKey & checks+=($!)
    expect "plan must not name a secret" names wireguard::PresharedKeyChange & checks+=($!)
    expect "the dependencies of cni could not be listed" hides_a_crate & checks+=($!)
    expect "a crate comes from elsewhere" comes_from_elsewhere & checks+=($!)
    expect "newcomer is a member of the workspace and has no rule" adds_a_member & checks+=($!)
    local job missed=0
    for job in "${checks[@]}"; do
        wait "$job" || missed=$((missed + 1))
    done
    [ $missed = 0 ] || { echo "self-test: $missed of ${#checks[@]} violations were missed" >&2; return 1; }
    echo "layering: self-test passed, all ${#checks[@]} violations were found"
}

case ${1:-} in
    "") check "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" && echo "layering: no violations found" ;;
    --self-test) self_test ;;
    *) echo "usage: ${0##*/} [--self-test]" >&2; exit 64 ;;
esac
