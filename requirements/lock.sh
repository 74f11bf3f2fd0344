#!/usr/bin/env bash
# Renew every lock: `bash requirements/lock.sh`. Needs uv.
set -euo pipefail
cd "$(dirname "$0")"
compile() {
  uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header \
    --python-version 3.11 --excludes no-cuda.txt "$@"
}
modern=x86_64-manylinux_2_28
compile --python-platform $modern development.in -o development.txt
compile --python-platform $modern training-image.in -c development.txt -o training-image.txt
# By itself: it has wheels for one platform, and `make setup` must not build it on the others.
compile --python-platform $modern fuzz.in -o fuzz.txt
# By itself: a peer that only `make bench` installs, beside the versions that are tested.
compile --python-platform $modern bench.in -c development.txt -o bench.txt

# Lambda's Python 3.11 runs on Amazon Linux 2 with glibc 2.26, and what has no wheel for that does not load there.
# Of these two the newest versions have none, so there they are older than here; tests/template/test_layer.py
# holds the built layer's answers against these versions'.
lambda=x86_64-manylinux_2_17
same=$(mktemp)
trap 'rm -f "$same"' EXIT
grep -oE '^[A-Za-z0-9._-]+==[^ ]+' development.txt | grep -vE '^(numpy|pyarrow)==' >"$same"
compile --python-platform $lambda --only-binary :all: functions.in -c "$same" -o functions.txt
compile --python-platform $lambda --only-binary :all: --excludes not-in-layer.txt \
  validation-layer.in -c "$same" -o validation-layer.txt
compile --python-platform $lambda --only-binary :all: --excludes not-in-metrics-layer.txt \
  metrics-layer.in -c "$same" -o metrics-layer.txt

# `sam build` reads a lock beside the code it builds.
cp functions.txt ../functions/requirements.txt
cp validation-layer.txt ../layers/validation/requirements.txt
cp metrics-layer.txt ../layers/metrics/requirements.txt
