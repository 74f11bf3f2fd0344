#!/usr/bin/env bash
# Renew every lock: `bash requirements/lock.sh`. Needs uv.
set -euo pipefail
cd "$(dirname "$0")"
compile() {
  uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --excludes no-cuda.txt "$@"
}
compile development.in -o development.txt
for part in functions validation-layer training-image; do
  compile "$part.in" -c development.txt -o "$part.txt"
done
# `sam build` reads a lock beside the code it builds.
cp functions.txt ../functions/requirements.txt
cp validation-layer.txt ../layers/validation/requirements.txt
