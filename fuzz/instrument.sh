#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Cargo's RUSTC_WRAPPER while fuzz targets are built: weft's own crates count the edges that a run
# takes (LLVM's SanitizerCoverage, which libFuzzer reads); all others are built as they always are.
rustc=$1
shift
case " $* " in
  *" --crate-name weft_"*) exec "$rustc" "$@" -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares ;;
esac
exec "$rustc" "$@"
