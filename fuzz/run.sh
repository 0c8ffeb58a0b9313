#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fuzzes weft's parsers with libFuzzer.
#
#   fuzz/run.sh [SECONDS [TARGET...]]   each target for so long (20), two at a time
#   fuzz/run.sh minimise [TARGET...]    keeps of what was found only what adds coverage, in corpus/
#   fuzz/run.sh list
#
# seeds/ has what people wrote to start from, and no run changes it; corpus/ has what runs found. What
# a run finds beyond them stays under target/fuzz; a crash is kept there too, with the bytes.
set -uo pipefail
cd "$(dirname "$0")"
root=$(cd .. && pwd)
work=$root/target/fuzz
mapfile -t all < <(sed -n 's/^    ("\([a-z0-9_]*\)", .*/\1/p' src/main.rs)

build() {
  cp ../Cargo.lock Cargo.lock
  RUSTC_WRAPPER=$PWD/instrument.sh cargo build --quiet --target-dir "$root/target"
}

one() { # TARGET SECONDS
  local found=$work/found/$1 log=$work/$1.log seeds=()
  mkdir -p "$found" "corpus/$1" "$work/crashes"
  [ -d "seeds/$1" ] && seeds=("seeds/$1")
  if WEFT_FUZZ_TARGET=$1 "$root/target/debug/weft-fuzz" -max_total_time="$2" -max_len=4096 \
    -timeout=30 -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="$work/crashes/$1-" \
    "$found" "corpus/$1" "${seeds[@]}" >"$log" 2>&1; then
    printf '%-16s %9s runs, coverage %s\n' "$1" \
      "$(sed -n 's/^stat::number_of_executed_units: //p' "$log")" \
      "$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -c6-)"
  else
    printf '%-16s FAILED; see %s\n' "$1" "$log"
    tail -30 "$log"
    return 1
  fi
}

minimise() { # TARGET
  local kept
  kept=$(mktemp -d)
  mkdir -p "$work/found/$1"
  WEFT_FUZZ_TARGET=$1 "$root/target/debug/weft-fuzz" -merge=1 -max_len=512 "$kept" "corpus/$1" \
    "$work/found/$1" >/dev/null 2>&1
  # The smallest sixty are enough to start from.
  rm -rf "corpus/$1" && mkdir -p "corpus/$1"
  find "$kept" -type f -printf '%s %p\n' | sort -n | head -60 | cut -d' ' -f2- |
    xargs -r cp -t "corpus/$1"
  rm -rf "$kept"
  printf '%-16s %s inputs\n' "$1" "$(find "corpus/$1" -type f | wc -l)"
}

case "${1:-20}" in
  list) printf '%s\n' "${all[@]}"; exit ;;
  minimise)
    shift
    build || exit 1
    for target in "${@:-${all[@]}}"; do minimise "$target"; done
    exit ;;
esac
seconds=${1:-20}
shift || true
targets=("${@:-${all[@]}}")
build || exit 1
failed=0
running=0
for target in "${targets[@]}"; do
  one "$target" "$seconds" &
  running=$((running + 1))
  if [ "$running" -ge 2 ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
done
while [ "$running" -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
exit $failed
