#!/usr/bin/env bash
# Renders the page of a run of the end-to-end suite with Chromium, light and dark: the pictures in docs/.
#
#   scripts/e2e-pictures.sh PAGE DIRECTORY [HEIGHT]    writes DIRECTORY/e2e-light.png, e2e-dark.png and e2e-phone.png
#
# HEIGHT is that of the pictures, by default 1500 pixels from the top; the phone's is 390 pixels wide.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/apt.sh
. scripts/apt.sh

[ $# -ge 2 ] || { echo "usage: ${0##*/} PAGE DIRECTORY [HEIGHT]" >&2; exit 64; }
page=$(realpath "$1") directory=$2 height=${3:-1500}
[ -f "$page" ] || fail "$page is missing: make e2e writes it"
install_missing "chromium chromium"
mkdir -p "$directory"
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT

# picture NAME WIDTH COLOURS
picture() {
    local arguments=(--headless --no-sandbox --disable-gpu --hide-scrollbars "--user-data-dir=$profile")
    # 0 is dark, 1 is light.
    arguments+=("--blink-settings=preferredColorScheme=$3" "--window-size=$2,$height" "--screenshot=$directory/$1.png")
    chromium "${arguments[@]}" "file://$page" 2>/dev/null || fail "Chromium could not render $page"
    say "$directory/$1.png"
}

picture e2e-light 1000 1
picture e2e-dark 1000 0
picture e2e-phone 390 1
