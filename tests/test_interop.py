# SPDX-License-Identifier: Apache-2.0
"""gRPC's own interoperability cases (the client and the server of grpc-go) through weft."""

import concurrent.futures
import contextlib
import subprocess

import pytest

from mesh import BIN, Mesh, free_port, until
from standalone import Proxy, certificates, listens

CASES = """
empty_unary large_unary client_streaming server_streaming ping_pong empty_stream custom_metadata
status_code_and_message special_status_message unimplemented_method unimplemented_service
cancel_after_begin cancel_after_first_response timeout_on_sleeping_server
""".split()
CLIENT, SERVER = BIN / "grpc-interop-client", BIN / "grpc-interop-server"


def failures(call):
    """The cases that fail when `call` plays them, with what was said."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = dict(zip(CASES, pool.map(call, CASES)))
    return {case: run.stdout + run.stderr for case, run in done.items() if run.returncode}


def played(port, *words):
    def one(case):
        command = [CLIENT, "--server_host=127.0.0.1", f"--server_port={port}",
                   f"--test_case={case}", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return failures(one)


@contextlib.contextmanager
def server():
    port = free_port()
    process = subprocess.Popen([SERVER, f"--port={port}"], stderr=subprocess.DEVNULL)
    try:
        until("the server listens", lambda: listens(port))
        yield port
    finally:
        process.kill()
        process.wait()


def test_there_are_fourteen():
    assert len(CASES) == 14


def test_all_cases_through_a_gateway_in_plain_text_over_tls_and_over_mtls(tmp_path):
    """`plain` and `tls` are for clients; what comes by `far` crosses a second gateway that asks the
    first for its certificate."""
    certificates(tmp_path)
    plain, tls, far, inner = (free_port() for _ in range(4))
    with server() as port:
        (tmp_path / "proxy.yaml").write_text(f"""
access_log: "off"
listeners:
  - {{name: plain, bind: "127.0.0.1:{plain}"}}
  - name: tls
    bind: 127.0.0.1:{tls}
    tls: [{{certificate: server.pem, key: server.key}}]
  - {{name: far, bind: "127.0.0.1:{far}", protocol: http2}}
  - name: inner
    bind: 127.0.0.1:{inner}
    tls: [{{certificate: server.pem, key: server.key, clients: {{authority: ca.pem}}}}]
routes:
  - {{name: direct, listeners: [plain, tls, inner], rules: [{{to: server}}]}}
  - {{name: chained, listeners: [far], rules: [{{to: gateway}}]}}
backends:
  - {{name: server, protocol: grpc, endpoints: ["127.0.0.1:{port}"]}}
  - name: gateway
    protocol: grpc
    endpoints: ["127.0.0.1:{inner}"]
    tls: {{server_name: localhost, authority: ca.pem, certificate: client.pem, key: client.key}}
""")
        assert played(port) == {}, "without weft"
        with Proxy("-c", tmp_path / "proxy.yaml", ready=plain):
            assert played(plain) == {}
            assert played(far) == {}
            secure = ["--use_tls", "--use_test_ca", "--ca_file", tmp_path / "ca.pem",
                      "--server_host_override=localhost"]
            assert played(tls, *secure) == {}


SIDECARS = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: demo}}
---
apiVersion: v1
kind: Pod
metadata: {{name: rpc, namespace: demo, labels: {{app: rpc}}}}
spec:
  containers:
    - name: rpc
      image: rpc
      command: [{SERVER}, --port=8080]
      ports: [{{name: grpc, containerPort: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {{name: rpc, namespace: demo}}
spec:
  selector: {{app: rpc}}
  ports: [{{name: grpc, port: 80, targetPort: grpc, appProtocol: grpc}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: demo}}
spec: {{containers: [{{name: client, image: c, command: [sleep, "1000000"]}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: stranger, namespace: demo, annotations: {{weft.dev/inject: "false"}}}}
spec: {{containers: [{{name: app, image: c, command: [sleep, "1000000"]}}]}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: strict, namespace: demo}}
spec: {{mtls: {{mode: STRICT}}}}
"""


@pytest.mark.root
def test_all_cases_through_two_sidecars_with_mtls_between(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/all.yaml").write_text(SIDECARS)
    with Mesh(tmp_path / "m", tmp_path / "data", extra=["--pods=namespace"]) as mesh:
        for name in ("rpc", "client", "stranger"):
            mesh.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "-n", "demo",
                         "--timeout=170s")

        def call(pod):
            return lambda case: mesh.kubectl(
                "exec", "-n", "demo", pod, "--", str(CLIENT), "--server_host=rpc",
                "--server_port=80", f"--test_case={case}", check=False)

        until("the sidecar leads to the server",
              lambda: call("client")("empty_unary").returncode == 0)
        assert failures(call("client")) == {}
        assert call("stranger")("empty_unary").returncode != 0, "plain text is refused"
    assert "panicked" not in mesh.log_text()
