# SPDX-License-Identifier: Apache-2.0
"""A gateway of `weft up` before a server of the test's own: the bench of the public suites."""

import contextlib
import socket

from mesh import Mesh, free_port, until

OBJECTS = """
apiVersion: v1
kind: Namespace
metadata: {{name: edge}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: web, namespace: edge}}
spec:
  gatewayClassName: weft
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners: [{{name: http, port: {port}, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: all, namespace: edge}}
spec:
  parentRefs: [{{name: web}}]
  rules: [{{backendRefs: [{{name: origin, port: 80}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: origin, namespace: edge}}
spec:
  ports: [{{name: http, port: 80, targetPort: {origin}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: origin-1, namespace: edge, labels: {{kubernetes.io/service-name: origin}}}}
addressType: IPv4
ports: [{{name: http, port: {origin}}}]
endpoints: [{{addresses: [127.0.0.1], conditions: {{ready: true}}}}]
"""


@contextlib.contextmanager
def gateway(tmp_path, origin):
    """Port of a gateway that leads everything to this port on loopback."""
    port = free_port()
    (tmp_path / "edge.yaml").write_text(OBJECTS.format(port=port, origin=origin))
    mesh = Mesh(tmp_path / "edge.yaml", tmp_path / "data", gateway_port=port).start()

    def leads():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as s:
            s.sendall(b"GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return s.recv(64).startswith(b"HTTP/1.1 200")
        return False

    try:
        until("the gateway leads to the origin", leads)
        yield port, mesh
    finally:
        mesh.stop()
        assert "panicked" not in mesh.log_text()
