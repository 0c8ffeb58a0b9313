# SPDX-License-Identifier: Apache-2.0
"""PeerAuthentication where traffic is captured: an app's ports are reached as it says, declared
or not, by its address or by name, and by nobody otherwise."""

import http.server
import json
import re
import subprocess
import threading

import pytest
import requests

from mesh import Mesh, until

MANIFESTS = """
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: demo, labels: {app: web}}
spec:
  containers:
    - name: declared
      image: web
      command: [python3, -m, http.server, "8080", --bind, "::"]
      ports: [{name: http, containerPort: 8080}]
    - name: undeclared
      image: web
      command: [python3, -m, http.server, "9090", --bind, "::"]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, namespace: demo}
spec: {containers: [{name: app, image: c, command: [sleep, "1000000"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: demo, annotations: {weft.dev/inject: "false"}}
spec: {containers: [{name: app, image: c, command: [sleep, "1000000"]}]}
"""

POLICY = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: NAME, namespace: demo}
spec: SPEC
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strict")
    (folder / "m").mkdir()
    (folder / "m/all.yaml").write_text(MANIFESTS)
    mesh = Mesh(folder / "m", folder / "data", extra=["--pods=namespace"]).start()
    for name in ("web", "friend", "stranger"):
        mesh.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "-n", "demo", "--timeout=170s")
    yield mesh
    mesh.stop()
    assert "panicked" not in mesh.log_text()


def curl(mesh, pod, url):
    """What a pod is answered: the status, and the body."""
    done = mesh.kubectl("exec", "-n", "demo", pod, "--", "curl", "-sS", "-g", "-m", "30",
                        "-w", "\n%{http_code}", url, check=False)
    body, _, code = done.stdout.rpartition("\n")
    return code, body + done.stderr


def say(mesh, name, spec):
    mesh.kubectl("apply", "-f", "-", stdin=POLICY.replace("NAME", name).replace("SPEC", spec))


def enforced(mesh, name):
    out = mesh.kubectl("get", "peerauthentication", name, "-n", "demo", "-o", "json").stdout
    conditions = json.loads(out)["status"]["conditions"]
    return next(c for c in conditions if c["type"] == "Enforced")


def addresses(mesh):
    status = mesh.pods("demo", app="web")[0]["status"]
    v4, v6 = (ip["ip"] for ip in status["podIPs"])
    return v4, f"[{v6}]"


def test_strict_holds_at_every_port_and_address_until_it_is_gone(mesh):
    v4, v6 = addresses(mesh)
    everywhere = [f"http://{at}:{port}/" for at in (v4, v6) for port in (8080, 9090)]
    for url in everywhere:
        # It is ready as soon as it runs, which is before it listens.
        until(f"{url} answers", lambda: curl(mesh, "stranger", url)[0] == "200")
    assert curl(mesh, "friend", "http://web/")[0] == "200"

    say(mesh, "default", "{mtls: {mode: STRICT}}")
    until("it is enforced", lambda: enforced(mesh, "default")["status"] == "True")
    for url in everywhere:
        code, body = until("the proxy knows", lambda url=url: refused(mesh, url))
        assert code == "403" and "takes mesh mTLS only" in body, (url, body)
    for url in ("http://web/", f"http://{v4}:8080/", f"http://{v6}:8080/"):
        assert curl(mesh, "friend", url)[0] == "200", "over mTLS it goes on"
    row = next(line.split() for line in mesh.weft("mtls", "report").stdout.splitlines()
               if line.split()[1:2] == ["web"])
    assert row[-2:] == ["Enforced", "no"], row

    # One port is opened by the policy of the workload; the others stay with the namespace's.
    say(mesh, "open", "{selector: {matchLabels: {app: web}}, "
                      "portLevelMtls: {'9090': {mode: PERMISSIVE}}}")
    until("9090 is open", lambda: curl(mesh, "stranger", f"http://{v4}:9090/")[0] == "200")
    assert curl(mesh, "stranger", f"http://{v4}:8080/")[0] == "403"

    mesh.kubectl("delete", "peerauthentication", "open", "default", "-n", "demo")
    until("all is permissive again", lambda: curl(mesh, "stranger", f"http://{v4}:8080/")[0] == "200")


def refused(mesh, url):
    found = curl(mesh, "stranger", url)
    return found if found[0] != "200" else None


def test_disabled_is_called_in_plaintext_by_the_mesh_too(mesh):
    def calls():
        """Requests by what the web pod's sidecar saw of the connection."""
        ip = mesh.pods("demo", app="web")[0]["metadata"]["annotations"]["weft.dev/host-address"]
        text = requests.get(f"http://{ip}:15020/metrics", timeout=20).text
        out = {}
        for line in text.splitlines():
            if line.startswith("istio_requests_total{") and 'reporter="destination"' in line:
                policy = re.search(r'connection_security_policy="(\w+)"', line)[1]
                out[policy] = out.get(policy, 0) + float(line.rsplit(" ", 1)[1])
        return out

    before = calls()
    assert curl(mesh, "friend", "http://web/")[0] == "200"
    until("one call over mTLS", lambda: calls().get("mutual_tls", 0) > before.get("mutual_tls", 0))
    say(mesh, "plain", "{selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}}")

    def plaintext():
        before = calls()
        assert curl(mesh, "friend", "http://web/")[0] == "200"
        # A request is counted when it is over, a moment after its answer is there.
        after = until("it is counted", lambda: sum((now := calls()).values()) > sum(
            before.values()) and now)
        return after.get("mutual_tls") == before.get("mutual_tls")

    until("no call over mTLS any more", plaintext)
    mesh.kubectl("delete", "peerauthentication", "plain", "-n", "demo")
    until("mTLS again", lambda: not plaintext())


def test_registry_only_closes_the_way_out(mesh):
    """A server of this machine that the mesh does not know, at an address that pods can dial."""
    server = outside_server()
    if server is None:
        pytest.skip("this machine has no address but loopback")
    url = f"http://{server.server_address[0]}:{server.server_port}/"
    assert curl(mesh, "friend", url)[0] == "200", "open unless somebody closes it"
    mesh.kubectl("apply", "-f", "-", stdin="""
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: closed, namespace: demo}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
""")
    code, body = until("it is closed", lambda: not_200(mesh, url))
    assert code in ("502", "503", "000"), (code, body)
    assert curl(mesh, "friend", "http://web/")[0] == "200", "what the mesh knows is open"
    mesh.kubectl("delete", "sidecar", "closed", "-n", "demo")
    until("it is open again", lambda: curl(mesh, "friend", url)[0] == "200")
    server.shutdown()


def not_200(mesh, url):
    found = curl(mesh, "friend", url)
    return found if found[0] != "200" else None


def outside_server():
    """Listens at an address of a real interface; `None` when there is none."""
    out = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    for ip in (ip for ip in out if ":" not in ip and not ip.startswith("127.")):
        server = http.server.ThreadingHTTPServer((ip, 0), http.server.SimpleHTTPRequestHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server
    return None
