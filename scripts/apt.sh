# shellcheck shell=bash
# Sourced by the set-up scripts: progress lines, the installation of missing Debian packages, the download of single ones.

say() { printf '==> %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# Runs a command as root: plainly if we are, else through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "a package is missing and there is no sudo; run as root: $*"
    fi
}

# Another apt on the machine holds its locks for seconds: wait for it, but not for ever.
patient_apt() {
    local try
    for try in 1 2 3 4 5 6; do
        as_root env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
            apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >/dev/null && return
        say "apt-get $1 failed (try $try), trying again in 10 s"
        sleep 10
    done
    return 1
}

# Downloads the newest version of a package into the current folder.
download() {
    local sandbox=(-o APT::Sandbox::User="$(id -un)")
    apt-get -qq "${sandbox[@]}" download "$1" >&2 ||
        { patient_apt update && apt-get -qq "${sandbox[@]}" download "$1" >&2; } ||
        fail "could not download $1"
}

# $1: lines of "command-or-file package". Installs the packages of those that are missing.
install_missing() {
    local tool package missing=()
    while read -r tool package; do
        [ -n "$tool" ] || continue
        case $tool in
            /*) [ -e "$tool" ] && continue ;;
            *) command -v "$tool" >/dev/null && continue ;;
        esac
        missing+=("$package")
    done <<<"$1"
    if [ ${#missing[@]} -eq 0 ]; then
        say "all packages are there"
        return
    fi
    command -v apt-get >/dev/null || fail "not a Debian; install by hand what these packages bring: ${missing[*]}"
    say "installing ${missing[*]}"
    patient_apt update || fail "apt-get update failed"
    patient_apt install -y --no-install-recommends "${missing[@]}" || fail "could not install ${missing[*]}"
}
