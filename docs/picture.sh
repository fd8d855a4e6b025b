#!/bin/sh
# Take the picture of a report that the README shows: sh docs/picture.sh results/mini/report.html docs/report.png
exec chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync \
    --user-data-dir="$(mktemp -d)" --window-size=1440,1500 --screenshot="$2" "file://$(realpath "$1")"
