# SPDX-License-Identifier: Apache-2.0
"""weft beside Envoy itself: one bootstrap, the same bytes, the same outcome. What is compared is how
clients and backends are treated: sizes of heads, times, how long connections are used."""

import contextlib
import re
import socket
import struct
import subprocess
import threading
import time

import pytest
from mesh import BIN, free_port, until
from standalone import Proxy, Streams, listens
from test_envoy_bootstrap import bootstrap, cluster, host, listener, manager

ENVOY = BIN / "envoy"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# Seconds that `/later` takes. What must come before it has a second or more, for a busy machine.
LATER = 2.5


class Backend(Streams):
    """Counts connections and requests. `/slow` is never answered, `/later` after a while, `/drip`
    at once, the second half of it after a while, and of `/half` that half never."""

    def __init__(self):
        self.came, self.gone = 0, 0
        super().__init__()

    def serve(self, stream):
        self.came += 1
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                part = stream.recv(65536)
                if not part:
                    self.gone += 1
                    return
                data += part
            head, _, data = data.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            if path == b"/slow":
                continue
            if path == b"/later":
                time.sleep(LATER)
            stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
            if path == b"/half":
                continue
            if path == b"/drip":
                time.sleep(LATER)
            stream.sendall(b"k")


class Pinged(Streams):
    """A backend that speaks HTTP/2 and counts the PINGs it gets; every request is answered 200."""

    def __init__(self):
        self.pings = 0
        super().__init__()

    def serve(self, stream):
        stream.recv(24, socket.MSG_WAITALL)
        stream.sendall(frame(4))
        while head := stream.recv(9, socket.MSG_WAITALL):
            length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            data = stream.recv(length, socket.MSG_WAITALL) if length else b""
            if kind == 4 and not flags & 1:
                stream.sendall(frame(4, 1))
            elif kind == 6 and not flags & 1:
                self.pings += 1
                stream.sendall(frame(6, 1, data))
            elif kind == 1:
                # `:status: 200` of the static table; the headers and the stream end.
                stream.sendall(frame(1, 5, b"\x88", int.from_bytes(head[5:9], "big")))


def frame(kind, flags=0, data=b"", stream=0):
    return len(data).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + data


class Envoy:
    def __init__(self, path, port):
        self.log = open(path.with_suffix(".log"), "wb")
        words = [ENVOY, "-c", path, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log)
        until("Envoy listens", lambda: self.process.poll() is not None or listens(port))
        assert self.process.poll() is None, path.with_suffix(".log").read_text()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


def running(name, path, port):
    """Envoy, or weft, with a bootstrap."""
    return Envoy(path, port) if name == "envoy" else Proxy("--envoy", path, ready=port)


def outcomes(folder, observe, client=None, backend=None, route=None, up=Backend, **more):
    """What is observed of Envoy and of weft: `observe(port, backend)`. `more` is of the cluster."""
    said = []
    for name in ("envoy", "weft"):
        port = free_port()
        with up() as server:
            action = {"cluster": "up", **(route or {})}
            routes = [{"match": {"prefix": "/"}, "route": action}]
            said_of_clients = dict(client or {})
            if name == "weft":
                # weft has its own, and lists this one.
                said_of_clients.pop("drain_timeout", None)
            chain = manager([host(routes)], **said_of_clients)
            if backend is not None:
                options = {"@type": f"type.googleapis.com/{OPTIONS}",
                           "explicit_http_config": {"http_protocol_options": {}}, **backend}
                more["typed_extension_protocol_options"] = {OPTIONS: options}
            path = bootstrap(folder / f"{name}.json", [listener("web", port, chain)],
                             [cluster("up", server.port, **more)])
            with running(name, path, port):
                said.append(observe(port, server))
    return said


def connect(port):
    return socket.create_connection(("127.0.0.1", port), 20)


def ask(stream, path="/", headers=""):
    """A request, and its answer's status and whether the connection goes on: `(0, False)` when there
    is no answer."""
    with contextlib.suppress(ConnectionError):
        stream.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n".encode())
        return answer(stream)
    return 0, False


def answer(stream):
    data = b""
    while b"\r\n\r\n" not in data:
        part = stream.recv(65536)
        if not part:
            return 0, False
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:])
    while len(body) < int(fields.get("content-length", 0)):
        part = stream.recv(65536)
        if not part:
            return 0, False
        body += part
    return int(lines[0].split()[1]), fields.get("connection") != "close"


def is_closed(stream):
    """It ends, sooner or later, without a byte."""
    stream.settimeout(30)
    try:
        return stream.recv(1) == b""
    except ConnectionResetError:
        return True


def one(path="/", headers=""):
    def observe(port, _):
        with connect(port) as stream:
            return ask(stream, path, headers)[0]
    return observe


def head_of(size):
    return f"x: {'y' * size}\r\n"


def headers(count):
    return "".join(f"x-{n}: y\r\n" for n in range(count))


