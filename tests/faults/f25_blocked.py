# SPDX-License-Identifier: Apache-2.0
"""F25: thousands of blocking queries wait for one service. What each holds of the server's memory,
that another service's change wakes none of them, and how soon all are answered once the service's
check turns.

Who asks is one thread that takes answers as they come: it reads them from 5,000 sockets in a small
part of the time that is measured."""

import contextlib
import pathlib
import resource
import select
import socket
import sys
import time

import requests

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from mesh import anonymous_kb, until  # noqa: E402
from test_store import Server  # noqa: E402

BYTES_MAX = 8 * 1024


@contextlib.contextmanager
def files(wanted):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard in (resource.RLIM_INFINITY,) or hard >= wanted, f"{wanted} files, {hard} allowed"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Watchers:
    """Connections with a query each that waits."""

    def __init__(self, server, index):
        self.port, self.epoll, self.all = server.consul_port, select.epoll(), {}
        self.ask = (f"GET /v1/health/service/web?index={index}&wait=300s HTTP/1.1\r\n"
                    "Host: localhost\r\n\r\n").encode()

    def add(self, count):
        for _ in range(count):
            link = socket.create_connection(("127.0.0.1", self.port), timeout=60)
            link.sendall(self.ask)
            link.setblocking(False)
            self.all[link.fileno()] = link
            self.epoll.register(link, select.EPOLLIN)

    def answers(self, seconds):
        """When each answer came that came within this time."""
        times, end = {}, time.monotonic() + seconds
        while len(times) < len(self.all) and time.monotonic() < end:
            for number, _ in self.epoll.poll(min(0.5, max(0, end - time.monotonic())), 1024):
                text = self.all[number].recv(65536)
                if number not in times:
                    times[number] = time.monotonic()
                    assert text.startswith(b"HTTP/1.1 200 "), text[:200]
        return sorted(times.values())

    def close(self):
        for link in self.all.values():
            link.close()


def run(whole, folder):
    queries = 5_000 if whole else 1_000
    with files(2 * queries + 200), Server(folder / "server") as server:
        text = drill(whole, server, queries)
    assert "panicked" not in server.log_text()
    return text


def drill(whole, server, queries):
    session = requests.Session()

    def put(path, **body):
        session.put(f"{server.consul}/v1/agent/{path}", json=body, timeout=60).raise_for_status()

    def waiting(count):
        text = session.get(f"{server.consul}/v1/agent/metrics?format=prometheus", timeout=60).text
        lines = [x for x in text.splitlines() if "block" in x and not x.startswith("#")]
        return lines and float(lines[0].rsplit(" ", 1)[1]) >= count

    put("service/register", Name="web", Check={"TTL": "600s"})
    put("service/register", Name="other", Check={"TTL": "600s"})
    index = session.get(f"{server.consul}/v1/health/service/web", timeout=60).headers[
        "X-Consul-Index"]
    watchers = Watchers(server, index)
    # The first ones bring what is needed once.
    watchers.add(queries // 20)
    until("the first ones wait", lambda: waiting(queries // 20))
    before = anonymous_kb(server.process.pid)
    watchers.add(queries - queries // 20)
    until("all of them wait", lambda: waiting(queries))
    each = 1024 * (anonymous_kb(server.process.pid) - before) / (queries - queries // 20)
    # Another service's change wakes nobody.
    put("check/pass/service:other")
    woken = len(watchers.answers(1))
    began = time.monotonic()
    put("check/pass/service:web")
    times = [at - began for at in watchers.answers(60)]
    watchers.close()
    p99 = times[len(times) * 99 // 100] * 1000
    text = (f"F25 {queries:,} blocking queries: {each:,.0f} bytes each, {woken} woken by another "
            f"service's change, {len(times):,} answered when theirs turned, p99 after {p99:.0f} ms")
    assert not woken and len(times) == queries, text
    assert each <= BYTES_MAX, text
    assert p99 <= (500 if whole else 20_000), text
    return text
