# SPDX-License-Identifier: Apache-2.0
"""F22: a proxy that may have 128 MB, and clients that send heads without an end, bodies that nobody
reads (over HTTP/1 and HTTP/2), and that open thousands of HTTP/2 streams whose answers they do not
take. It refuses (503, closed, reset) before the kernel ends it, and serves everybody within 20
seconds of their leaving. The short form has fewer of them and no heads, and gives it a minute."""

import contextlib
import resource
import socket
import subprocess
import threading
import time

import bounds
from drill import Load, Origin, free_port
from mesh import WEFT, until

FILE = """
admin: 127.0.0.1:{admin}
access_log: 'off'
listeners: [{{name: web, bind: "127.0.0.1:{port}"}}]
routes:
  - rules:
      - {{path: /swallow, to: swallows}}
      - {{path: /large, to: large}}
      - {{to: up}}
backends:
  - {{name: up, endpoints: ["{up}"]}}
  - {{name: swallows, endpoints: ["127.0.0.1:{swallows}"]}}
  - {{name: large, endpoints: ["127.0.0.1:{large}"]}}
"""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# SETTINGS: streams of ours begin without a window; and none at all.
NO_WINDOW = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# As HPACK says GET /large, and POST /swallow, both of `a`.
GET_LARGE = b"\x82\x86\x44\x06/large\x41\x01a"
POST_SWALLOW = b"\x83\x86\x44\x08/swallow\x41\x01a"
ROUNDS = 40
# What weft takes of a stream that nobody reads.
WINDOW = 256 * 1024
# What others may see while it lasts.
KNOWN = {503, "late", "broken: ConnectionResetError", "broken: IncompleteReadError",
         "broken: BrokenPipeError"}


@contextlib.contextmanager
def listener(serve):
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as s:
        def accept():
            with contextlib.suppress(OSError):
                while True:
                    serve(s.accept()[0])
        threading.Thread(target=accept, daemon=True).start()
        yield s.getsockname()[1]


held = []


def large(stream):
    """As much as the proxy takes, without an end."""
    def send():
        with contextlib.suppress(OSError), stream:
            if stream.recv(65536):
                stream.sendall(b"HTTP/1.1 200 x\r\ncontent-length: 9000000000\r\n\r\n")
                while True:
                    stream.sendall(bytes(1 << 20))
    threading.Thread(target=send, daemon=True).start()


def frame(kind, flags, stream, bytes_):
    return len(bytes_).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + bytes_


def heads(number):
    first = b"GET / HTTP/1.1\r\nHost: a\r\n" if number == 0 else b""
    return first + b"X-%d: " % number + b"a" * 3_000 + b"\r\n"


def bodies(number):
    first = b"POST /swallow HTTP/1.1\r\nHost: a\r\nContent-Length: 90000000\r\n\r\n"
    return (first if number == 0 else b"") + bytes(60_000)


def streams(number):
    """A hundred streams, none of which may be sent anything."""
    if number > 0:
        return b""
    asked = [frame(1, 5, 2 * n + 1, GET_LARGE) for n in range(100)]
    return PREFACE + NO_WINDOW + b"".join(asked)


