# shellcheck shell=bash
# Sourced by the set-up scripts: progress messages, installing missing Debian packages, downloading single ones.

say() { printf '==> %s\n' "$*" >&2; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# Runs a command as root: directly if we are, else through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        # In the background a prompt for the password would never be answered.
        local ask=()
        [ -t 0 ] || ask=(-n)
        sudo "${ask[@]}" "$@"
    else
        fail "a package is missing and there is no sudo; run as root: $*"
    fi
}

# Another apt process may hold the locks for seconds, and downloads fail now and then: retry, but not for ever.
apt_with_retries() {
    local try
    for try in 1 2 3 4 5 6; do
        as_root env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
            apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >/dev/null && return
        say "apt-get $1 failed (attempt $try), retrying in 10 s"
        sleep 10
    done
    return 1
}

# Downloads the lists of packages if there are none, as in a fresh container.
need_lists() {
    # Where there is no apt, what needs it says so.
    command -v apt-get >/dev/null || return 0
    local lists
    # shellcheck disable=SC2016 # this is apt's placeholder
    lists=$(apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages')
    [ -n "$lists" ] || apt_with_retries update || fail "apt-get update failed"
}

# Downloads the newest version of a package into the current directory.
download() {
    local sandbox=(-o APT::Sandbox::User="$(id -un)")
    apt-get -qq "${sandbox[@]}" download "$1" >&2 ||
        { apt_with_retries update && apt-get -qq "${sandbox[@]}" download "$1" >&2; } ||
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
        say "all packages are installed"
        return
    fi
    command -v apt-get >/dev/null || fail "this is not Debian; install the contents of these packages by hand: ${missing[*]}"
    say "installing ${missing[*]}"
    apt_with_retries update || fail "apt-get update failed"
    apt_with_retries install -y --no-install-recommends "${missing[@]}" || fail "could not install ${missing[*]}"
}
