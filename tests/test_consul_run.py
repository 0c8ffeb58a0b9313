# SPDX-License-Identifier: Apache-2.0
"""Instances and those who hold them up: `weft run`, `weft drain`, and machines that fall silent.
Real processes, real signals; Consul's API, DNS, kubectl and a gateway under load are the judges."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import requests

from mesh import BIN, WEFT, Mesh, alive, free_port, until
from test_store import Server


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path / "server") as running:
        yield running
    assert "panicked" not in running.log_text()


def passing(server, service):
    url = f"{server.consul}/v1/health/service/{service}?passing"
    return requests.get(url, timeout=20).json()


def known(server, service):
    return requests.get(f"{server.consul}/v1/catalog/service/{service}", timeout=20).json()


def names(server, name):
    port = server.doors["dns"].rsplit(":", 1)[1]
    done = subprocess.run([str(BIN / "dig"), "@127.0.0.1", "-p", port, "+tries=1", "+time=10",
                           "+short", name], capture_output=True, text=True, timeout=60)
    return done.stdout.split()


class Run:
    """One `weft run`."""

    def __init__(self, server, folder, *args, command, env=None):
        self.error = folder / "run.log"
        self.log = open(self.error, "wb")
        self.process = subprocess.Popen(
            [str(WEFT), "run", "--consul", server.consul, *args, "--", *command],
            stdout=subprocess.PIPE, stderr=self.log, cwd=folder, env={**os.environ, **(env or {})})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def said(self):
        return self.error.read_text()

    def child(self):
        """The process number of its program, once it is told."""
        # A line is there when its end is: it is written in parts.
        line = until("it says what it runs", lambda: [
            x for x in self.said().splitlines(True) if ", process " in x and x.endswith("\n")])[0]
        return int(line.rsplit(" ", 1)[1])


HTTP = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]


def test_a_program_is_an_instance_for_as_long_as_it_lives(server, tmp_path):
    (tmp_path / "hello").write_text("hello")
    port = free_port()
    args = ["--name", "web", "--port", str(port), "--tag", "v1", "--meta", "version=1"]

    def start(*more):
        return Run(server, tmp_path, *args, *more, command=[*HTTP, str(port)])

    # Its own end.
    with start() as run:
        [entry] = until("it is found", lambda: passing(server, "web"))
        service = entry["Service"]
        assert (service["ID"], service["Port"], service["Address"]) == (
            f"web-{port}", port, "127.0.0.1")
        assert service["Tags"] == ["v1"] and service["Meta"] == {"version": "1"}
        assert [c["Type"] for c in entry["Checks"]] == ["", "process", "tcp"]
        assert names(server, "v1.web.service.consul") == ["127.0.0.1"]
        url = f"http://{service['Address']}:{service['Port']}/hello"
        assert requests.get(url, timeout=20).text == "hello"
        until("it says so", lambda: "is ready" in run.said())
        os.kill(run.child(), signal.SIGKILL)
        assert run.process.wait(60) == 137
        assert known(server, "web") == [], "gone before the command ended"

    # The end of `weft run`, however: the program goes with it, and the server notices.
    with start() as run:
        until("it is found", lambda: passing(server, "web"))
        child = run.child()
        run.process.kill()
        until("the program goes with it", lambda: not alive(child))
        until("the instance goes", lambda: known(server, "web") == [], 30)

    # Asked to end, it first tells others, and the program may finish.
    with start("--drain-ms", "15000") as run:
        until("it is found", lambda: passing(server, "web"))
        child = run.child()
        run.process.send_signal(signal.SIGTERM)
        until("nobody finds it", lambda: known(server, "web") == [], 12)
        assert alive(child), "it still serves who knew it"
        assert run.process.wait(60) == 143
        assert not alive(child)


def asked(server):
    """Requests for what is the agent's, so far."""
    row = 'weft_consul_requests_total{part="agent",code="2xx"} '
    lines = requests.get(f"{server.api}/metrics", timeout=20).text.splitlines()
    return int(next(line for line in lines if line.startswith(row)).removeprefix(row))


def test_the_environment_of_consuls_clients_names_a_socket(tmp_path):
    path = tmp_path / "consul.sock"
    with Server(tmp_path / "server", ["--consul-socket", str(path)]) as server:
        def run(**env):
            return subprocess.Popen([str(WEFT), "run", "--name", "web", "--", "sleep", "6000"],
                                    stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
        program = run(CONSUL_HTTP_ADDR=f"unix://{path}")
        try:
            until("it is found", lambda: passing(server, "web"))
            # Its heartbeats come that way, too: it is there for longer than one that is silent.
            first = asked(server)
            until("it says that it lives", lambda: asked(server) >= first + 8)
            assert passing(server, "web")
        finally:
            program.send_signal(signal.SIGINT)
            program.communicate(timeout=60)
        until("it is gone", lambda: known(server, "web") == [])
        for env in ({"CONSUL_HTTP_ADDR": "https://127.0.0.1:8501"},
                    {"CONSUL_HTTP_ADDR": "127.0.0.1:8501", "CONSUL_HTTP_SSL": "true"}):
            refused = run(**env)
            said = refused.communicate(timeout=60)[1]
            assert refused.returncode == 2 and "weft run speaks no TLS" in said, said


def test_a_program_that_is_held_up_too_long_comes_back(server, tmp_path):
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]
    with Run(server, tmp_path, "--name", "job", "--check", "none", command=command) as run:
        assert run.process.stdout.readline() == b"begun\n", "its output is ours"
        until("it is there", lambda: passing(server, "job"))
        run.process.send_signal(signal.SIGSTOP)
        until("nobody holds it up", lambda: known(server, "job") == [], 30)
        run.process.send_signal(signal.SIGCONT)
        until("it is there again", lambda: passing(server, "job"))
        # A server that is away takes nothing down, and one that comes back knows it.
        server.kill()
        until("that is said", lambda: "is lost" in run.said())
        assert alive(run.child())
        server.start()
        until("it is there again", lambda: passing(server, "job"))


