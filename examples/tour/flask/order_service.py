#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The order service: Flask, calling the user service by name with plain requests.

requests honours HTTP_PROXY, which weft sets to the pod's own sidecar; so the call is meshed.
"""

import itertools
import os

import requests
from flask import Flask, abort, jsonify, request

app = Flask(__name__)
numbers = itertools.count(1)
orders = {}
#: Handed on, so that routes can tell canary traffic and traces stay in one piece.
HANDED_ON = ("x-canary", "x-request-id", "traceparent", "tracestate")


@app.post("/orders")
def place():
    body = request.get_json()
    headers = {name: request.headers[name] for name in HANDED_ON if name in request.headers}
    answer = requests.get(f"http://user-service/users/{int(body['user'])}", headers=headers,
                          timeout=30)
    if answer.status_code == 404:
        abort(422, f"user {body['user']} does not exist")
    answer.raise_for_status()
    order = {"id": next(numbers), "user": answer.json(), "item": body["item"]}
    orders[order["id"]] = order
    return jsonify(order), 201


@app.get("/orders/<int:number>")
def order(number):
    return jsonify(orders.get(number) or abort(404))


@app.get("/healthz")
def healthz():
    return "ok"


if __name__ == "__main__":
    app.run(os.environ.get("POD_IP", "127.0.0.1"), int(os.environ.get("PORT", 5000)))
