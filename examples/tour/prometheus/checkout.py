#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A service that counts its checkouts, the way prometheus_client's own manual shows it."""

import os

from flask import Flask, jsonify, request
from prometheus_client import Counter, start_http_server

app = Flask(__name__)
checkouts = Counter("checkouts_total", "Checkouts done", ["payment"])


@app.post("/checkout")
def checkout():
    payment = request.args.get("payment", "card")
    checkouts.labels(payment=payment if payment in ("card", "cash") else "other").inc()
    return jsonify(ok=True)


@app.get("/healthz")
def healthz():
    return "ok"


if __name__ == "__main__":
    address = os.environ.get("POD_IP", "127.0.0.1")
    start_http_server(int(os.environ.get("METRICS_PORT", 9102)), addr=address)
    app.run(address, int(os.environ.get("PORT", 5000)))
