# SPDX-License-Identifier: Apache-2.0
"""Gateways below HTTP, with real clients: dig, openssl, curl, sockets that misbehave."""

import contextlib
import hashlib
import os
import re
import resource
import socket
import ssl
import struct
import subprocess
import threading
import time

import pytest

from mesh import BIN, Mesh, free_port, until

GATEWAY = """
apiVersion: v1
kind: Namespace
metadata: {{name: edge}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: low
  namespace: edge
  annotations: {{weft.dev/accept-proxy-protocol: "required: told"}}
spec:
  gatewayClassName: weft
  addresses: [{{value: 127.0.0.1}}]
  listeners:
    - {{name: names, protocol: UDP, port: {names}}}
    - {{name: names-tcp, protocol: TCP, port: {names}}}
    - {{name: passed, protocol: TLS, port: {tls}, tls: {{mode: Passthrough}}}}
    - {{name: bulk, protocol: TCP, port: {bulk}}}
    - {{name: far, protocol: TCP, port: {far}}}
    - {{name: told, protocol: HTTP, port: {told}}}
    - {{name: web, protocol: HTTP, port: {web}}}
---
{routes}
"""


def route(kind, name, section, service, port, extra=""):
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: edge}}
spec:
  parentRefs: [{{name: low, sectionName: {section}}}]
  {extra}
  rules: [{{backendRefs: [{{name: {service}, port: {port}}}]}}]
---"""


def service(name, port, target, protocol="TCP", annotations="{}"):
    """A Service that leads to one address on loopback."""
    host, number = target
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: edge, annotations: {annotations}}}
spec: {{ports: [{{name: tcp, port: {port}, protocol: {protocol}, targetPort: {number}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: edge, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: tcp, port: {number}, protocol: {protocol}}}]
endpoints: [{{addresses: [{host}], conditions: {{ready: true}}}}]
---"""


# Another machine, as far as packets go.
NEAR, FAR = "10.199.77.1", "10.199.77.2"


class Server:
    """A TCP server of the test's own: `serve(connection)` in a thread each."""

    def __init__(self, serve):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = self.socket.getsockname()
        self.serve = serve
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection):
        with contextlib.suppress(OSError, ssl.SSLError), connection:
            self.serve(connection)


def certificate(folder, name):
    path = folder / name
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", f"/CN={name}",
                    "-addext", f"subjectAltName=DNS:{name}", "-keyout", f"{path}.key",
                    "-out", f"{path}.pem"], check=True, capture_output=True)
    return f"{path}.pem", f"{path}.key"


def tls_server(folder, name):
    pem, key = certificate(folder, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)

    def serve(connection):
        with context.wrap_socket(connection, server_side=True) as stream:
            stream.recv(65536)
            stream.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + name.encode())

    return Server(serve), pem


def echo_head(connection):
    """Says in an answer what came before the request, and who is said to have sent it."""
    seen = b""
    while b"\r\n\r\n" not in seen.partition(b"GET ")[2]:
        more = connection.recv(65536)
        if not more:
            return
        seen += more
    connection.sendall(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + seen)


BLOCK = bytes(range(251)) * 4177  # a bit under 1 MiB, of no power of two
BLOCKS = 1024 * 1024 * 1024 // len(BLOCK) + 1


