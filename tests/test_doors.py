# SPDX-License-Identifier: Apache-2.0
"""One truth through three doors: kubectl and the Python client, Consul clients, dig."""

import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from mesh import PEERS, Mesh, until


def test_kubectl_shows_the_shop_as_a_user_expects(shop):
    out = shop.kubectl("get", "pods", "-n", "shop").stdout
    lines = out.splitlines()
    assert lines[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert len(lines) >= 8
    running = [line for line in lines[1:] if line.split()[1:3] == ["1/1", "Running"]]
    assert len(running) >= 7, out
    wide = shop.kubectl("get", "svc", "-n", "shop", "-o", "wide").stdout
    assert wide.splitlines()[0].split() == [
        "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE", "SELECTOR"]
    user = next(line for line in wide.splitlines() if line.startswith("user"))
    assert "ClusterIP" in user and "80/TCP" in user and "app=user" in user
    doc = shop.kubectl("get", "svc", "user", "-n", "shop", "-o", "yaml").stdout
    assert "kind: Service" in doc and "clusterIP: 127." in doc
    assert "deployment.apps/user" in shop.kubectl("get", "all", "-n", "shop").stdout
    described = shop.kubectl("describe", "deployment", "user", "-n", "shop").stdout
    assert "2 desired" in described and "2 available" in described, described
    pod = shop.pods("shop", app="user")[0]["metadata"]["name"]
    logs = until("it has said something", lambda: shop.kubectl("logs", pod, "-n", "shop").stdout)
    assert logs.startswith("{"), logs
    shop.kubectl("wait", "--for=condition=Available", "deployment/user", "-n", "shop",
                 "--timeout=170s")


def test_kubectl_apply_get_watch_delete(empty):
    manifest = """
apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: demo}
data: {k: v}
"""
    assert "created" in empty.kubectl("apply", "-f", "-", stdin=manifest).stdout
    assert "unchanged" in empty.kubectl("apply", "-f", "-", stdin=manifest).stdout
    changed = manifest.replace("k: v", "k: w")
    assert "configured" in empty.kubectl("apply", "-f", "-", stdin=changed).stdout
    assert empty.kubectl("get", "cm", "a", "-n", "demo", "-o", "jsonpath={.data.k}").stdout == "w"
    env = {"KUBECONFIG": str(empty.kubeconfig()), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    watch = subprocess.Popen([str(PEERS / "bin/kubectl"), "get", "cm", "-n", "demo", "-w"],
                             stdout=subprocess.PIPE, text=True, env=env)
    seen = []
    threading.Thread(target=lambda: seen.extend(iter(watch.stdout.readline, "")), daemon=True).start()
    until("the watch lists a", lambda: any(line.startswith("a ") for line in seen))
    empty.kubectl("create", "configmap", "b", "-n", "demo", "--from-literal=x=y")
    until("the watch shows b", lambda: any(line.startswith("b ") for line in seen))
    watch.terminate()
    watch.wait(60)
    assert "deleted" in empty.kubectl("delete", "cm", "a", "-n", "demo").stdout
    gone = empty.kubectl("get", "cm", "a", "-n", "demo", check=False)
    assert gone.returncode == 1 and "NotFound" in gone.stderr


def test_python_client_creates_a_service_without_apiversion_and_kind(empty):
    from kubernetes import client, config
    api = client.CoreV1Api(config.new_client_from_config(str(empty.kubeconfig())))
    body = {"metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}
    made = api.create_namespaced_service("demo", body)
    assert made.spec.type == "ClusterIP" and made.spec.cluster_ip.startswith("127.")
    assert [s.metadata.name for s in api.list_namespaced_service("demo").items] == ["web"]
    assert api.patch_namespaced_service("web", "demo", {"metadata": {"labels": {"a": "b"}}}) \
        .metadata.labels == {"a": "b"}
    api.delete_namespaced_service("web", "demo")
    assert api.list_namespaced_service("demo").items == []


CONSUL = r"""
import json, socket, sys, time, consul
port, svc = int(sys.argv[1]), int(sys.argv[2])
c = consul.Consul(host="127.0.0.1", port=port)
check = consul.Check.tcp("127.0.0.1", svc, "100ms")
c.agent.service.register("web", service_id="web-1", port=svc, address="127.0.0.1", tags=["a"],
                         check=check)
index, nodes = None, []
deadline = time.time() + 60
while not nodes:
    assert time.time() < deadline, "never passing"
    index, nodes = c.health.service("web", passing=True, index=index, wait="2s")
print(json.dumps(nodes[0]["Service"]["ID"]), flush=True)
sys.stdin.readline()
index, nodes = c.health.service("web", passing=True)
print("blocking", flush=True)
while nodes:
    index, nodes = c.health.service("web", passing=True, index=index, wait="200s")
print(json.dumps(time.time()), flush=True)
c.agent.service.deregister("web-1")
assert "web" not in c.catalog.services()[1]
print("gone", flush=True)
"""


@pytest.mark.parametrize("library", ["python-consul", "py-consul"])
def test_consul_client_registers_blocks_and_wakes(empty, library):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    env = {"PYTHONPATH": str(PEERS / "consul" / library), "PATH": "/usr/bin:/bin"}
    child = subprocess.Popen([sys.executable, "-c", CONSUL, str(empty.consul_port), str(port)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert json.loads(child.stdout.readline()) == "web-1"
        srv = until("dig shows it", lambda: empty.dig("web.service.consul", "SRV", "+short"))
        assert str(port) in srv.split()
        assert "web" in empty.kubectl("get", "svc", "-A").stdout
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == "blocking\n"
        before = time.time()
        listener.close()
        woke = json.loads(child.stdout.readline())
        # Unwoken it would be answered after 200 s. How soon a thousand are woken, drill F25 says.
        assert woke - before < 100, woke - before
        assert child.stdout.readline() == "gone\n"
        until("dig shows it no more",
              lambda: not empty.dig("web.service.consul", "SRV", "+short").strip())
        assert child.wait(60) == 0
    finally:
        child.kill()


def test_every_door_tells_the_same_instances(shop):
    ready = {p["status"]["podIP"] for p in shop.ready_pods("shop", app="user")}
    assert len(ready) == 2
    entries = shop.consul("/v1/health/service/user?ns=shop&passing").json()
    assert {e["Service"]["Address"] for e in entries} == ready
    names = shop.dig("user.service.shop.ns.consul", "A", "+short").split()
    assert set(names) == ready
    address = shop.kubectl("get", "svc", "user", "-n", "shop", "-o",
                           "jsonpath={.spec.clusterIP}").stdout
    assert shop.dig("user.shop.svc.cluster.local", "A", "+short").split() == [address]
    facts = json.loads(shop.weft("get", "endpoints", "user", "-n", "shop", "-o", "json").stdout)
    assert {e["address"].rsplit(":", 1)[0] for e in facts["endpoints"]} == ready


def test_what_one_door_made_is_read_only_to_the_others(shop):
    import requests
    url = f"http://127.0.0.1:{shop.consul_port}/v1/agent/service/register?ns=shop"
    answer = requests.put(url, json={"Name": "user", "Port": 1}, timeout=20)
    assert answer.status_code == 409 and "ubernetes" in answer.text, answer.text


APP = """
import http.server, os
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *a): pass
http.server.HTTPServer((os.environ["POD_IP"], int(os.environ["PORT"])), Answer).serve_forever()
"""
WEB = """
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: demo}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations: {weft.dev/command: python3 app.py}
    spec:
      containers:
      - {name: web, image: "web:1", ports: [{containerPort: 8080}],
         readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 20}}
"""


def test_the_same_file_applied_after_a_deletion_means_the_same_program(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/app.py").write_text(APP)
    (tmp_path / "m/web.yaml").write_text(WEB)
    with Mesh(tmp_path / "m", tmp_path / "data") as mesh:
        mesh.kubectl("delete", "deployment", "web", "-n", "demo")
        until("it is gone", lambda: not mesh.pods("demo", app="web"))
        mesh.kubectl("apply", "-f", str(tmp_path / "m/web.yaml"))
        until("it runs again", lambda: mesh.ready_pods("demo", app="web"))
