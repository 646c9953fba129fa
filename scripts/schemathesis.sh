#!/bin/sh
# Schemathesis on the server's own schema: whatever it makes of that, no request may get a 5xx, an answer that the schema
# does not have, or the server down. With a build of the preset asan, under its sanitizers.
# Usage: scripts/schemathesis.sh BUILD_FOLDER [EXAMPLES]     examples of each endpoint (100)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "$1" && pwd)
examples=${2:-100}
venv=$build/schemathesis
[ -x "$venv/bin/schemathesis" ] || {
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check "schemathesis>=4,<5"
}

# Short texts: the requests are what is tested, and many ask for as much as there is.
"$build/hxq" serve "$root/models/wiki-mamba-7m" --template "$root/models/plain-chat.jinja" --port 0 \
  --context 256 --queued-tokens 4096 >"$build/schemathesis.out" 2>"$build/schemathesis.err" &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until address=$(grep -o '^http[^ ]*' "$build/schemathesis.out"); do
  kill -0 $server || { cat "$build/schemathesis.err"; exit 1; }
  sleep 0.2
done

# Some requests that fit the schema are refused: what one member may say depends on others.
cd "$build"
"$venv/bin/schemathesis" run "$address/openapi.json" -n "$examples" --phases coverage,fuzzing --request-timeout 300 \
  --exclude-checks positive_data_acceptance

kill -TERM $server
wait $server && code=0 || code=$?
trap - EXIT
[ $code = 143 ] || { echo "the server ended with $code" >&2; cat "$build/schemathesis.err" >&2; exit 1; }
