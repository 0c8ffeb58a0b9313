#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python service: standard library only. urllib honours HTTP_PROXY, so calling another
service by its name goes through the pod's sidecar."""

import http.server
import json
import os
import signal
import sys
import urllib.error
import urllib.request


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/healthz":
            self.answer(200, b"ok\n")
        elif self.path == "/python/ping":
            self.answer(200, json.dumps({"language": "python"}).encode())
        elif self.path.startswith("/python/call/"):
            self.call(self.path.rsplit("/", 1)[1])
        else:
            self.answer(404, b"nothing is here\n")

    def call(self, other):
        url = f"http://{other}-service/{other}/ping"
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                self.answer(reply.status, reply.read())
        except urllib.error.HTTPError as error:
            self.answer(error.code, error.read())
        except OSError as error:
            self.answer(502, f"{error}\n".encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address = (os.environ.get("POD_IP", "127.0.0.1"), int(os.environ.get("PORT", 8080)))
    http.server.ThreadingHTTPServer(address, Service).serve_forever()


if __name__ == "__main__":
    main()