def bulk(connection):
    """Sends what it is asked for, then tells the digest of what it is sent until the end."""
    wanted = struct.unpack("!I", connection.recv(4, socket.MSG_WAITALL))[0]
    for _ in range(wanted):
        connection.sendall(BLOCK)
    digest, buffer, n = hashlib.sha1(), bytearray(1 << 20), 0
    while n := connection.recv_into(buffer):
        digest.update(memoryview(buffer)[:n])
    connection.sendall(digest.digest())


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    folder = tmp_path_factory.mktemp("l4")
    ports = {name: free_port() for name in ("names", "tls", "bulk", "far", "told", "web")}
    one, one_pem = tls_server(folder, "one.example")
    two, two_pem = tls_server(folder, "a.two.example")
    head, much = Server(echo_head), Server(bulk)
    routes = "".join([
        service("one", 443, one.address), service("two", 443, two.address),
        service("head", 80, head.address), service("much", 80, much.address),
        service("head-v2", 80, head.address, annotations="{weft.dev/send-proxy-protocol: v2}"),
        route("TLSRoute", "one", "passed", "one", 443, "hostnames: [one.example]"),
        route("TLSRoute", "two", "passed", "two", 443, 'hostnames: ["*.two.example"]'),
        route("UDPRoute", "names", "names", "dns", 53),
        route("TCPRoute", "names", "names-tcp", "dns-tcp", 53),
        route("TCPRoute", "bulk", "bulk", "much", 80),
        service("far", 80, (FAR, 8080)), route("TCPRoute", "far", "far", "far", 80),
        route("HTTPRoute", "told", "told", "head", 80),
        route("HTTPRoute", "web", "web", "head", 80),
        f"""
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: tunnel, namespace: edge}}
spec:
  parentRefs: [{{name: low, sectionName: web}}]
  hostnames: [tunnel.example]
  rules:
    - matches: [{{method: CONNECT}}]
      backendRefs: [{{name: head-v2, port: 80}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: away, namespace: edge}}
spec:
  parentRefs: [{{name: low, sectionName: web}}]
  hostnames: [away.example]
  rules: [{{filters: [{{type: RequestRedirect, requestRedirect: {{hostname: elsewhere.example}}}}]}}]
"""])
    (folder / "m.yaml").write_text(GATEWAY.format(routes=routes, **ports))
    mesh = Mesh(folder / "m.yaml", folder / "data").start()
    mesh.at, mesh.pem = ports, {"one.example": one_pem, "a.two.example": two_pem}
    try:
        # Its own DNS server is the one behind the gateway.
        dns = ("127.0.0.1", mesh.dns_port)
        mesh.kubectl("apply", "-f", "-",
                     stdin=service("dns", 53, dns, "UDP") + service("dns-tcp", 53, dns))
        until("the gateway is there", lambda: ask(mesh, "web", b"").startswith(b"HTTP/1.0 200")
              or ask(mesh, "web", b"").startswith(b"HTTP/1.1 200"))
        yield mesh
    finally:
        mesh.stop()
    assert "panicked" not in mesh.log_text()


def ask(mesh, port, before, host="x.example", method="GET /"):
    said = b""
    with socket.create_connection(("127.0.0.1", mesh.at[port]), 30) as stream:
        with contextlib.suppress(ConnectionError):
            stream.sendall(before + f"{method} HTTP/1.1\r\nHost: {host}\r\n"
                           "Connection: close\r\n\r\n".encode())
            while more := stream.recv(65536):
                said += more
    return said


def dig(port, *args):
    done = subprocess.run([str(BIN / "dig"), "@127.0.0.1", "-p", str(port), "+tries=1", "+time=10",
                           *args], capture_output=True, text=True, timeout=60)
    return done.stdout


def test_dig_asks_over_udp_and_tcp_on_one_port(low):
    name = "dns.edge.svc.cluster.local"
    direct = until("the name is known", lambda: dig(low.dns_port, name, "A", "+short").split())
    assert direct and re.match(r"\d+\.", direct[0]), direct
    through = until("UDP", lambda: dig(low.at["names"], name, "A", "+short", "+notcp").split())
    assert through == direct
    until("TCP", lambda: dig(low.at["names"], name, "A", "+short", "+tcp").split() == direct)
    for i in range(50):
        answer = dig(low.at["names"], f"no-{i}.edge.svc.cluster.local", "+notcp")
        assert "status: NXDOMAIN" in answer, answer


def s_client(low, *args):
    done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{low.at['tls']}",
                           "-showcerts", *args], input="GET / HTTP/1.0\r\n\r\n", text=True,
                          capture_output=True, timeout=60)
    return done.stdout + done.stderr


def test_openssl_and_curl_get_the_server_that_they_name(low):
    for name in ("one.example", "a.two.example"):
        for version in ("-tls1_2", "-tls1_3"):
            said = s_client(low, version, "-servername", name, "-CAfile", low.pem[name])
            assert f"subject=CN = {name}" in said and "Verify return code: 0" in said, said
        done = subprocess.run(["curl", "-sS", "--cacert", low.pem[name], "--resolve",
                               f"{name}:{low.at['tls']}:127.0.0.1", "--http1.1",
                               f"https://{name}:{low.at['tls']}/"], capture_output=True, text=True)
        assert done.stdout == name, done
    # A name that nobody serves, and none.
    for args in (("-servername", "two.example"), ("-noservername",)):
        said = s_client(low, *args)
        assert "no peer certificate available" in said, said


def test_the_status_says_what_is_served(low):
    gateway = low.get("/apis/gateway.networking.k8s.io/v1/namespaces/edge/gateways/low").json()
    listeners = {one["name"]: one for one in gateway["status"]["listeners"]}
    attached = {name: one["attachedRoutes"] for name, one in listeners.items()}
    assert attached == {"names": 1, "names-tcp": 1, "passed": 2, "bulk": 1, "far": 1, "told": 1,
                        "web": 3}
    assert listeners["names"]["supportedKinds"][0]["kind"] == "UDPRoute"
    for kind in ("tlsroutes", "tcproutes", "udproutes"):
        def resolved(kind=kind):
            for item in low.get(f"/apis/gateway.networking.k8s.io/v1/{kind}").json()["items"]:
                for parent in item["status"]["parents"]:
                    states = {c["type"]: c["status"] for c in parent["conditions"]}
                    assert states["Accepted"] == states["ResolvedRefs"] == "True", item
            return True
        # The Services of names were made when the Gateway was there.
        until(f"{kind} are resolved", resolved)


