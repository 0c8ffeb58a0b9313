# SPDX-License-Identifier: Apache-2.0
"""Programs that know nothing of weft call each other through capture: server-first greetings, DNS,
WebSocket, gRPC, half-close, long streams. The kernel redirects; nothing is configured in them."""

import contextlib
import json
import os
import pathlib
import re
import socket
import threading

import pytest

from mesh import BIN, Mesh, until

HERE = pathlib.Path(__file__).resolve().parent
MEGABYTES = int(os.environ.get("WEFT_CAPTURE_MEGABYTES", "1024"))

PORTS = [("greets-tcp", 7001, "tcp"), ("undeclared", 7002, None), ("half", 7003, None),
         ("bulk", 7004, None), ("web", 7005, None), ("declared", 7008, "tcp")]
# Of a greeting that no sidecar sees.
DIRECT = "7007"


def manifest(name, command, ports=(), account="default", replicas=1, annotations=None):
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "demo"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}, "annotations": {
                "weft.dev/command": command, **(annotations or {})}},
            "spec": {"serviceAccountName": account, "terminationGracePeriodSeconds": 2,
                     "containers": [{"name": "app", "image": name, "ports": [
                         {"name": n, "containerPort": p} for n, p, _ in ports]}]}}}}


def service(name, app, ports, headless=False):
    spec = {"selector": {"app": app}, "ports": [
        {"name": n, "port": p, **({"appProtocol": a} if a else {})} for n, p, a in ports],
        "ipFamilyPolicy": "PreferDualStack"}
    if headless:
        spec["clusterIP"] = "None"
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "demo"},
            "spec": spec}


