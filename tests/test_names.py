# SPDX-License-Identifier: Apache-2.0
"""Addresses and names: the resolver of pods asked with dig, what a Gateway causes, what a
PeerAuthentication comes to, all through the doors."""

import http.server
import json
import subprocess
import threading

import requests

from mesh import BIN, Mesh, free_port, until

SERVICES = """
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: demo}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: demo}
spec: {type: ExternalName, externalName: web.demo.svc.cluster.local}
"""


def pod_dig(mesh, *args):
    """Asks where sidecars ask."""
    port = mesh.doors["pod_dns"].rsplit(":", 1)[1]
    done = subprocess.run([str(BIN / "dig"), "@127.0.0.1", "-p", port, "+tries=1", "+time=10", *args],
                          capture_output=True, text=True, timeout=60)
    return done.stdout


def test_pods_resolve_services_aliases_and_addresses(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/services.yaml").write_text(SERVICES)
    with Mesh(tmp_path / "m", tmp_path / "data") as mesh:
        services = mesh.get("/api/v1/namespaces/demo/services").json()["items"]
        ip = next(s["spec"]["clusterIP"] for s in services if s["metadata"]["name"] == "web")
        name = "web.demo.svc.cluster.local"
        for carrier in ("+notcp", "+tcp"):
            assert pod_dig(mesh, name, "A", "+short", carrier).split() == [ip]
        assert pod_dig(mesh, "_http._tcp." + name, "SRV", "+short").split() == [
            "1", "1", "80", name + "."]
        # An alias comes with what it leads to.
        alias = pod_dig(mesh, "alias.demo.svc.cluster.local", "A", "+short").split()
        assert alias == [name + ".", ip]
        # From the address back to the name; addresses that weft did not give are none of its.
        assert pod_dig(mesh, "-x", ip, "+short").split() == [name + "."]
        # What a search list makes of a foreign name is known not to exist, and how long.
        missing = pod_dig(mesh, "example.com.demo.svc.cluster.local", "A")
        assert "status: NXDOMAIN" in missing and "SOA" in missing, missing
        empty = pod_dig(mesh, "db.demo.svc.cluster.local", "A")
        assert "status: NOERROR" in empty and "ANSWER: 0" in empty, empty
        assert "flags: qr aa rd ra" in pod_dig(mesh, name, "A")
        # Outside is asked of the machine's resolver, or said why not; the public door refuses.
        outside = pod_dig(mesh, "weft.invalid", "A")
        assert "status: NXDOMAIN" in outside or "EDE: 22" in outside, outside
        assert "status: REFUSED" in mesh.dig("weft.invalid", "A")
        # Garbage is answered or dropped; the door lives on.
        assert pod_dig(mesh, name, "A", "+short", "+ednsopt=65001:ff", "+bufsize=512").split() == [ip]


def test_a_gateways_service_says_where_it_listens_and_goes_with_it(tmp_path):
    port = free_port()
    (tmp_path / "m").mkdir()
    (tmp_path / "m/gw.yaml").write_text(f"""
apiVersion: v1
kind: Namespace
metadata: {{name: demo}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: front, namespace: demo}}
spec:
  gatewayClassName: weft
  addresses: [{{value: 127.0.0.1}}]
  listeners: [{{name: http, port: {port}, protocol: HTTP}}]
""")
    with Mesh(tmp_path / "m", tmp_path / "data", gateway_port=port) as mesh:
        row = mesh.kubectl("get", "svc", "front-weft", "-n", "demo", "--no-headers").stdout.split()
        assert row[1] == "LoadBalancer" and row[3] == "127.0.0.1" and f"{port}" in row[4], row
        # Where the status says, the Gateway answers.
        ingress = json.loads(mesh.kubectl("get", "svc", "front-weft", "-n", "demo", "-o",
                                          "jsonpath={.status.loadBalancer.ingress[0]}").stdout)
        answer = requests.get(f"http://{ingress['ip']}:{ingress['ports'][0]['port']}/", timeout=20)
        assert answer.status_code == 404, "there is no route yet"
        rows = mesh.get("/v1/weft/endpoints", params={"namespace": "demo", "service": "front-weft"})
        assert rows.json()["endpoints"], rows.text
        mesh.kubectl("get", "serviceaccount", "front-weft", "-n", "demo")
        assert "front-weft" not in mesh.weft("status", check=False).stdout, "it is the Gateway's, no user's"
        # Deleted by hand it comes back, with its Gateway it goes.
        mesh.kubectl("delete", "svc", "front-weft", "-n", "demo")
        until("the Service is back", lambda: mesh.kubectl(
            "get", "svc", "front-weft", "-n", "demo", check=False).returncode == 0)
        mesh.kubectl("delete", "gateway", "front", "-n", "demo")
        for kind in ("svc", "serviceaccount"):
            until(f"the {kind} is gone", lambda kind=kind: mesh.kubectl(
                "get", kind, "front-weft", "-n", "demo", check=False).returncode != 0)
        until("nothing listens", lambda: refused(port))


def refused(port):
    try:
        requests.get(f"http://127.0.0.1:{port}/", timeout=2)
    except requests.ConnectionError:
        return True
    return False


def test_strict_reads_not_enforceable_where_it_is_not(empty):
    policy = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: demo}