def test_clients_are_who_the_proxy_protocol_says(low):
    said = ask(low, "told", b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443\r\n")
    assert b"x-forwarded-for: 192.0.2.7\r\n" in said.lower(), said
    assert ask(low, "told", b"") == b""
    assert ask(low, "told", b"PROXY TCP4 192.0.2.7\r\n") == b""
    done = subprocess.run(["curl", "-sS", "--haproxy-protocol",
                           f"http://127.0.0.1:{low.at['told']}/"], capture_output=True, text=True)
    assert "x-forwarded-for: 127.0.0.1" in done.stdout.lower(), done


def test_reg_05_connect_is_off_and_opened_by_a_rule_that_names_it(low):
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.create_connection(("127.0.0.1", low.at["web"]), 60) as stream:
        stream.sendall(b"CONNECT x.example:80 HTTP/1.1\r\nHost: x.example:80\r\n\r\n" + smuggled)
        said = b"".join(iter(lambda: stream.recv(65536), b""))
    assert said.startswith(b"HTTP/1.1 405") and said.count(b"HTTP/1.") == 1, said
    assert b"smuggled" not in said
    # A rule leads to its own backend, whatever port the client names. That backend is told who
    # the client is.
    with socket.create_connection(("127.0.0.1", low.at["web"]), 60) as stream:
        stream.sendall(b"CONNECT tunnel.example:22 HTTP/1.1\r\nHost: tunnel.example:22\r\n\r\n"
                       + smuggled)
        own = stream.getsockname()[1]
        said = b"".join(iter(lambda: stream.recv(65536), b""))
    head, _, inside = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), said
    begins = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01" + struct.pack(
        "!HH", own, low.at["web"])
    assert begins + smuggled in inside, said


def test_a_gigabyte_goes_both_ways_to_the_byte(low):
    with socket.create_connection(("127.0.0.1", low.at["bulk"]), 30) as stream:
        stream.sendall(struct.pack("!I", BLOCKS))
        digest, buffer, left = hashlib.sha1(), bytearray(1 << 20), BLOCKS * len(BLOCK)
        while left:
            n = stream.recv_into(buffer)
            assert n, left
            digest.update(memoryview(buffer)[:n])
            left -= n
        mine = hashlib.sha1()
        for _ in range(BLOCKS):
            mine.update(BLOCK)
        assert digest.digest() == mine.digest()
        for _ in range(BLOCKS):
            stream.sendall(BLOCK)
        # Our end is over, the other still speaks.
        stream.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: stream.recv(64), b"")) == mine.digest()


def test_f17_a_herd_of_connections_is_served(low):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    many, slack = (5_000, 1) if os.environ.get("FULL") else (500, 20)
    request = b"GET / HTTP/1.1\r\nHost: away.example\r\n\r\n"
    began, streams = time.monotonic(), []
    try:
        for i in range(many):
            stream = socket.socket()
            stream.setblocking(False)
            stream.connect_ex(("127.0.0.1", low.at["web"]))
            streams.append(stream)
        connected = time.monotonic() - began
        for stream in streams:
            stream.settimeout(60)
            stream.sendall(request)
        for stream in streams:
            assert stream.recv(64).startswith(b"HTTP/1.1 302")
        took = time.monotonic() - began
    finally:
        for stream in streams:
            stream.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(f"F17: {many} connections made in {connected:.2f} s, all answered after {took:.2f} s")
    assert connected <= slack and took <= 3 * slack


SAYS = """
import socket
server = socket.create_server(("0.0.0.0", 8080))
while True:
    stream, _ = server.accept()
    stream.sendall(b"here")
    kept = globals().setdefault("kept", [])
    kept.append(stream)
"""


