# SPDX-License-Identifier: Apache-2.0
"""Stored answers of `weft proxy -c`, with curl, a Python origin and the admin port."""

import concurrent.futures
import email.utils
import http.server
import json
import threading
import time

import pytest
from mesh import free_port, until
from standalone import Proxy, Threads, curl


class Pages:
    """An origin whose answers are functions of the request and of how often it came."""

    def __init__(self):
        self.asked = []
        self.slow = threading.Event()
        pages = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                pages.asked.append((self.path, dict(self.headers)))
                if self.path == "/slow":
                    pages.slow.wait(60)
                status, headers, body = pages.page(self.path, self.headers)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 304:
                    self.send_header("content-length", str(len(body)))
                self.end_headers()
                if status != 304:
                    self.wfile.write(body)

            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = Threads(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port

    def page(self, path, headers):
        count = sum(1 for seen, _ in self.asked if seen == path)
        body = f"{path} {count}".encode()
        if path.startswith("/etag"):
            tag = '"v1"'
            if headers.get("if-none-match") == tag:
                return 304, {"etag": tag, "cache-control": "max-age=1"}, b""
            return 200, {"etag": tag, "cache-control": "max-age=1"}, body
        if path.startswith("/lang"):
            said = headers.get("accept-language", "-")
            return 200, {"cache-control": "max-age=60", "vary": "Accept-Language"}, said.encode()
        if path.startswith("/old"):
            at = email.utils.formatdate(time.time() - 100_000, usegmt=True)
            return 200, {"last-modified": at}, body
        if path.startswith("/private"):
            return 200, {"cache-control": "private, max-age=60"}, body
        return 200, {"cache-control": "max-age=60"}, body

    def count(self, path):
        return sum(1 for seen, _ in self.asked if seen == path)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.slow.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def served(tmp_path):
    port, admin, log = free_port(), free_port(), tmp_path / "access.log"
    with Pages() as pages:
        path = tmp_path / "proxy.yaml"
        path.write_text(f"""
admin: 127.0.0.1:{admin}
access_log: {{path: {log}, format: "%REQ(:PATH)% %RESPONSE_CODE% %WEFT_CACHE% %RESPONSE_FLAGS%"}}
listeners:
  - {{name: web, bind: "127.0.0.1:{port}"}}
routes:
  - name: all
    rules:
      - path: /old
        to: up
        filters: [{{cache: {{heuristic_ms_max: 3600000}}}}]
      - path: /never
        to: up
      - to: up
        filters: [{{cache: {{}}}}]
backends:
  - name: up
    endpoints: 127.0.0.1:{pages.port}
""")
        with Proxy("-c", path, ready=port):
            yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", pages, log


def test_answers_are_stored_as_their_origin_allows_and_said_in_log_and_header(served):
    url, admin, pages, log = served
    for _ in range(3):
        assert curl(f"{url}/a")[2] == "/a 1"
    status, headers, _ = curl(f"{url}/a")
    assert status == 200 and headers["cache-status"].startswith("weft; hit; ttl=")
    assert int(headers["age"]) >= 0
    assert curl(f"{url}/a", "-H", "Range: bytes=1-1")[::2] == (206, "a")
    assert curl(f"{url}/private")[2] != curl(f"{url}/private")[2]
    assert curl(f"{url}/never")[2] != curl(f"{url}/never")[2]
    assert curl(f"{url}/old")[2] == curl(f"{url}/old")[2] == "/old 1"
    for language in ("de", "fr", "de"):
        assert curl(f"{url}/lang", "-H", f"Accept-Language: {language}")[2] == language
    assert pages.count("/lang") == 2
    # A change makes void what it is about.
    assert curl(f"{url}/a", "-d", "x")[0] == 204
    assert curl(f"{url}/a")[2] == "/a 2"
    shown = json.loads(curl(f"{admin}/cache")[2])
    assert shown["hits"] >= 5 and shown["invalidated"] == 1 and 0 < shown["bytes"] < 10_000
    for line in ("/never 200 - -", "/a 200 miss -", "/a 200 hit RFCF", "/a 204 bypass -"):
        until(f"{line} is in the log", lambda: line in log.read_text())
    assert curl(f"{admin}/cache/purge?prefix={url}/", "-X", "POST")[0] == 200
    assert curl(f"{url}/a")[2] == "/a 3"
    assert "weft_cache_hits_total" in curl(f"{admin}/stats/prometheus")[2]


def test_a_stale_answer_is_asked_about_and_holds(served):
    url, _, pages, _ = served
    assert curl(f"{url}/etag")[2] == "/etag 1"

    def again():
        status, headers, body = curl(f"{url}/etag")
        assert (status, body) == (200, "/etag 1")
        return "fwd-status=304" in headers["cache-status"]

    until("it is stale and asked about", again)
    assert any(h.get("if-none-match") == '"v1"' for _, h in pages.asked)


def test_a_crowd_is_one_fetch(served):
    url, admin, pages, _ = served
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        crowd = [pool.submit(curl, f"{url}/slow") for _ in range(20)]
        open_ = "weft_downstream_connections_open 20"
        until("all are there", lambda: open_ in curl(f"{admin}/stats/prometheus")[2])
        pages.slow.set()
        assert {one.result()[2] for one in crowd} == {"/slow 1"}
    assert pages.count("/slow") == 1
