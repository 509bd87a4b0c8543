#!/bin/sh
# Make sure that the browser tests find a Chromium: the system's, Debian's, or Playwright's.
set -eu

say() { printf '%s\n' "bridge: $*" >&2; }
python=${1:?usage: tools/browser.sh PYTHON}

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing chromium with apt-get"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
        >/dev/null </dev/null && exit 0
fi
say "no chromium or google-chrome found; asking Playwright for its own"
"$python" -m playwright install chromium </dev/null || {
    say "no browser could be installed. Install one (on Debian: sudo apt-get install chromium)," \
        "then run make test again."
    exit 1
}
