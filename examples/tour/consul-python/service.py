#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A small HTTP service that registers itself through python-consul.

It takes a free port, registers with a TCP check, waits until it finds itself among the healthy
instances, serves until SIGTERM or Ctrl-C, and deregisters.
"""

import http.server
import json
import os
import signal
import socket
import threading

import consul

NAME = os.environ.get("SERVICE_NAME", "greeter")


class Greeter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"hello\n"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def find_self(registry, service_id, index=None):
    """Asks for the healthy instances; with an index, blocks until something changes."""
    index, nodes = registry.health.service(NAME, passing=True, index=index, wait="5s")
    mine = [node["Service"] for node in nodes if node["Service"]["ID"] == service_id]
    return index, mine[0] if mine else None


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Greeter)
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()

    registry = consul.Consul(host="127.0.0.1", port=int(os.environ.get("WEFT_CONSUL_PORT", 8500)))
    service_id = f"{NAME}-{socket.gethostname()}-{port}"
    registry.agent.service.register(
        NAME,
        service_id=service_id,
        address="127.0.0.1",
        port=port,
        tags=["tour", "v1"],
        check=consul.Check.tcp("127.0.0.1", port, "100ms", timeout="10s"),
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        index, found = find_self(registry, service_id)
        while found is None and not stop.is_set():
            index, found = find_self(registry, service_id, index)
        print(json.dumps({"event": "found", "service": found}), flush=True)
        stop.wait()
    finally:
        registry.agent.service.deregister(service_id)
        print(json.dumps({"event": "deregistered", "id": service_id}), flush=True)


if __name__ == "__main__":
    main()