def test_what_cannot_be_run_is_said(server, tmp_path):
    def weft(*args):
        done = subprocess.run([str(WEFT), "run", *args], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr
    marker = tmp_path / "ran"
    touch = ["--", "touch", str(marker)]
    code, said = weft("--consul", f"http://127.0.0.1:{free_port()}", "--name", "web", *touch)
    assert code == 4 and "no weft server answers" in said, said
    code, said = weft("--consul", server.consul, "--name", "web", "--check", "/x", *touch)
    assert code == 2 and "--port" in said, said
    code, said = weft("--consul", server.consul, "--name", "", *touch)
    assert code == 1 and "Missing service name" in said, said
    code, said = weft("--consul", server.consul, "--name", "web", "--", str(tmp_path / "nothing"))
    assert code == 1 and "cannot be started" in said, said
    assert not marker.exists() or code == 1
    assert known(server, "web") == []


# -- drain ---------------------------------------------------------------------------------------

APP = r"""
import http.server, os, pathlib, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/slow":
            pathlib.Path("holds-" + os.environ["POD_NAME"]).touch()
            time.sleep(3)
        body = os.environ["POD_NAME"].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

address = (os.environ["POD_IP"], int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""

OBJECTS = """
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: demo}
spec:
  gatewayClassName: weft
  addresses: [{type: IPAddress, value: 127.0.0.1}]
  listeners: [{name: http, port: GATEWAY, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: demo}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: demo}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations: {weft.dev/command: python3 app.py}
    spec:
      containers:
        - name: main
          image: web:1
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 20}
"""


class Load:
    """Requests without a pause: when each was answered and by whom, and what failed."""

    def __init__(self, url, threads=3):
        self.url, self.answers, self.failed = url, [], []
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self.run) for _ in range(threads)]

    def run(self):
        session = requests.Session()
        while not self.ending.is_set():
            sent = time.monotonic()
            try:
                answer = session.get(self.url, timeout=60)
                if answer.status_code == 200:
                    self.answers.append((sent, answer.text))
                else:
                    self.failed.append(answer.text)
            except requests.RequestException as error:
                self.failed.append(repr(error))
            time.sleep(0.002)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        for thread in self.threads:
            thread.join()

    def of(self, pod, since):
        return [x for x in self.answers if x[1] == pod and x[0] >= since]


def test_a_drained_pod_finishes_what_it_has_and_is_picked_no_more(tmp_path):
    port = free_port()
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "mesh.yaml").write_text(OBJECTS.replace("GATEWAY", str(port)))
    url = f"http://127.0.0.1:{port}/"
    with Mesh(folder, tmp_path / "data", gateway_port=port) as mesh, Load(url) as load:
        pods = [p["metadata"]["name"] for p in mesh.ready_pods("demo", app="web")]
        assert len(pods) == 3
        until("all of them answer", lambda: {name for _, name in load.answers} == set(pods))
        slow = []
        threads = [threading.Thread(target=lambda: slow.append(
            requests.get(url + "slow", timeout=60))) for _ in range(9)]
        for thread in threads:
            thread.start()
        # One that holds a request: it is to finish that.
        drained = until("a pod holds a slow request", lambda: [
            name for name in pods if (folder / f"holds-{name}").exists()])[0]
        # The first failures may have been before everything was there.
        load.failed.clear()
        said = mesh.weft("drain", drained, "--reason", "a disk is full").stdout
        acked = time.monotonic()
        assert "is picked no more" in said and "demo/web" in said, said
        for thread in threads:
            thread.join()
        assert sorted(a.status_code for a in slow) == [200] * 9, slow
        assert drained in {a.text for a in slow}, "it finished what it held"
        time.sleep(1)
        late = load.of(drained, acked + 0.1)
        assert not late, f"{len(late)} requests after the acknowledgement"
        assert not load.failed, load.failed[:3]
        # It runs on, and everybody can see why nothing comes.
        shown = json.loads(mesh.kubectl("get", "pod", drained, "-n", "demo", "-o", "json").stdout)
        assert shown["metadata"]["annotations"]["weft.dev/drain"] == "a disk is full"
        assert any(c["type"] == "Ready" and c["status"] == "True"
                   for c in shown["status"]["conditions"])
        found = json.loads(mesh.weft("get", "endpoints", "web", "-n", "demo", "-o", "json").stdout)
        row = next(r for r in found["endpoints"] if r["instance"] == drained)
        assert row["health"] == "draining", row
        listed = mesh.consul("/v1/health/service/web?ns=demo&passing").json()
        assert len(listed) == 2
        mesh.weft("drain", drained, "--undo")
        back = time.monotonic()
        until("it is picked again", lambda: load.of(drained, back))
        assert not load.failed, load.failed[:3]
        wrong = mesh.weft("drain", "nobody", check=False)
        assert wrong.returncode == 1 and "no service has an instance" in wrong.stderr


def test_a_drained_registration_is_in_maintenance(server):
    def register(**more):
        body = {"Name": "db", "Port": 5432, **more}
        url = f"{server.consul}/v1/agent/service/register"
        requests.put(url, json=body, timeout=20).raise_for_status()

    def weft(*args, code=0):
        env = {**os.environ, "WEFT_SERVER": server.api}
        done = subprocess.run([str(WEFT), "drain", *args], capture_output=True, text=True, env=env,
                              timeout=60)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    register(ID="db-1")
    register(ID="db-2")
    weft("db-1", "--reason", "upgrade")
    assert [e["Service"]["ID"] for e in passing(server, "db")] == ["db-2"]
    [check] = [c for c in requests.get(f"{server.consul}/v1/health/checks/db", timeout=20).json()
               if c["ServiceID"] == "db-1"]
    assert (check["CheckID"], check["Notes"]) == ("_service_maintenance:db-1", "upgrade")
    rows = requests.get(f"{server.api}/v1/weft/endpoints?service=db", timeout=20).json()["endpoints"]
    assert {r["instance"].split("/")[1]: r["health"] for r in rows} == {
        "db-1": "draining", "db-2": "healthy"}, rows
    weft("db-1", "--undo")
    assert len(passing(server, "db")) == 2
    assert "no service has an instance" in weft("db-3", code=1)


# -- silence -------------------------------------------------------------------------------------

def test_services_of_a_machine_that_falls_silent_are_critical_until_it_is_back(tmp_path):
    with Server(tmp_path / "server") as server:
        env = {**os.environ, "WEFT_SERVER": server.api}

        def agent():
            command = [str(WEFT), "agent", "--server", server.doors["xds"], "--name", "m1",
                       "--data", str(tmp_path / "agent"), "--announce"]
            if not (tmp_path / "agent/host.pem").exists():
                made = subprocess.run([str(WEFT), "token", "create", "-o", "json"], env=env,
                                      capture_output=True, text=True, timeout=60, check=True)
                command += ["--token", json.loads(made.stdout)["token"]]
            log = open(tmp_path / "agent.log", "ab")
            return subprocess.Popen(command, stdout=log, stderr=log)

        def serf():
            checks = requests.get(f"{server.consul}/v1/health/node/m1", timeout=20).json()
            return {c["CheckID"]: c["Status"] for c in checks}.get("serfHealth")

        def health():
            url = f"{server.api}/v1/weft/endpoints?service=web"
            return [r["health"] for r in requests.get(url, timeout=20).json()["endpoints"]]

        running = agent()
        try:
            url = f"{server.consul}/v1/catalog/register"
            node = f"{server.api}/api/v1/nodes/m1"
            answer = lambda: requests.get(node, timeout=20)  # noqa: E731
            until("the machine is there", lambda: answer().status_code == 200 and [
                c for c in answer().json()["status"]["conditions"] if c["status"] == "True"])
            # What runs on that machine, and a check that its agent asks there.
            port = free_port()
            requests.put(url, timeout=20, json={
                "Node": "m1", "Address": "127.0.0.1",
                "Service": {"ID": "web", "Service": "web", "Port": port}}).raise_for_status()
            until("it is found", lambda: passing(server, "web"))
            assert serf() == "passing" and names(server, "web.service.consul") == ["127.0.0.1"]
            for how, again in [(signal.SIGSTOP, None), (signal.SIGKILL, agent)]:
                running.send_signal(how)
                begun = time.monotonic()
                until("its node is critical", lambda: serf() == "critical")
                assert time.monotonic() - begun > 2, "the lease is 5 s"
                until("nobody is sent there", lambda: passing(server, "web") == [] == names(
                    server, "web.service.consul") and health() == ["unhealthy"])
                [entry] = requests.get(f"{server.consul}/v1/health/service/web", timeout=20).json()
                assert entry["Checks"][0]["Output"] == "Agent not live or unreachable"
                if again:
                    running.wait()
                    running = again()
                else:
                    running.send_signal(signal.SIGCONT)
                until("it is back", lambda: passing(server, "web"))
                until("everybody says so", lambda: serf() == "passing" and health() == ["healthy"])
        finally:
            running.send_signal(signal.SIGCONT)
            running.kill()
            running.wait()