def uploads(number):
    """A hundred bodies at a time, of a window each: more would end the connection (RFC 9113 §6.9.1)."""
    if number == 0:
        asked = [frame(1, 4, 2 * n + 1, POST_SWALLOW) for n in range(100)]
        return PREFACE + SETTINGS + b"".join(asked)
    return b"".join(frame(0, 0, 2 * n + 1, bytes(WINDOW // ROUNDS)) for n in range(100))


# Who attacks with what, for each MiB of the limit.
ATTACKS = [("heads", 25, heads), ("bodies", 12, bodies), ("streams", 0.8, streams),
           ("uploads", 0.4, uploads)]


class Client:
    """Sends `data(0)`, `data(1)` and so on, as far as it is taken, and reads nothing."""

    def __init__(self, port, data):
        self.stream, self.data, self.number, self.left = None, data, 0, b""
        with contextlib.suppress(OSError):
            self.stream = socket.create_connection(("127.0.0.1", port), 5)
            self.stream.setblocking(False)

    def push(self):
        if self.stream is None or self.number >= ROUNDS:
            return
        self.left = self.left or self.data(self.number)
        try:
            self.left = self.left[self.stream.send(self.left):] if self.left else b""
        except BlockingIOError:
            return
        except OSError:
            self.close()
        if not self.left:
            self.number += 1

    def close(self):
        if self.stream is not None:
            self.stream.close()
            self.stream = None


class Attack:
    """So many clients do what they can until they are told to leave."""

    def __init__(self, port, count, data):
        self.port, self.count, self.data = port, count, data
        self.over, self.clients, self.pushed = threading.Event(), [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def run(self):
        while not self.over.is_set():
            if len(self.clients) < self.count:
                more = min(50, self.count - len(self.clients))
                self.clients.extend(Client(self.port, self.data) for _ in range(more))
            for client in self.clients:
                client.push()
            if len(self.clients) >= self.count and all(
                    c.stream is None or c.number >= ROUNDS or c.left for c in self.clients):
                self.pushed.set()
                self.over.wait(0.05)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(30)
        for client in self.clients:
            client.close()


def shed(admin):
    import requests
    # Its own door may be slow to answer meanwhile.
    text = requests.get(f"http://127.0.0.1:{admin}/stats/prometheus", timeout=60).text
    lines = [line for line in text.splitlines() if line.startswith("weft_shed_total")]
    return int(float(lines[0].split()[1]))


def run(whole, folder):
    folder.mkdir(parents=True, exist_ok=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    origin, port, admin = Origin(), free_port(), free_port()
    with listener(held.append) as sink, listener(large) as source:
        text = FILE.format(port=port, admin=admin, up=f"{origin.address}:{origin.port}",
                           swallows=sink, large=source)
        try:
            with bounds.memory(128) as bound:
                (folder / "edge.yaml").write_text(bound.word + text)
                return drill(whole, folder, bound, port, admin)
        finally:
            origin.kill()
            while held:
                held.pop().close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def drill(whole, folder, bound, port, admin):
    mib = bound.limit >> 20
    figures, refused, slowest, all_shed, peak = [], {}, 0, 0, 0
    with open(folder / "proxy.log", "wb") as log:
        words = [str(WEFT), "proxy", "-c", str(folder / "edge.yaml")]
        proxy = subprocess.Popen(bound.command(words), stdout=log, stderr=log)
    try:
        until("it serves", lambda: Load(port, 20, 0.1).run().count(200) == 2)
        for name, each, data in ATTACKS if whole else ATTACKS[1:]:
            before = shed(admin)
            with Attack(port, round(each * mib * (1 if whole else 0.6)), data) as attack:
                # On a busy machine it takes longer until all of it is there.
                attack.pushed.wait(15 if whole else 60)
                load = Load(port, 20, 5 if whole else 1, deadline=5).run()
                assert proxy.poll() is None, f"{name}: the proxy ended with {proxy.returncode}"
                peak = max(peak, bound.peak(proxy.pid))
            for status, n in load.others(200).items():
                refused[status] = refused.get(status, 0) + n
            while held:
                held.pop().close()
            began = time.monotonic()
            until(f"it serves everybody after {name}",
                  lambda: Load(port, 20, 0.2).run().count(200) == 4, 20 if whole else 60)
            slowest = max(slowest, time.monotonic() - began)
            figures.append(f"{name} {shed(admin) - before}")
            all_shed += shed(admin) - before
        killed = bound.killed()
    finally:
        proxy.terminate()
        proxy.wait(60)
    text = (f"F22 memory: alive with {mib} MB ({bound.kind}; at most {peak >> 20} used);"
            f" shed: {', '.join(figures)}; others meanwhile {refused or 'all answered'};"
            f" everybody served again {slowest:.1f} s after")
    assert killed == 0, f"{text}: the kernel ended {killed}"
    assert peak <= bound.limit, text
    assert b"panicked" not in (folder / "proxy.log").read_bytes()
    assert set(refused) <= KNOWN, text
    assert all_shed > 0, f"{text}: memory was never short"
    return text
