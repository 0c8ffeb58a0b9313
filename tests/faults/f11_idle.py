# SPDX-License-Identifier: Apache-2.0
"""F11: thousands of connections that were used once and are kept: at most 4 KiB each in plain, at
most 16 KiB with TLS."""

import resource
import socket
import ssl
import time

from drill import Figure, Origin, free_port
from proxy import anonymous_kb
from standalone import Proxy, certificates

FILE = """
listeners:
  - {{name: web, bind: "127.0.0.1:{plain}"}}
  - {{name: secure, bind: "127.0.0.1:{tls}", tls: [{{certificate: server.pem, key: server.key}}]}}
routes: [{{rules: [{{to: up}}]}}]
backends: [{{name: up, endpoints: ["{origin}"]}}]
"""
ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def used(address, context=None):
    stream = socket.create_connection(address, 20)
    if context:
        stream = context.wrap_socket(stream, server_hostname="localhost")
    stream.sendall(ASK)
    answer = b""
    while b"\r\n\r\nok" not in answer:
        some = stream.recv(4096)
        assert some, answer
        answer += some
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return stream


def each(pid, address, count, context=None):
    """Bytes of the proxy that one of so many connections takes."""
    first = [used(address, context) for _ in range(100)]
    # Until it has forgotten the pages of its start: they would be taken off what is counted.
    time.sleep(1)
    before = anonymous_kb(pid)
    kept = [used(address, context) for _ in range(count)]
    grown = (anonymous_kb(pid) - before) * 1024 / count
    for stream in first + kept:
        stream.close()
    return grown


def run(whole, folder):
    plain_count, tls_count = (8_000, 3_000) if whole else (800, 300)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 10_000)), hard))
    certificates(folder)
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    origin, plain, tls = Origin(), free_port(), free_port()
    (folder / "idle.yaml").write_text(
        FILE.format(plain=plain, tls=tls, origin=f"{origin.address}:{origin.port}"))
    try:
        # A process each: what one kind left behind would be free for the other.
        with Proxy("-c", folder / "idle.yaml", ready=plain) as proxy:
            bare = each(proxy.process.pid, ("127.0.0.1", plain), plain_count)
        with Proxy("-c", folder / "idle.yaml", ready=plain) as proxy:
            sealed = each(proxy.process.pid, ("127.0.0.1", tls), tls_count, context)
    finally:
        origin.kill()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    text = (f"F11 idle: {bare:.0f} bytes for each of {plain_count} plain connections, {sealed:.0f} "
            f"for each of {tls_count} with TLS")
    # Of few connections the parts of pages that nobody uses are much of it, and a build with
    # assertions has larger tables.
    room = 1 if whole else 2.5
    assert bare <= 4_096 * room and sealed <= 16_384 * room, text
    return Figure(text, f"{bare:,.0f} / {sealed:,.0f}")
