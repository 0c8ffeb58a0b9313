#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes the certificates of examples/edge.yaml: self-signed, for trying out only.
set -e
cd "$(dirname "$0")"
for name in shop docs; do
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -days 3650 \
    -keyout "$name.key" -out "$name.pem" -subj "/CN=$name.localhost" \
    -addext "subjectAltName=DNS:$name.localhost" 2>/dev/null
done
