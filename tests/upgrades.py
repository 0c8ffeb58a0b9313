# SPDX-License-Identifier: Apache-2.0
"""Processes that take each other's place, and clients of one kind each that go on meanwhile. A
client counts what it did (`done`) and what went wrong (`wrong`), until it is told to end."""

import contextlib
import socket
import struct
import threading
import time

import grpc

from mesh import until
from standalone import Proxy

# What a client waits for at most: for more than a machine that does something else, too, takes.
PATIENCE = 60


class Line:
    """One process after the other, each `weft proxy` with the same words."""

    def __init__(self, *words, door, ready, drain=600):
        self.words, self.door = [*words, "--handover", door, "--drain-time", drain], door
        self.all = [Proxy(*self.words, ready=ready)]
        until("it can be replaced", door.exists)

    @property
    def newest(self):
        return self.all[-1]

    @property
    def older(self):
        return self.all[:-1]

    def upgrade(self):
        self.all.append(Proxy(*self.words))
        pid = self.newest.process.pid

        def replaced():
            assert self.newest.process.poll() is None, self.newest.text()
            return owner(self.door) == pid

        until("the newer one has the door", replaced)

    def upgrades(self, times, *clients):
        """So many, and each client does something between any two of them."""
        for _ in range(times):
            self.upgrade()
            self.have_gone_on(*clients)

    def have_gone_on(self, *clients):
        before = [client.done for client in clients]
        until("clients go on", lambda: all(
            client.done >= done + client.enough or client.wrong
            for client, done in zip(clients, before)), PATIENCE)

    def end(self):
        """The older ones have ended by themselves, the newest one is asked to."""
        for proxy in self.older:
            assert proxy.process.wait(60) == 0, proxy.text()
            assert "panicked" not in proxy.text()
        assert self.newest.stop() == 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for proxy in self.all:
            if error[0] and proxy.process.poll() is None:
                proxy.process.kill()
            proxy.process.wait(60)


def owner(path):
    """Who answers at a Unix socket."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return struct.unpack("3i", raw)[0]
    except OSError:
        return None


class Client:
    """Does `once` again and again in a thread of its own."""

    # How much of it between two upgrades is enough.
    enough = 3

    def __init__(self):
        self.done, self.wrong, self.over = 0, [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def begin(self):
        pass

    def once(self):
        raise NotImplementedError

    def finish(self):
        pass

    def run(self):
        try:
            self.begin()
            while not self.over.is_set() and not self.wrong:
                self.once()
                self.done += 1
            self.finish()
        except Exception as error:
            self.wrong.append(f"{type(error).__name__} after {self.done}: {error}")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(2 * PATIENCE)
        assert not self.thread.is_alive(), f"{type(self).__name__} does not end"


class Calls(Client):
    """gRPC: streams of both kinds that are open for a while, and short calls beside them."""

    def __init__(self, port, method, messages=20):
        super().__init__()
        self.port, self.method, self.messages = port, method, messages

    def begin(self):
        # A connection of its own, not one that another client has already.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options)

    def once(self):
        if self.method == "Echo":
            answer = self.channel.unary_unary("/t.T/Echo")(b"x", timeout=PATIENCE)
            assert answer == b"x", answer
        elif self.method == "Some":
            call = self.channel.unary_stream("/t.T/Some")(b"%d" % self.messages, timeout=PATIENCE)
            got = list(call)
            assert got == [b"%d" % n for n in range(self.messages)], got
        else:
            sent = (self.slowly(n) for n in range(self.messages))
            got = list(self.channel.stream_stream("/t.T/Both")(sent, timeout=PATIENCE))
            assert got == [b"M%d" % n for n in range(self.messages)], got

    def slowly(self, n):
        time.sleep(0.02)
        return b"m%d" % n

    def finish(self):
        self.channel.close()


def server_of_calls(threads=64):
    """A server of gRPC, and its port."""
    import concurrent.futures

    def some(request, _):
        for n in range(int(request)):
            time.sleep(0.02)
            yield b"%d" % n

    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
        "Some": grpc.unary_stream_rpc_method_handler(some),
        "Both": grpc.stream_stream_rpc_method_handler(lambda all, _: (m.upper() for m in all)),
    }
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(threads))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.T", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


class Echo:
    """A TCP server that sends back what it is sent; to a request for a WebSocket it says yes
    first. It counts its connections."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port, self.came = self.socket.getsockname()[1], 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self.came += 1
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with contextlib.suppress(OSError), connection:
            data = connection.recv(65536)
            if data.startswith(b"GET "):
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                data = data.partition(b"\r\n\r\n")[2]
                connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n"
                                   b"upgrade: websocket\r\n\r\n" + data)
                data = connection.recv(65536)
            while data:
                connection.sendall(data)
                data = connection.recv(65536)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


class Bytes(Client):
    """One TCP connection that stays, bytes both ways at once; or a fresh one each time."""

    def __init__(self, port, fresh=False, size=200_000):
        super().__init__()
        self.port, self.fresh, self.size, self.stream = port, fresh, size, None

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def once(self):
        if self.stream is None:
            self.stream = self.connect()
        sent = bytes([self.done % 251]) * self.size
        sending = threading.Thread(target=self.stream.sendall, args=(sent,), daemon=True)
        sending.start()
        got = receive(self.stream, len(sent))
        assert got == sent, f"{len(got)} of {len(sent)} bytes came back"
        sending.join(PATIENCE)
        if self.fresh:
            self.finish()

    def finish(self):
        if self.stream:
            # Half closed: the other side's end comes through, too.
            self.stream.shutdown(socket.SHUT_WR)
            assert self.stream.recv(1) == b""
            self.stream.close()
        self.stream = None


class WebSocket(Bytes):
    """A connection that another protocol is spoken on after a request."""

    def connect(self):
        stream = super().connect()
        stream.sendall(b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n"
                       b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
                       b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += receive(stream, 1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        return stream


def receive(stream, count):
    """So many bytes, or what came before the end."""
    got = bytearray()
    while len(got) < count:
        part = stream.recv(min(65536, count - len(got)))
        if not part:
            break
        got += part
    return bytes(got)


class Named:
    """A UDP server that puts its name before what it sends back."""

    def __init__(self, name):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port, self.name = self.socket.getsockname()[1], name
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                data, client = self.socket.recvfrom(65536)
                self.socket.sendto(self.name + data, client)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


class Datagrams(Client):
    """A client's datagrams, one after the other: who answers, and how many are not answered."""

    enough = 20

    def __init__(self, port, own="127.0.0.1"):
        super().__init__()
        self.port, self.own, self.lost, self.by = port, own, 0, []

    def begin(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((self.own, 0))
        self.socket.connect(("127.0.0.1", self.port))
        self.socket.settimeout(PATIENCE / 4)

    def once(self):
        sent = b":%d" % self.done
        self.socket.send(sent)
        try:
            name, _, number = self.socket.recv(65536).partition(b":")
            assert b":" + number == sent, (sent, number)
        except TimeoutError:
            self.lost += 1
            return
        if not self.by or self.by[-1] != name:
            self.by.append(name)
        time.sleep(0.005)
