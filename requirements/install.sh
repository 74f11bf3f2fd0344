#!/usr/bin/env bash
# Install the lock into a virtual environment: `bash requirements/install.sh VENV`.
# uv where it can be had (seconds instead of minutes), else pip; the hashes are checked either way.
set -euo pipefail
venv=$1
here=$(cd "$(dirname "$0")" && pwd)
python=$venv/bin/python
lock=$here/development.txt
uv_version=0.13.8

with_uv() {
  "$python" -m pip install --quiet "uv==$uv_version" || return 1
  # uv does not read pip's settings; hand them over. With every hash pinned, no index can slip in
  # another file, so all of them may be asked for every version.
  local options=() url
  for url in $("$python" -m pip config get global.index-url 2>/dev/null); do options+=(--index-url "$url"); done
  for url in $("$python" -m pip config get global.extra-index-url 2>/dev/null); do options+=(--extra-index-url "$url"); done
  for url in $("$python" -m pip config get global.find-links 2>/dev/null); do options+=(--find-links "$url"); done
  [ -z "${PIP_INDEX_URL:-}" ] || options+=(--index-url "$PIP_INDEX_URL")
  for url in ${PIP_EXTRA_INDEX_URL:-}; do options+=(--extra-index-url "$url"); done
  for url in ${PIP_FIND_LINKS:-}; do options+=(--find-links "$url"); done
  "$venv/bin/uv" pip install --quiet --python "$python" --index-strategy unsafe-best-match \
    --no-deps --require-hashes "${options[@]}" -r "$lock"
}

echo "installing PyTorch, then some 200 packages: two to five minutes where nothing is cached" >&2
# torch comes first and by name: its CPU build has a digest of its own.
"$python" -m pip install --quiet torch==2.13.0
if ! with_uv; then
  echo "uv could not install the lock; pip does it instead, which takes some minutes" >&2
  "$python" -m pip install --quiet --no-deps --require-hashes -r "$lock"
fi
