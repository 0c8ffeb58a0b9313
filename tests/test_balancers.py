# SPDX-License-Identifier: Apache-2.0
"""Services of type LoadBalancer that users make: reached from the machine's side at an address of
their own, by a proxy that passes bytes on to the Service's instances through the mesh."""

import socket
import sys

import pytest
import requests

from mesh import Mesh, until
from test_pods import NOBODY, PLAIN, folder, run, user_service, write

__all__ = ["folder"]

STRICT = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
          "metadata": {"name": "default", "namespace": "default"},
          "spec": {"mtls": {"mode": "STRICT"}}}


def balanced(objects, **more):
    service = objects[-1]
    service["spec"].update(type="LoadBalancer", **more)
    return objects


def ingress(mesh, name="user-service"):
    service = mesh.get(f"/api/v1/namespaces/default/services/{name}").json()
    return service.get("status", {}).get("loadBalancer", {}).get("ingress")


def reached(mesh):
    """The first address, and the port that is bound: 8000 above a low one without privilege."""
    told = until("an address is told", lambda: ingress(mesh))[0]
    port = told["ports"][0]["port"]
    return f"http://{told['ip']}:{8000 + port if mesh.user else port}"


def answers(url):
    return requests.get(f"{url}/user/1", timeout=20).json()["pod"]


def refused(url):
    try:
        answers(url)
        return False
    except requests.ConnectionError:
        return True


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary-user"])
def test_a_balancer_leads_into_captured_pods(folder, user):
    objects = balanced(user_service("/usr/bin/python3", PLAIN, folder))
    mesh = run(folder, STRICT, *objects, user=user)
    try:
        pods = until("all replicas", lambda: len(p := mesh.ready_pods("default", app="user")) == 3
                     and p)
        url = reached(mesh)
        assert url.startswith("http://127.1"), url
        row = mesh.kubectl("get", "service", "user-service").stdout.splitlines()[1].split()
        assert row[1] == "LoadBalancer" and f"http://{row[3]}:" in url, row
        seen = set()
        # The pods take nothing but mutual TLS; each connection is balanced.
        until("every replica answers", lambda: seen.add(answers(url)) or len(seen) == 3)
        assert seen == {p["metadata"]["name"] for p in pods}
        # A byte stream stays what it is, in both directions.
        host, port = url.removeprefix("http://").rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=20) as stream:
            stream.sendall(b"GET /raw HTTP/1.0\r\n\r\n")
            stream.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: stream.recv(4096), b""))
        assert b'"path": "/raw"' in said, said
        before = ingress(mesh)
    finally:
        mesh.stop()
    # The address belongs to the Service for as long as it is there.
    mesh = Mesh(folder / "m", folder / "data", user=user, extra=["--pods=namespace"],
                program=mesh.program).start()
    try:
        assert ingress(mesh) == before
        until("it answers again", lambda: answers(url))
        mesh.kubectl("patch", "service", "user-service", "-p", '{"spec": {"type": "ClusterIP"}}')
        until("it is told no more", lambda: not ingress(mesh))
        until("it is closed", lambda: refused(url))
    finally:
        mesh.stop()


def test_a_balancer_leads_to_processes_and_takes_the_address_asked_for(folder):
    text = "import os\n" + PLAIN.replace('"0.0.0.0"', 'os.environ["POD_IP"]').replace(
        "socket.gethostname()", 'os.environ["POD_NAME"]')
    objects = balanced(user_service(sys.executable, text, folder), loadBalancerIP="127.0.0.3")
    objects[-1]["spec"]["ports"][0]["port"] = 18080
    write(folder, *objects)
    with Mesh(folder / "m", folder / "data", extra=["--pods=process"]) as mesh:
        told = until("an address is told", lambda: ingress(mesh))
        assert told == [{"ip": "127.0.0.3", "ipMode": "Proxy",
                         "ports": [{"port": 18080, "protocol": "TCP"}]}]
        seen = set()
        until("every replica answers",
              lambda: seen.add(answers("http://127.0.0.3:18080")) or len(seen) == 3)
        # No instance is left: connections end at once, and somebody says why.
        mesh.kubectl("scale", "deployment", "user-service", "--replicas=0")
        until("nobody is left", lambda: not mesh.pods("default", app="user"))
        until("it is refused", lambda: refused("http://127.0.0.3:18080"))
        mesh.kubectl("scale", "deployment", "user-service", "--replicas=1")
        until("it answers again", lambda: answers("http://127.0.0.3:18080"))
