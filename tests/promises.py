# SPDX-License-Identifier: Apache-2.0
"""Servers that do as a test says, and clients that see what becomes of each request: the bench of
test_promises.py."""

import http.client
import http.server
import threading
import time

from standalone import Threads


class Host:
    """A server on a port of its own. `answer(request)` returns a status and headers; every request
    is kept in `came`."""

    def __init__(self, name, answer=None):
        self.name, self.answer = name, answer or (lambda request: (200, {}))
        self.came, self.lock = [], threading.Lock()
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def answer(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                if not self.path.startswith("/health"):
                    with host.lock:
                        host.came.append(Came(time.monotonic(), self.headers.get("x-id", "")))
                status, headers = host.answer(self)
                body = host.name.encode()
                self.send_response_only(status)
                for name, value in {"content-length": len(body), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_CONNECT = answer

            def log_message(self, *_):
                pass

        self.server = Threads(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def hits(self):
        return len(self.came)

    def forget(self):
        with self.lock:
            self.came.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Came:
    """A request at its server."""

    def __init__(self, at, ident):
        self.at, self.id = at, ident


class Clients:
    """Kept connections, used in turn, so that every worker has some of them."""

    def __init__(self, port, connections=8):
        self.all = [http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                    for _ in range(connections)]
        self.asked = 0

    def ask(self, path="/", **headers):
        """Status and body of one request; its number is its id."""
        connection = self.all[self.asked % len(self.all)]
        headers = {"x-id": str(self.asked), **{k.replace("_", "-"): v for k, v in headers.items()}}
        self.asked += 1
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def statuses(self, count, path="/"):
        return [self.ask(path)[0] for _ in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for connection in self.all:
            connection.close()


def file(port, admin, hosts, policy="{}", rule="", listener=""):
    """A proxy's file: one listener that leads to these hosts."""
    ends = ", ".join(f'"{h.address}"' for h in hosts)
    return f"""
admin: 127.0.0.1:{admin}
access_log: "off"
listeners: [{{name: one, bind: "127.0.0.1:{port}"{listener}}}]
routes:
  - {{name: all, listeners: [one], rules: [{{to: up{rule}}}]}}
backends:
  - name: up
    endpoints: [{ends}]
    policy: {policy}
"""
