#!/usr/bin/env bash
# Builds the documents as a book in target/book/html and checks that its links lead somewhere.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v mdbook >/dev/null || {
    echo "mdbook is missing: install it with \`cargo install --locked mdbook\`" >&2
    exit 69
}
book=$(realpath -m "${CARGO_TARGET_DIR:-target}")/book
rm -rf "$book"
mkdir -p "$book/src"
# What the pages link to, in the directories in which it is here.
cp --parents -r README.md ARCHITECTURE.md CONTRIBUTING.md RELEASING.md SECURITY.md CHANGELOG.md LICENSE \
    deploy/README.md docs e2e/README.md e2e/not-here.toml e2e/pods.yaml e2e/pod/src/main.rs e2e/scenarios \
    tests/src/bin/prove-suite/broken.toml "$book/src"
mv "$book/src/docs/book.toml" "$book/book.toml"
sed 's#](#](docs/#; s#](docs/\.\./#](#' docs/SUMMARY.md >"$book/src/SUMMARY.md"
rm "$book/src/docs/SUMMARY.md"
mdbook build --dest-dir "$book/html" "$book"

broken=0
while IFS= read -r page; do
    while IFS= read -r target; do
        [ -z "$target" ] || [ -e "$(dirname "$page")/$target" ] || {
            echo "$page: $target" >&2
            broken=1
        }
    done < <(grep -oE '(href|src)="[^":#]*[#"]' "$page" | sed -E 's/^[a-z]+="//; s/[#"]$//' | sort -u)
done < <(find "$book/html" -name '*.html' ! -name 404.html ! -name toc.html)
[ "$broken" = 0 ] || { echo "the book has links that lead nowhere" >&2; exit 1; }
echo "==> $book/html/index.html"