COMMON = "common_http_protocol_options"
TRY = {"timeout": "8s", "retry_policy": {"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "1s"}}


@pytest.mark.parametrize(("observe", "client", "wanted"), [
    (one(headers=head_of(7_000)), {"max_request_headers_kb": 8}, 200),
    (one(headers=head_of(9_000)), {"max_request_headers_kb": 8}, 431),
    (one(headers=headers(20)), {COMMON: {"max_headers_count": 40}}, 200),
    (one(headers=headers(60)), {COMMON: {"max_headers_count": 40}}, 431),
    (one("/slow"), {COMMON: {"max_stream_duration": "0.5s"}}, 504),
    (one("/slow"), {"stream_idle_timeout": "0.5s"}, 504),
    (one("/later"), {COMMON: {"max_stream_duration": "8s"}}, 200),
    (one("/later"), {"request_headers_timeout": "2s"}, 200),
], ids=["small head", "large head", "few headers", "many headers", "long stream", "idle stream",
        "stream in time", "head in time"])
def test_a_clients_request_has_the_same_answer(tmp_path, observe, client, wanted):
    assert outcomes(tmp_path, observe, client) == [wanted, wanted]


@pytest.mark.parametrize(("route", "path", "wanted"), [
    ({"timeout": "0.5s"}, "/slow", 504),
    ({"timeout": "8s"}, "/later", 200),
    ({"max_stream_duration": {"max_stream_duration": "0.5s"}, "timeout": "0s"}, "/slow", 504),
    ({"idle_timeout": "0.5s", "timeout": "0s"}, "/slow", 504),
    (TRY, "/later", 504),
    (TRY, "/drip", 200),
    ({"timeout": "3s"}, "/half", 0),
], ids=["time-out", "in time", "stream", "idle", "try", "try that has begun", "answer"])
def test_a_routes_times_end_in_the_same_answer(tmp_path, route, path, wanted):
    assert outcomes(tmp_path, one(path), route=route) == [wanted, wanted]


@pytest.mark.parametrize("redirect", [
    {"path_redirect": "/new"},
    {"https_redirect": True},
    {"scheme_redirect": "https", "path_redirect": "/new"},
    {"host_redirect": "b.example"},
    {"host_redirect": "b.example:8443", "https_redirect": True},
    {"host_redirect": "b.example", "port_redirect": 8443},
    {"port_redirect": 8443},
], ids=lambda redirect: ",".join(redirect))
def test_a_redirect_leads_to_the_same_place(tmp_path, redirect):
    said = []
    for name in ("envoy", "weft"):
        port = free_port()
        routes = [{"match": {"prefix": "/"}, "redirect": redirect}]
        path = bootstrap(tmp_path / f"{name}.json", [listener("web", port, manager([host(routes)]))], [])
        with running(name, path, port), connect(port) as stream:
            for written in ("a.example", "a.example:80", "a.example:9000"):
                stream.sendall(f"GET /old?q=1 HTTP/1.1\r\nhost: {written}\r\n\r\n".encode())
                head = b""
                while b"\r\n\r\n" not in head:
                    head += stream.recv(65536)
                fields = dict(re.findall(r"(?mi)^([a-z-]+): (.*?)\r$", head.decode()))
                # What a port says that is the scheme's own may be left out.
                said.append(fields["location"].replace("http://a.example:80/", "http://a.example/"))
    assert said[:3] == said[3:]


def test_bytes_go_through_an_egress_proxy_by_connect(tmp_path):
    """Envoy lets `CONNECT allowed.example:443` through to a server that speaks first, and no other."""
    class Greets(Streams):
        greeting = b"220 ready\r\n"

        def serve(self, stream):
            stream.sendall(self.greeting)
            while part := stream.recv(65536):
                stream.sendall(part)

    server, greeting = Greets(), Greets.greeting
    egress = free_port()
    routes = [{"match": {"connect_matcher": {}},
               "route": {"cluster": "up",
                         "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}}]
    chain = manager([host(routes, domains=["allowed.example:443"])],
                    upgrade_configs=[{"upgrade_type": "CONNECT"}])
    path = bootstrap(tmp_path / "egress.json", [listener("egress", egress, chain)],
                     [cluster("up", server.port)])
    ports = {"allowed.example": free_port(), "other.example": free_port()}
    files = tmp_path / "weft.yaml"
    parts = [[], [], []]
    for name, port in ports.items():
        parts[0].append(f"- {{name: {name}, bind: '127.0.0.1:{port}', protocol: tcp}}")
        parts[1].append(f"- {{listeners: [{name}], rules: [{{to: {name}}}]}}")
        through = f"connections: {{through: {{host: {name}, port: 443}}}}"
        parts[2].append(f"- {{name: {name}, protocol: tcp, endpoints: '127.0.0.1:{egress}',"
                        f" policy: {{{through}}}}}")
    files.write_text("".join(f"{what}:\n" + "\n".join(part) + "\n" for what, part in
                             zip(("listeners", "routes", "backends"), parts, strict=True)))
    sent = bytes(range(256)) * 4096
    with server, Envoy(path, egress), \
            Proxy("-c", files, ready=ports["other.example"]) as proxy:
        until("the other listens, too", lambda: listens(ports["allowed.example"]))
        with connect(ports["allowed.example"]) as stream:
            threading.Thread(target=stream.sendall, args=(sent,), daemon=True).start()
            got = b""
            while len(got) < len(greeting) + len(sent):
                part = stream.recv(65536)
                assert part, f"closed after {len(got)} bytes:\n{proxy.text()}"
                got += part
        assert got == greeting + sent
        # It is reset, maybe before it is looked at.
        with contextlib.suppress(ConnectionResetError), connect(ports["other.example"]) as stream:
            assert is_closed(stream)
        proxy.says("refused the tunnel with status 404")


def test_a_head_that_does_not_come_is_not_waited_for(tmp_path):
    def observe(port, _):
        with connect(port) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nhost:")
            return answer(stream)

    assert outcomes(tmp_path, observe, {"request_headers_timeout": "0.5s"}) == [(408, False)] * 2


def test_a_connection_takes_so_many_requests(tmp_path):
    def observe(port, _):
        with connect(port) as stream:
            return [ask(stream) for _ in range(3)] + [is_closed(stream)]

    wanted = [(200, True), (200, True), (200, False), True]
    assert outcomes(tmp_path, observe, {COMMON: {"max_requests_per_connection": 3}}) == [wanted] * 2


@pytest.mark.parametrize("name", ["idle_timeout", "max_connection_duration"])
def test_a_connection_is_closed_in_time(tmp_path, name):
    def observe(port, _):
        with connect(port) as stream:
            return ask(stream)[0], is_closed(stream)

    client = {COMMON: {name: "3s"}, "drain_timeout": "0.1s"}
    assert outcomes(tmp_path, observe, client) == [(200, True)] * 2


def test_a_connection_that_is_too_old_finishes_what_is_asked(tmp_path):
    def observe(port, _):
        with connect(port) as stream:
            return ask(stream, "/later")[0], is_closed(stream)

    client = {COMMON: {"max_connection_duration": "2s"}, "drain_timeout": "8s"}
    assert outcomes(tmp_path, observe, client) == [(200, True)] * 2


def test_a_backends_connection_takes_so_many_requests(tmp_path):
    def observe(port, backend):
        with connect(port) as stream:
            answers = [ask(stream)[0] for _ in range(6)]
        return answers, backend.came

    backend = {COMMON: {"max_requests_per_connection": 2}}
    assert outcomes(tmp_path, observe, backend=backend) == [([200] * 6, 3)] * 2


def test_a_backends_idle_connection_is_closed(tmp_path):
    def observe(port, backend):
        with connect(port) as stream:
            first = ask(stream)[0]
            until("the backend's connection is closed", lambda: backend.gone == 1)
            return first, ask(stream)[0], backend.came

    backend = {COMMON: {"idle_timeout": "0.5s"}}
    assert outcomes(tmp_path, observe, backend=backend) == [(200, 200, 2)] * 2


def test_a_backend_of_http2_is_asked_whether_it_is_there(tmp_path):
    def observe(port, backend):
        with connect(port) as stream:
            first = ask(stream)[0]
            until("it is asked again and again", lambda: backend.pings >= 3)
            return first, ask(stream)[0]

    often = {"connection_keepalive": {"interval": "0.3s", "timeout": "5s"}}
    explicit = {"explicit_http_config": {"http2_protocol_options": often}}
    assert outcomes(tmp_path, observe, backend=explicit, up=Pinged) == [(200, 200)] * 2


def test_a_silent_backend_is_probed_by_the_kernel(tmp_path):
    """What the kernel says of the proxy's own end of the connection."""
    def observe(port, backend):
        with connect(port) as stream:
            status = ask(stream)[0]
            command = ["ss", "-tnoH", "state", "established", f"dport = {backend.port}"]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            [left] = re.findall(r"timer:\(keepalive,(\S+?),", told)
            # Of 77 seconds a few are over.
            return status, left.startswith("1min1")

    keepalive = {"keepalive_time": 77, "keepalive_interval": 5, "keepalive_probes": 3}
    options = {"upstream_connection_options": {"tcp_keepalive": keepalive}}
    assert outcomes(tmp_path, observe, **options) == [(200, True)] * 2


def test_a_connection_of_http2_has_so_many_streams(tmp_path):
    """What its SETTINGS say (RFC 9113 §6.5.2)."""
    def observe(port, _):
        with connect(port) as stream:
            stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            head = stream.recv(9, socket.MSG_WAITALL)
            length, kind = int.from_bytes(head[:3], "big"), head[3]
            assert kind == 4, head
            said = stream.recv(length, socket.MSG_WAITALL)
            return dict(struct.iter_unpack("!HI", said))[3]

    client = {"codec_type": "HTTP2", "http2_protocol_options": {"max_concurrent_streams": 17}}
    assert outcomes(tmp_path, observe, client) == [17, 17]
