#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the tour's tests: all of them, or those named. PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")"
# What ./test has unpacked, where it has.
peers="$(cd ../.. && pwd)/target/peers"
if [ -z "${PYTHON:-}" ] && [ -x "$peers/venv/bin/python" ]; then
    PYTHON="$peers/venv/bin/python"
    PYTHONPATH="$peers/consul/python-consul${PYTHONPATH:+:$PYTHONPATH}"
    PATH="$peers/bin:$PATH"
    export PYTHONPATH
fi
: "${PYTHON:=python3}"
# The examples' own programs are started as python3, so its folder comes first.
PATH="$(dirname "$(command -v "$PYTHON")"):$PATH"
export PATH PYTHONDONTWRITEBYTECODE=1
[ $# -gt 0 ] || set -- consul-python kubernetes-python flask prometheus polyglot
failed=""
for name in "$@"; do
    [ -d "$name" ] || { echo "no example '$name' in examples/tour" >&2; exit 2; }
    "$PYTHON" -m pytest -q -p no:cacheprovider -p no:asyncio -rs "$name" || failed="$failed $name"
done
[ -z "$failed" ] || { echo "tour: failed:$failed" >&2; exit 1; }
echo "tour: $# examples passed"