spec: {mtls: {mode: MODE}}
"""
    empty.kubectl("apply", "-f", "-", stdin=policy.replace("MODE", "STRICT"))

    def condition():
        out = empty.kubectl("get", "peerauthentication", "default", "-n", "demo", "-o", "json").stdout
        conditions = json.loads(out)["status"]["conditions"]
        return next(c for c in conditions if c["type"] == "Enforced")

    told = until("it says what it comes to", lambda: condition())
    assert (told["status"], told["reason"]) == ("False", "NotEnforceable")
    assert "--pods=namespace" in told["message"]
    until("status says so", lambda: "NotEnforceable" in empty.weft("status", check=False).stdout)
    empty.kubectl("apply", "-f", "-", stdin=policy.replace("MODE", "PERMISSIVE"))
    until("nothing is missing", lambda: condition()["status"] == "True")
    bad = empty.kubectl("apply", "-f", "-", stdin=policy.replace("MODE", "SOMETIMES"), check=False)
    assert bad.returncode != 0 and "spec.mtls.mode" in bad.stderr, bad.stderr


INSIDE = """
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: demo}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
        - name: app
          image: db
          command: [python3, -m, http.server, "8080", --bind, "::"]
          ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: demo}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: demo}
spec:
  selector: {app: db}
  ipFamilyPolicy: RequireDualStack
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: demo}
spec: {type: ExternalName, externalName: front.demo.svc.cluster.local}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: demo}
spec:
  gatewayClassName: weft
  addresses: [{value: 127.0.0.1}]
  listeners: [{name: http, port: PORT, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: edge, namespace: demo}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: front, port: 80}]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: demo}
spec:
  hosts: [far.example.com]
  addresses: [192.0.2.10]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: FAR}]
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: demo}
spec: {containers: [{name: app, image: c, command: [sleep, "1000000"]}]}
"""


class Far(http.server.BaseHTTPRequestHandler):
    """Answers with the host that it was asked for."""

    def do_GET(self):
        body = self.headers["Host"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_pods_in_namespaces_call_by_every_name_there_is(tmp_path):
    port = free_port()
    # A server of the machine, outside of the mesh.
    far = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Far)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/all.yaml").write_text(INSIDE.replace("PORT", str(port)).replace("FAR", str(far.server_port)))
    threading.Thread(target=far.serve_forever, daemon=True).start()
    with far, Mesh(tmp_path / "m", tmp_path / "data", gateway_port=port,
              extra=["--pods=namespace"]) as mesh:
        mesh.kubectl("wait", "--for=condition=Ready", "pod", "--all", "-n", "demo", "--timeout=170s")
        pods = {p["metadata"]["name"]: [a["ip"] for a in p["status"]["podIPs"]]
                for p in mesh.pods("demo")}

        def inside(*command):
            done = mesh.kubectl("exec", "-n", "demo", "client", "--", *command, check=False)
            return done.stdout.strip() or done.stderr

        def code(*url):
            return inside("curl", "-sS", "-g", "-m", "30", "-o", "/dev/null", "-w", "%{http_code}",
                          *url)

        def resolved(name):
            return {line.split()[0] for line in inside("getent", "ahosts", name).splitlines()}

        # They are ready as soon as they run, which is before they listen.
        for name in ("db-0", "db-1"):
            url = f"http://{pods[name][0]}:8080/"
            until(f"{name} listens", lambda: code(url) == "200")
        # Each member by its name, all of them by the service's, a Service by both families.
        assert resolved("db-0.db") == {pods["db-0"][0]}
        assert resolved("db") == {pods["db-0"][0], pods["db-1"][0]}
        front = mesh.get("/api/v1/namespaces/demo/services/front").json()["spec"]["clusterIPs"]
        assert front[0].startswith("10.96.") and front[1].startswith("fd00:7766:1::"), front
        assert resolved("front") == set(front)
        assert resolved("front.service.demo.ns.consul") == {pods["db-0"][0], pods["db-1"][0]}
        assert "front.demo.svc.cluster.local" in inside("getent", "hosts", front[0])
        for url in ("http://db-1.db:8080/", "http://db:8080/", "http://front/", "http://alias/",
                    "http://front.demo/", f"http://{front[0]}/", f"http://[{front[1]}]/",
                    f"http://{pods['db-0'][0]}:8080/"):
            assert code(url) == "200", url
        # The Gateway from outside, and from inside by its own Service.
        until("outside", lambda: requests.get(f"{mesh.gateway}/", timeout=20).status_code == 200)
        assert code(f"http://edge-weft:{port}/") == "200"
        # What the mesh was told of the world outside, by name and by the address it was given.
        assert resolved("far.example.com") == {"192.0.2.10"}
        assert inside("curl", "-sS", "-m", "30", "http://far.example.com/") == "far.example.com"
        assert code("http://192.0.2.10/") == "200"
        assert "Could not resolve host" in inside("curl", "-sS", "http://nobody/")
