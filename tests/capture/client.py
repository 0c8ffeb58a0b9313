# SPDX-License-Identifier: Apache-2.0
"""Calls tests/capture/server.py by its Service names and prints one JSON line per check. Knows
nothing of weft; standard library only. The argument is how many megabytes to send through."""

import hashlib
import json
import os
import random
import socket
import statistics
import struct
import sys
import threading
import time
import traceback

MEGABYTES = int(sys.argv[1])


def dial(port, host="server", family=0):
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    sock = socket.socket(found[0][0], socket.SOCK_STREAM)
    sock.settimeout(60)
    sock.connect(found[0][4])
    return sock


def read_all(sock):
    out = b""
    while data := sock.recv(65536):
        out += data
    return out


def greeting(port, host="server"):
    began = time.perf_counter()
    with dial(port, host) as sock:
        line = sock.recv(64)
        took = time.perf_counter() - began
    assert line == b"5.7.0-greeting\n", line
    return took * 1000


def best(ways, enough, tries=20, rounds=10):
    """Medians in milliseconds of ways to do one thing, turn by turn. A machine that does something
    else has bad rounds: what is slow by itself is slow in all of them."""
    found = []
    for _ in range(rounds):
        turns = [[way() for way in ways] for _ in range(tries)]
        found.append([statistics.median(column) for column in zip(*turns)])
        if enough(*found[-1]):
            break
    return min(found, key=lambda medians: medians[-1] - medians[0])


def check_greeting():
    """Milliseconds until a greeting: of a port that no sidecar sees, of one that is declared, and of
    one that is not."""
    address = socket.gethostbyname("server-pods")
    ways = [lambda: greeting(7007, address), lambda: greeting(7001), lambda: greeting(7002)]
    for way in ways:
        way()
    medians = best(ways, lambda direct, _, detected: detected - direct <= 5, tries=40)
    return dict(zip(("direct", "declared", "detected"), medians))


def echoed(port, data, silence=0):
    with dial(port) as sock:
        time.sleep(silence)
        began = time.perf_counter()
        sock.sendall(data)
        assert sock.recv(len(data), socket.MSG_WAITALL) == data
        return (time.perf_counter() - began) * 1000


def check_detection():
    """How much later bytes are at a server whose protocol is not declared: bytes that are no HTTP,
    bytes that may become HTTP and never do, and such as are no HTTP after a client's silence."""
    added = {}
    for name, data, silence, bound in [("unknown", b"\0\1\2", 0, 5), ("half a method", b"GE", 0, 105),
                                       ("after silence", b"\0\1\2", 0.3, 5)]:
        ways = [lambda port=port: echoed(port, data, silence) for port in (7008, 7004)]
        declared, detected = best(ways, lambda a, b: b - a <= bound, tries=10)
        added[name] = detected - declared
    return added


def check_half_close():
    with dial(7003) as sock:
        data = b"question" * 10000
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock).decode().split()
    assert answer == [str(len(data)), hashlib.sha256(data).hexdigest()], answer
    # Nothing at all is a question too.
    with dial(7003) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).startswith(b"0 ")
    return True


def check_bulk():
    """Everything comes back as it was sent."""
    blocks = [random.Random(i).randbytes(1 << 20) for i in range(8)]
    sent, got, count = hashlib.sha256(), hashlib.sha256(), 0
    sock = dial(7004)

    def send():
        for i in range(MEGABYTES):
            sent.update(blocks[i % 8])
            sock.sendall(blocks[i % 8])
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    buffer = bytearray(1 << 18)
    while n := sock.recv_into(buffer):
        got.update(memoryview(buffer)[:n])
        count += n
    sender.join()
    assert count == MEGABYTES << 20, count
    assert got.hexdigest() == sent.hexdigest()
    return count


def request(sock, path, extra=""):
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: server\r\n{extra}\r\n".encode())


def check_http():
    answers = {}
    for name, family in [("v4", socket.AF_INET), ("v6", socket.AF_INET6)]:
        with dial(7005, family=family) as sock:
            request(sock, "/hello", "Connection: close\r\n")
            head, _, body = read_all(sock).decode().partition("\r\n\r\n")
        assert " 200 " in head and " /hello server" in body, head + body
        answers[name] = body.split()[0]
    return answers


