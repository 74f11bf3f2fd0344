#!/usr/bin/env bash
# Build the training image and record what it was built from: `make image [IMAGE=name:tag] [PUSH=1]`.
# Needs Docker with buildx. Writes training_image/image.lock: base tag and digest, image name and digest.
set -euo pipefail
cd "$(dirname "$0")/.."

commit=$(git rev-parse HEAD)
image=${IMAGE:-dropforge-training:${commit:0:12}}
tag=$(sed -n 's/^ARG BASE=//p' training_image/Dockerfile)
command -v docker >/dev/null || { echo "docker is not on PATH: the image is built where Docker runs" >&2; exit 1; }

digest=$(docker buildx imagetools inspect "$tag" --format '{{.Manifest.Digest}}')
[[ $digest == sha256:* ]] || { echo "no digest for $tag: got '$digest'" >&2; exit 1; }
echo "base $tag is $digest"

metadata=$(mktemp)
trap 'rm -f "$metadata"' EXIT
output=--load
if [[ -n ${PUSH:-} ]]; then output=--push; fi
docker buildx build --platform linux/amd64 --file training_image/Dockerfile \
  --build-arg "BASE=$tag@$digest" --build-arg "COMMIT=$commit" --label "org.opencontainers.image.revision=$commit" \
  --tag "$image" --metadata-file "$metadata" "$output" .
built=$(sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "$metadata" | head -n 1)

{
  echo "base=$tag@$digest"
  echo "image=$image@$built"
  echo "commit=$commit"
} >training_image/image.lock
cat training_image/image.lock
