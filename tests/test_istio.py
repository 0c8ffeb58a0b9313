# SPDX-License-Identifier: Apache-2.0
"""An Istio Gateway and its VirtualServices, through `weft up`, with clients of the test's own:
HTTP, TLS that stays closed, opaque bytes, and what each rule must not take."""

import http.client
import json
import socket
import ssl

import pytest

from mesh import Mesh, free_port, until
from test_l4 import Server, service, tls_server

ISTIO = """
apiVersion: v1
kind: Namespace
metadata: {{name: edge}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: door, namespace: edge, annotations: {{weft.dev/address: 127.0.0.1}}}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
    - {{port: {{number: {web}, name: web, protocol: HTTP}}, hosts: ["*"]}}
    - {{port: {{number: {moved}, name: moved, protocol: HTTP}}, hosts: ["*"], tls: {{httpsRedirect: true}}}}
    - {{port: {{number: {tls}, name: tls, protocol: TLS}}, hosts: ["*"], tls: {{mode: PASSTHROUGH}}}}
    - {{port: {{number: {tcp}, name: tcp, protocol: TCP}}, hosts: ["*"]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: names, namespace: edge}}
spec:
  hosts: [a.example, b.example]
  gateways: [door]
  http:
    - match: [{{uri: {{prefix: /old/}}}}]
      redirect: {{prefixRewrite: /new/}}
    - match: [{{uri: {{prefix: /host}}}}]
      route:
        - destination: {{host: head, port: {{number: 80}}}}
          headers: {{request: {{set: {{Host: inner.example}}}}}}
    - match: [{{uri: {{prefix: /}}, sourceLabels: {{app: other}}}}]
      directResponse: {{status: 418}}
  tls:
    - match: [{{port: {tls}, sniHosts: [a.example]}}]
      route: [{{destination: {{host: one, port: {{number: 443}}}}}}]
    - match: [{{port: {tls}, sniHosts: [b.example], destinationSubnets: [10.9.9.0/24]}}]
      route: [{{destination: {{host: one, port: {{number: 443}}}}}}]
    - match: [{{port: {tls}, sniHosts: ["*.example"], destinationSubnets: [127.0.0.1]}}]
      route: [{{destination: {{host: two, port: {{number: 443}}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: others, namespace: edge}}
spec:
  hosts: ["*"]
  gateways: [door]
  http: [{{directResponse: {{status: 202}}}}]
  tcp:
    - match: [{{port: {tcp}, sourceSubnet: 10.9.9.0/24}}]
      route: [{{destination: {{host: one, port: {{number: 443}}}}}}]
    - match: [{{port: {tcp}, sourceSubnet: 127.0.0.0/8}}]
      route: [{{destination: {{host: head, port: {{number: 80}}}}}}]
---
{services}
"""


def head(connection):
    """Answers with the request's own head."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        more = connection.recv(65536)
        if not more:
            return
        seen += more
    connection.sendall(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + seen)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    folder = tmp_path_factory.mktemp("istio")
    ports = {name: free_port() for name in ("web", "moved", "tls", "tcp")}
    (one, one_pem), (two, two_pem) = tls_server(folder, "a.example"), tls_server(folder, "b.example")
    plain = Server(head)
    services = "\n".join([
        service("one", 443, one.address), service("two", 443, two.address),
        service("head", 80, plain.address).replace("name: tcp, port: 80", "name: http, port: 80"),
    ])
    # An EndpointSlice's port has the name of its Service's.
    services = services.replace("{name: tcp, port: %d, protocol" % plain.address[1],
                                "{name: http, port: %d, protocol" % plain.address[1])
    (folder / "istio.yaml").write_text(ISTIO.format(**ports, services=services))
    with Mesh(folder / "istio.yaml", folder / "data") as mesh:
        mesh.ports, mesh.pems = ports, {"a.example": one_pem, "b.example": two_pem}
        until("the gateway serves", lambda: status(mesh, "z.example", "/") == 202, seconds=90)
        yield mesh


def ask(mesh, port, host, path):
    client = http.client.HTTPConnection("127.0.0.1", mesh.ports[port], timeout=20)
    client.request("GET", path, headers={"Host": host})
    answer = client.getresponse()
    return answer.status, answer.getheader("location"), answer.read().decode()


def status(mesh, host, path):
    try:
        return ask(mesh, "web", host, path)[0]
    except OSError:
        return None


def tls(mesh, name, pem):
    context = ssl.create_default_context(cafile=pem)
    with socket.create_connection(("127.0.0.1", mesh.ports["tls"]), timeout=20) as raw:
        with context.wrap_socket(raw, server_hostname=name) as stream:
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            said = b""
            while more := stream.recv(65536):
                said += more
            return said.decode().rpartition("\r\n")[2]


def test_a_host_that_is_named_leaves_nothing_to_patterns(door):
    assert status(door, "z.example", "/x") == 202
    # Its third rule is for another gateway's labels, and nobody else's rules are for its host.
    assert ask(door, "web", "a.example", "/x")[0] == 404


def test_redirects_replace_a_prefix_and_lead_to_tls(door):
    port = door.ports["web"]
    code, location, _ = ask(door, "web", f"a.example:{port}", "/old/x?q=1")
    assert (code, location) == (301, f"http://a.example:{port}/new/x?q=1")
    assert ask(door, "moved", "a.example", "/x")[:2] == (301, "https://a.example/x")


def test_a_destination_has_a_host_of_its_own(door):
    code, _, seen = ask(door, "web", "a.example", "/host")
    assert code == 200 and "host: inner.example" in seen.lower(), seen


def test_tls_goes_by_its_name_and_addresses_and_stays_closed(door):
    assert tls(door, "a.example", door.pems["a.example"]) == "a.example"
    # The rule before is for those who dial another network.
    assert tls(door, "b.example", door.pems["b.example"]) == "b.example"
    with pytest.raises((ssl.SSLError, OSError)):
        tls(door, "c.other", door.pems["a.example"])


def test_bytes_go_by_their_clients_address(door):
    with socket.create_connection(("127.0.0.1", door.ports["tcp"]), timeout=20) as stream:
        stream.sendall(b"any words\r\n\r\n")
        said = b""
        while more := stream.recv(65536):
            said += more
    assert said.endswith(b"any words\r\n\r\n"), said


def test_the_status_names_nothing(door):
    for name in ("names", "others"):
        found = json.loads(door.weft("get", "virtualservice", name, "-n", "edge", "-o", "json").stdout)
        kinds = {c["type"]: c["status"] for c in found["status"]["conditions"]}
        assert kinds == {"Accepted": "True", "ResolvedRefs": "True"}, found["status"]