def check_websocket():
    with dial(7005) as sock:
        request(sock, "/chat", "Connection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        assert head.startswith(b"HTTP/1.1 101") and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head, head
        for i in range(100):
            text, mask = f"message {i}".encode(), os.urandom(4)
            masked = bytes(b ^ mask[j % 4] for j, b in enumerate(text))
            sock.sendall(bytes([0x81, 0x80 | len(text)]) + mask + masked)
            frame = sock.recv(2, socket.MSG_WAITALL)
            assert sock.recv(frame[1], socket.MSG_WAITALL) == text
    return True


def question(name, kind):
    labels = b"".join(bytes([len(p)]) + p.encode() for p in name.split("."))
    return struct.pack(">6H", 0x1234, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)


def nameserver():
    for line in open("/etc/resolv.conf"):
        if line.startswith("nameserver"):
            return line.split()[1]


def check_dns():
    """Over UDP and TCP, for addresses of both families; and the search list of the C library."""
    server = nameserver()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    ask = question("server.demo.svc.cluster.local", 1)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.connect((server, 53))
        sock.send(ask)
        udp = sock.recv(4096)
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(60)
        sock.connect((server, 53))
        sock.sendall(struct.pack(">H", len(ask)) + ask)
        length = struct.unpack(">H", sock.recv(2, socket.MSG_WAITALL))[0]
        tcp = sock.recv(length, socket.MSG_WAITALL)
    for answer in (udp, tcp):
        ident, flags, _, answers = struct.unpack(">4H", answer[:8])
        assert (ident, flags & 15) == (0x1234, 0) and answers == 1, answer
    names = ["server", "server.demo", "server.demo.svc", "server.demo.svc.cluster.local"]
    seen = {socket.gethostbyname(name) for name in names}
    assert len(seen) == 1, seen
    try:
        socket.gethostbyname("nobody.demo.svc.cluster.local")
        raise AssertionError("a name that nobody has was answered")
    except socket.gaierror as error:
        assert error.errno == socket.EAI_NONAME, error
    return sorted(seen)[0]


def check_udp():
    """Datagrams to an instance pass the capture untouched."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.connect((socket.gethostbyname("server-pods"), 7006))
        sock.send(b"datagram")
        return sock.recv(100).decode()


def check_refused():
    """A port that the Service does not declare is refused, as in a cluster."""
    try:
        with dial(7999) as sock:
            sock.sendall(b"x")
            data = sock.recv(1)
        return f"closed {data!r}"
    except ConnectionError as error:
        return type(error).__name__


def check_direct():
    """An instance by its own address, through both sidecars."""
    with dial(7005, host="server-pods") as sock:
        request(sock, "/direct", "Connection: close\r\n")
        return read_all(sock).split(b"\r\n")[0].decode()


def until_there():
    """Pods start in any order."""
    deadline = time.monotonic() + 120
    while True:
        try:
            check_http()
            return
        except Exception:
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)


until_there()
def check_outside():
    """A program of the machine, outside of the mesh: HTTP, and bytes where it speaks first."""
    answers = []
    for port in sys.argv[3:5]:
        with socket.create_connection((sys.argv[2], int(port)), 60) as sock:
            if port == sys.argv[3]:
                request(sock, "/outside", "Connection: close\r\n")
            answers.append(read_all(sock).split(b"\r\n")[-1].decode())
    return answers


CHECKS = [check_dns, check_http, check_greeting, check_detection, check_half_close, check_websocket, check_udp,
          check_refused, check_direct, check_bulk]
if len(sys.argv) > 2:
    CHECKS.append(check_outside)
for check in CHECKS:
    name, began = check.__name__.removeprefix("check_"), time.monotonic()
    try:
        line = {"check": name, "result": check()}
    except Exception:
        line = {"check": name, "error": traceback.format_exc()}
    print(json.dumps({**line, "seconds": round(time.monotonic() - began, 2)}), flush=True)
print(json.dumps({"check": "all", "result": True}), flush=True)
time.sleep(1 << 20)
