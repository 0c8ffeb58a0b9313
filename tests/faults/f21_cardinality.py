# SPDX-License-Identifier: Apache-2.0
"""F21: a client that never asks for the same path, host or method twice. Metrics keep at most 10,000
series, their page stays quick, and the proxy grows by at most 50 MB."""

import socket
import threading

from drill import Load, Origin, gateway
from proxy import metrics_of, of_gateway, pss_kb

BATCH = 50


def run(whole, folder):
    count = 1_000_000 if whole else 50_000
    with gateway(folder, [Origin()]) as (port, mesh):
        Load(port, 100, 1).run()
        pid = of_gateway(mesh)
        before = pss_kb(pid)
        answered = []
        lanes = [threading.Thread(target=ask, args=(port, n, count // 4, answered))
                 for n in range(4)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        grown = pss_kb(pid) - before
        text, seconds = metrics_of(mesh)
    series = sum(1 for line in text.splitlines() if line and not line.startswith("#"))
    assert sum(answered) == count, f"{sum(answered)} of {count} answers"
    assert series <= 10_000, f"{series} series"
    assert seconds <= 1, f"the page took {seconds:.2f} s"
    assert grown <= 50 * 1024, f"{grown} kB more"
    return (f"F21 cardinality: {count} distinct paths, hosts and methods: {series} series, page in"
            f" {seconds * 1000:.0f} ms, {grown} kB more")


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
