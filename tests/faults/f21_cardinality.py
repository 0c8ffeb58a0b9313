# SPDX-License-Identifier: Apache-2.0
"""F21: a client that never asks for the same path, host or method twice, and one that never names
the same server in TLS. Metrics keep at most 10,000 series, their page stays quick and counts what
shared a series, and the proxy grows by at most 50 MB."""

import contextlib
import re
import socket
import ssl
import struct
import threading

from drill import ROUTE, Load, Origin, free_port, gateway
from proxy import anonymous_kb, metrics_of, of_gateway

BATCH = 50
TLS = ", {{name: tls, port: {}, protocol: TLS, tls: {{mode: Passthrough}}}}"
# A tenth of the names, so that both are met: those that lead somewhere, and those that do not.
TLS_ROUTE = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: some, namespace: drill}
spec:
  parentRefs: [{name: web, sectionName: tls}]
  hostnames: ["*.some.example"]
  rules: [{backendRefs: [{name: origin, port: 80}]}]
"""


def run(whole, folder):
    count = 1_000_000 if whole else 50_000
    names, tls = count // 10, free_port()
    with gateway(folder, [Origin()], ROUTE + TLS_ROUTE, more=TLS.format(tls)) as (port, mesh):
        Load(port, 100, 1).run()
        pid = of_gateway(mesh)
        before = anonymous_kb(pid)
        answered = []
        inside(ask, port, count, answered)
        inside(greet, tls, names, [])
        grown = anonymous_kb(pid) - before
        text, seconds = metrics_of(mesh)
    series = sum(1 for line in text.splitlines() if line and not line.startswith("#"))
    shared = re.search(r"^weft_series_overflowed_total (\d+)", text, re.MULTILINE)
    assert sum(answered) == count, f"{sum(answered)} of {count} answers"
    assert series <= 10_000, f"{series} series"
    assert shared, "what shares a series is not counted"
    assert seconds <= (1 if whole else 20), f"the page took {seconds:.2f} s"
    assert grown <= 50 * 1024, f"{grown} kB more"
    return (f"F21 cardinality: {count} distinct paths, hosts and methods, {names} server names: "
            f"{series} series, {shared[1]} label sets without one of their own, page in "
            f"{seconds * 1000:.0f} ms, {grown} kB more")


def inside(what, port, count, out):
    """In four threads, each its part."""
    lanes = [threading.Thread(target=what, args=(port, n, count // 4, out)) for n in range(4)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()


def ask(port, lane, count, answered):
    with socket.create_connection(("127.0.0.1", port), 20) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file = s.makefile("rb")
        done = 0
        for start in range(0, count, BATCH):
            batch = range(start, min(start + BATCH, count))
            s.sendall(b"".join(
                f"M{lane}X{n} /{lane}/{n} HTTP/1.1\r\nHost: h{lane}-{n}.example\r\n\r\n".encode()
                for n in batch))
            for _ in batch:
                length = 0
                assert file.readline().startswith(b"HTTP/1.1 ")
                while (line := file.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                file.read(length)
                done += 1
        answered.append(done)


def hello(name):
    """What a TLS client says first."""
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def greet(port, lane, count, _):
    nowhere, somewhere = (hello(f"n0-0000000.{end}.example") for end in ("none", "some"))
    for n in range(count):
        first = somewhere if n % 10 == 0 else nowhere
        with socket.create_connection(("127.0.0.1", port), 20) as s:
            # No port is kept for what is late.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.sendall(first.replace(b"n0-0000000", f"n{lane}-{n:07}".encode()))
            if first is nowhere:
                with contextlib.suppress(ConnectionResetError):
                    while s.recv(4096):
                        pass