@pytest.fixture
def cable():
    """Another network with a server in it, behind a cable that can be pulled."""
    there = subprocess.Popen(["unshare", "--net", "sh", "-c",
                              f"while ! ip addr add {FAR}/30 dev far; do sleep 0.1; done; "
                              f"ip link set far up; exec python3 -c '{SAYS}'"],
                             stderr=subprocess.DEVNULL)
    try:
        until("it has a network of its own", lambda: os.readlink(f"/proc/{there.pid}/ns/net")
              != os.readlink("/proc/self/ns/net"))
        ip = ["ip", "link", "add", "near-l4", "type", "veth", "peer", "name", "far", "netns",
              str(there.pid)]
        subprocess.run(ip, check=True)
        subprocess.run(["ip", "addr", "add", f"{NEAR}/30", "dev", "near-l4"], check=True)
        subprocess.run(["ip", "link", "set", "near-l4", "up"], check=True)
        yield lambda: subprocess.run(["nsenter", "-t", str(there.pid), "-n", "ip", "addr", "flush",
                                      "dev", "far"], check=True)
    finally:
        subprocess.run(["ip", "link", "del", "near-l4"], stderr=subprocess.DEVNULL)
        there.kill()
        there.wait()


@pytest.mark.root
def test_f16_a_peer_that_is_gone_without_a_word_is_given_up(low, cable):
    def opened():
        stream = socket.create_connection(("127.0.0.1", low.at["far"]), 5)
        stream.settimeout(60)
        return stream if stream.recv(4) == b"here" else None

    stream = until("the server answers", opened)
    cable()
    began = time.monotonic()
    stream.sendall(b"is anybody there?")
    with pytest.raises(ConnectionResetError):
        assert stream.recv(4) != b"", "an orderly end"
    took = time.monotonic() - began
    print(f"F16: given up after {took:.1f} s")
    # Who does not notice sends again for a quarter of an hour.
    assert 3 < took < (15 if os.environ.get("FULL") else 60)


def gateway_process(mesh):
    for pid in mesh.tree():
        with contextlib.suppress(OSError):
            command = open(f"/proc/{pid}/cmdline").read().split("\0")
            if "proxy" in command and any(part.startswith("gateway~") for part in command):
                return pid
    raise AssertionError("no gateway")


def cpu_ticks(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_f19_reg_64_descriptors_run_out_and_the_proxy_stays_manageable(tmp_path):
    port = free_port()
    objects = GATEWAY.split("  listeners:")[0] + f"""  listeners:
    - {{{{name: web, protocol: HTTP, port: {port}}}}}
---
""" + """apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: away, namespace: edge}}
spec:
  parentRefs: [{{name: low}}]
  rules: [{{filters: [{{type: RequestRedirect, requestRedirect: {{hostname: elsewhere.example}}}}]}}]
"""
    (tmp_path / "m.yaml").write_text(objects.replace("required: told", "optional: none").format())
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

    def answered(seconds=5):
        with socket.create_connection(("127.0.0.1", port), seconds) as stream:
            stream.sendall(request)
            return stream.recv(64).startswith(b"HTTP/1.1 302")

    with Mesh(tmp_path / "m.yaml", tmp_path / "data", prefix=["prlimit", "--nofile=256:256"],
              extra=["--pods=process"]) as mesh:
        until("the gateway answers", answered)
        pid = gateway_process(mesh)
        admin = admin_of(pid, port)
        streams = []
        for _ in range(1_000):
            stream = socket.socket()
            stream.setblocking(False)
            stream.connect_ex(("127.0.0.1", port))
            streams.append(stream)
        until("descriptors are in use", lambda: len(os.listdir(f"/proc/{pid}/fd")) > 150)
        full, shares = os.environ.get("FULL"), []
        most = 0.05 if full else 0.25
        # Who tries again and again is busy in each of the windows.
        while len(shares) < (1 if full else 4) and (not shares or shares[-1] > most):
            before, began = cpu_ticks(pid), time.monotonic()
            for _ in range(4):
                assert ready(admin), "the admin door does not answer"
                time.sleep(0.5)
            took = time.monotonic() - began
            shares.append((cpu_ticks(pid) - before) / os.sysconf("SC_CLK_TCK") / took)
        share = min(shares)
        for stream in streams:
            stream.close()
        began = time.monotonic()
        until("it answers again", lambda: answered(1 if full else 5))
        took = time.monotonic() - began
        print(f"F19: {share:.1%} of a core while descriptors are short; "
              f"first answer {took:.2f} s after clients left")
        # Who does not try again does not answer for as long as it is waited for.
        assert share <= most and (took <= 1 or not full), (share, took)
    assert "panicked" not in mesh.log_text()


def listening(pid):
    """The addresses where a process listens."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    for line in open(f"/proc/{pid}/net/tcp").read().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            host, number = fields[1].split(":")
            host = socket.inet_ntoa(struct.pack("<I", int(host, 16)))
            yield host, int(number, 16)


def ready(at):
    with contextlib.suppress(OSError), socket.create_connection(at, 20) as stream:
        stream.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return stream.recv(64).startswith(b"HTTP/1.1 200")
    return False


def admin_of(pid, gateway):
    for at in listening(pid):
        if at[1] != gateway and ready(at):
            return at
    raise AssertionError("no admin door")