def strict():
    return {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": "demo"}, "spec": {"mtls": {"mode": "STRICT"}}}


def write(folder, objects):
    folder.mkdir(parents=True, exist_ok=True)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo"}}
    for i, obj in enumerate([namespace, *objects]):
        (folder / f"{i:02}.yaml").write_text(json.dumps(obj))
    return folder


def memory(mesh, pod):
    """Peak resident kilobytes of a pod's sidecar."""
    for pid in mesh.tree():
        try:
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"proxy" in words and any(w.endswith(b"~" + pod.encode()) for w in words):
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
                return int(re.search(r"VmHWM:\s+(\d+)", status)[1])
        except OSError:
            continue
    raise AssertionError(f"no sidecar of {pod}")


HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\noutside"


def own_address():
    """An address of this machine that is not loopback, if there is one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return None


def serve_outside(address, answer):
    """A program outside of the mesh that says its answer and ends; returns its port."""
    listener = socket.create_server((address, 0))

    def serve():
        while True:
            stream, _ = listener.accept()
            # Who goes away ends nothing else.
            with contextlib.suppress(OSError), stream:
                if answer is HTTP:
                    stream.recv(65536)
                stream.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    """What the client's program found, by check; and the mesh that it ran in."""
    folder = tmp_path_factory.mktemp("capture")
    python = "python3 -u"
    outside = own_address()
    where = ""
    if outside:
        web, raw = (serve_outside(outside, answer) for answer in (HTTP, b"outside, first"))
        where = f" {outside} {web} {raw}"
    objects = [
        manifest("server", f"{python} {HERE}/capture/server.py", PORTS,
                 annotations={"weft.dev/exclude-inbound-ports": DIRECT}),
        service("server", "server", PORTS),
        service("server-pods", "server", PORTS, headless=True),
        strict(),
        manifest("client", f"{python} {HERE}/capture/client.py {MEGABYTES}{where}",
                 annotations={"weft.dev/exclude-outbound-ports": DIRECT}),
    ]
    mesh = Mesh(write(folder / "m", objects), folder / "data", extra=["--pods", "namespace"]).start()
    try:
        def lines():
            pod = mesh.ready_pods("demo", app="client")[0]["metadata"]["name"]
            log = mesh.kubectl("logs", "-n", "demo", pod, "-c", "app").stdout
            found = {}
            for line in log.splitlines():
                if line.startswith("{"):
                    found.update({json.loads(line)["check"]: json.loads(line)})
            return found if "all" in found else None
        found = until("all checks", lines, seconds=900, every=0.5)
        yield found, mesh
    finally:
        mesh.stop()
    assert "panicked" not in mesh.log_text()


def result(checks, name):
    found = checks[0][name]
    assert "error" not in found, found["error"]
    return found["result"]


# The figures in ms are asked for on a machine with nothing else to do (FULL=1). A busy one still tells
# who waits for 100 ms to find out what is spoken from who does not.
FULL, BUSY = "FULL" in os.environ, 80


@pytest.mark.root
def test_names_are_answered_over_udp_and_tcp(checks):
    assert result(checks, "dns").startswith("10.96.")


@pytest.mark.root
def test_http_reaches_the_service_in_both_families(checks):
    answers = result(checks, "http")
    pod = checks[1].pods("demo", app="server")[0]["metadata"]["name"]
    # The host name that the program sees is its pod's.
    assert answers == {"v4": pod, "v6": pod}


@pytest.mark.root
def test_a_server_first_greeting_is_at_most_5_ms_later(checks):
    """Through two sidecars with mutual TLS, whether the port is declared or not."""
    took = result(checks, "greeting")
    print("a greeting takes", ", ".join(f"{v:.2f} ms {k}" for k, v in took.items()))
    assert took["detected"] - took["direct"] <= (5 if FULL else BUSY), took


@pytest.mark.root
def test_what_a_client_speaks_is_found_out_within_100_ms(checks):
    added = result(checks, "detection")
    print("later by", ", ".join(f"{v:.2f} ms ({k})" for k, v in added.items()))
    # A server's time and two sidecars' are in it as well, and a clock's tick.
    assert added["half a method"] <= (105 if FULL else 100 + BUSY), added
    # There is nothing to wait for where the first byte tells.
    most = 10 if FULL else BUSY
    assert added["unknown"] <= most and added["after silence"] <= most, added


@pytest.mark.root
@pytest.mark.parametrize("check", ["half_close", "websocket"])
def test_protocols_pass(checks, check):
    assert result(checks, check) is True


@pytest.mark.root
def test_datagrams_to_an_instance_pass(checks):
    assert result(checks, "udp") == "got datagram"


@pytest.mark.root
def test_an_instance_is_reached_by_its_own_address(checks):
    assert result(checks, "direct") == "HTTP/1.1 200 OK"


@pytest.mark.root
def test_what_is_outside_of_the_mesh_is_reached_through_the_host(checks):
    if "outside" not in checks[0]:
        pytest.skip("this machine has no address but loopback")
    assert result(checks, "outside") == ["outside", "outside, first"]


@pytest.mark.root
def test_a_port_that_no_service_declares_is_refused(checks):
    assert result(checks, "refused") in ("ConnectionResetError", "ConnectionRefusedError",
                                         "BrokenPipeError")


@pytest.mark.root
def test_a_long_stream_is_byte_exact_and_needs_no_memory(checks):
    assert result(checks, "bulk") == MEGABYTES << 20
    found, mesh = checks
    for app in ("client", "server"):
        pod = mesh.pods("demo", app=app)[0]["metadata"]["name"]
        assert memory(mesh, pod) < 100_000, app


@pytest.mark.root
def test_between_the_sidecars_it_was_mutual_tls(checks):
    """The port is STRICT, so that what passed was proven; the metrics say the same."""
    report = checks[1].weft("mtls", "report").stdout
    line = next(l.split() for l in report.splitlines() if l.startswith("demo ") and " server " in l)
    _, _, mode, encrypted, plaintext, enforced, bypassable = line
    assert (mode, plaintext, enforced, bypassable) == ("mtls", "0", "Enforced", "no"), report
    assert int(encrypted) >= 4, report


@pytest.mark.root
def test_grpc_and_its_friends_between_official_echo_programs(tmp_path):
    """Istio's echo server and client (of the Gateway API conformance images), unchanged."""
    ports = [("one", 7070, None), ("two", 8080, None), ("three", 9090, None), ("four", 9091, None)]
    serve = f"{BIN}/echo-server --port=8080 --grpc=7070 --tcp=9090 --tcp=9091 --server-first=9091"
    objects = [manifest("echo", serve, ports), service("echo", "echo", ports), strict(),
               manifest("caller", "sleep 1000000")]
    folder = write(tmp_path / "m", objects)
    with Mesh(folder, tmp_path / "data", extra=["--pods", "namespace"]) as mesh:
        caller = until("the caller", lambda: mesh.ready_pods("demo", app="caller"))[0]
        until("the echo", lambda: mesh.ready_pods("demo", app="echo"))
        for call in ["http://echo:8080/", "--http2 http://echo:8080/", "grpc://echo:7070",
                     "ws://echo:8080/", "tcp://echo:9090", "--server-first tcp://echo:9091"]:
            command = [str(BIN / "client"), "--count", "10", *call.split()]
            ask = ["exec", "-n", "demo", caller["metadata"]["name"], "--", *command]
            out = until(call, lambda: mesh.kubectl(*ask).stdout, every=0.5)
            assert out.count("StatusCode=200") == 10, out


PEER = """\
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
import threading
serve = lambda port: http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
threading.Thread(target=serve, args=(9000,)).start()
serve(8080)
"""


@pytest.mark.root
@pytest.mark.parametrize("words", ["weft", "istio"])
def test_what_annotations_leave_out_passes_the_sidecars_by(tmp_path, words):
    """The server takes only mutual TLS, but for one port; it says who called."""
    inbound, ports, addresses = {
        "weft": ("weft.dev/exclude-inbound-ports", "weft.dev/exclude-outbound-ports",
                 "weft.dev/exclude-outbound-addresses"),
        "istio": ("traffic.sidecar.istio.io/excludeInboundPorts",
                  "traffic.sidecar.istio.io/excludeOutboundPorts",
                  "traffic.sidecar.istio.io/excludeOutboundIPRanges"),
    }[words]
    (tmp_path / "peer.py").write_text(PEER)
    sleep = "sleep 1000000"
    objects = [
        manifest("server", f"python3 -u {tmp_path}/peer.py", [("a", 8080, None), ("b", 9000, None)],
                 annotations={inbound: "9000"}),
        service("server", "server", [("a", 8080, "http"), ("b", 9000, "http")]), strict(),
        manifest("captured", sleep),
        manifest("ports", sleep, annotations={ports: "9000, 9999"}),
        manifest("addresses", sleep, annotations={addresses: "10.244.0.0/16"}),
        manifest("outside", sleep, annotations={"weft.dev/inject": "false"}),
    ]
    with Mesh(write(tmp_path / "m", objects), tmp_path / "data",
              extra=["--pods", "namespace"]) as mesh:
        names = ["server", "captured", "ports", "addresses", "outside"]
        pods = {n: until(n, lambda: mesh.ready_pods("demo", app=n))[0] for n in names}
        ip = {n: p["status"]["podIP"] for n, p in pods.items()}

        def call(client, port, host=ip["server"]):
            """Whom the server saw; empty when it saw nobody."""
            line = f"curl -sf -m 20 http://{host}:{port}/ || true"
            return mesh.kubectl("exec", "-n", "demo", pods[client]["metadata"]["name"], "--",
                                "sh", "-c", line).stdout
        # It is ready as soon as it runs, which is before it listens.
        for port in (8080, 9000):
            until("the server listens", lambda: call("captured", port))
        # Through both sidecars: the server sees its own, whichever port it is.
        for port, host in [(8080, ip["server"]), (9000, ip["server"]), (8080, "server"),
                           (9000, "server")]:
            assert call("captured", port, host) not in ("", ip["captured"]), (port, host)
        # Straight to the excluded port; the other one takes no plaintext.
        for client in ["ports", "addresses", "outside"]:
            assert call(client, 9000) == ip[client], client
        assert call("outside", 8080) == "" and call("addresses", 8080) == ""
        # What is not excluded still goes by the sidecar.
        assert call("ports", 8080) not in ("", ip["ports"])
        assert call("addresses", 8080, "server") not in ("", ip["addresses"])
