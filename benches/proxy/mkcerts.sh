#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ECDSA P-256 CA, server and client certificates (SPIFFE URI SANs) for the TLS runs -> certs/
set -e; mkdir -p "${1:?usage: mkcerts.sh FOLDER}/certs"; cd "$1/certs"
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -sha256 -days 30 -subj /CN=bench-ca -out ca.pem -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign'
for n in server client; do
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $n.key
  openssl req -new -key $n.key -subj /CN=$n -out $n.csr
  printf 'subjectAltName=DNS:localhost,DNS:bench.local,IP:127.0.0.1,URI:spiffe://cluster.local/ns/default/sa/%s\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\nbasicConstraints=CA:FALSE\n' $n > $n.ext
  openssl x509 -req -in $n.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -sha256 -extfile $n.ext -out $n.pem
  cat $n.pem $n.key > $n.both.pem
done
chmod 644 *.key *.pem
