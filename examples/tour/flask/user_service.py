#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The user service: Flask, nothing else."""

import os

from flask import Flask, abort, jsonify

app = Flask(__name__)
USERS = {1: "Ada Lovelace", 2: "Alan Turing"}
VERSION = os.environ.get("VERSION", "v1")


@app.get("/users/<int:number>")
def user(number):
    if number not in USERS:
        abort(404)
    return jsonify(id=number, name=USERS[number], version=VERSION)


@app.get("/healthz")
def healthz():
    return "ok"


if __name__ == "__main__":
    app.run(os.environ.get("POD_IP", "127.0.0.1"), int(os.environ.get("PORT", 5000)))
