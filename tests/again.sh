#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sourced: `again COMMAND...` runs a command that asks others for something, up to four times, since
# a download may break off once.
again() {
  local try
  for try in 5 15 45; do
    "$@" && return
    printf '%s: failed; once more in %s s\n' "$*" "$try" >&2
    sleep "$try"
  done
  "$@"
}
