# SPDX-License-Identifier: Apache-2.0
"""Probes and hooks of pods in namespaces, each asked through the pod's own network in a namespace
that takes nothing but mutual TLS: who is ready, who is restarted, and what a caller notices."""

import subprocess

import pytest

from mesh import BIN, LOAD, until
from test_pods import NOBODY, container, folder, inside, pod, ready, run, shop_for, sleeper, status

__all__ = ["folder"]

# Answers as files say, and writes down who asked what.
APP = """\
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        who = self.headers.get("x-probe", "caller")
        print("asked", self.path, "by", who, flush=True)
        code = 200 if os.path.exists("/data" + self.path) or self.path == "/" else 503
        self.send_response(code)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
# Listens on 9000 as long as there is a file.
OPENS = """\
import os, socket, time
listener = None
while True:
    if os.path.exists("/data/open") != bool(listener):
        if listener:
            listener.close()
        listener = None if listener else socket.create_server(("0.0.0.0", 9000))
    time.sleep(0.02)
"""
DATA = {"volumes": [{"name": "data", "emptyDir": {}}]}
MOUNT = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
STRICT = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
          "metadata": {"name": "default", "namespace": "default"},
          "spec": {"mtls": {"mode": "STRICT"}}}


# Seconds that a command may take: more than one does on a busy machine.
COMMAND_MAX = 8


def ask(path, **more):
    header = [{"name": "x-probe", "value": "probe"}]
    return {"httpGet": {"path": path, "port": "web", "httpHeaders": header}, "periodSeconds": 1,
            "timeoutSeconds": 20, "failureThreshold": 1, **more}


def execute(line, **more):
    return {"exec": {"command": ["/bin/sh", "-c", line]}, "periodSeconds": 1,
            "timeoutSeconds": COMMAND_MAX, "failureThreshold": 1, **more}


def app(name, text=APP, port=8080, **more):
    ports = [{"name": "web", "containerPort": port}]
    return pod(name, container("c", "/usr/bin/python3", "-u", "-c", text, ports=ports, **MOUNT,
                               **more), labels={"app": name}, **DATA)


def service(name, port=8080):
    return {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]}}


def sh(mesh, name, line):
    return inside(mesh, name, "sh", "-c", line)


def soon(mesh, name, line):
    """The same in a container that is restarted until that is done: it may not run just now."""
    until(f"{line} is done", lambda: sh(mesh, name, f"{line} && echo done"))


def one(mesh, name):
    return status(mesh, name)["status"]["containerStatuses"][0]


def takes_requests(mesh, name):
    slices = mesh.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices").json()["items"]
    return [e for s in slices if s["metadata"]["labels"]["kubernetes.io/service-name"] == name
            for e in s.get("endpoints") or [] if e["conditions"]["ready"]]


def unready(mesh, name):
    until(f"{name} is not ready", lambda: not one(mesh, name)["ready"])
    until(f"{name} takes no requests", lambda: not takes_requests(mesh, name))


def events(mesh, name):
    items = mesh.get("/api/v1/namespaces/default/events").json()["items"]
    return [(e["reason"], e["message"]) for e in items if e["involvedObject"]["name"] == name]


def told(mesh, name, reason, *words):
    """An event says so; it may come a little later than what it is about."""
    until(f"{reason} of {name}", lambda: any(
        r == reason and all(word in m for word in words) for r, m in events(mesh, name)))


def called(mesh, name):
    """The status of a call through the mesh."""
    return sh(mesh, "client", f"curl -s -m 20 -o /dev/null -w '%{{http_code}}' http://{name}/ || true")


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary-user"])
def test_probes_by_http_hold_back_take_out_and_restart(folder, user):
    web = app("web", startupProbe=ask("/started", failureThreshold=60),
              readinessProbe=ask("/ready"), livenessProbe=ask("/live"))
    mesh = run(folder, STRICT, web, service("web"), sleeper("client"), user=user)
    try:
        ready(mesh, "client")
        asked = lambda: mesh.kubectl("logs", "web").stdout.splitlines()
        until("it is asked whether it started", lambda: asked().count(
            "asked /started by probe") >= 2)
        # Nobody asks anything else before, although its liveness would fail.
        assert set(asked()) == {"asked /started by probe"}
        assert not one(mesh, "web")["started"] and not takes_requests(mesh, "web")
        sh(mesh, "web", "touch /data/live /data/ready /data/started")
        ready(mesh, "web")
        assert one(mesh, "web")["started"]
        until("it is called", lambda: called(mesh, "web") == "200")
        # One startup probe was asked once a period, by one who asks.
        begun = asked().count("asked /started by probe")
        sh(mesh, "web", "rm /data/ready")
        unready(mesh, "web")
        until("nobody answers", lambda: called(mesh, "web") == "503")
        assert asked().count("asked /started by probe") == begun
        assert one(mesh, "web")["restartCount"] == 0
        sh(mesh, "web", "touch /data/ready")
        until("it is called again", lambda: called(mesh, "web") == "200")
        sh(mesh, "web", "rm /data/live")
        until("it is restarted", lambda: one(mesh, "web")["restartCount"] >= 1)
        soon(mesh, "web", "touch /data/live")
        told(mesh, "web", "Unhealthy", "liveness", "503")
        told(mesh, "web", "Killing", "liveness")
        until("it is called once more", lambda: called(mesh, "web") == "200")
    finally:
        mesh.stop()


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary-user"])
def test_probes_by_connection_grpc_and_command(folder, user):
    grpc = {"periodSeconds": 1, "failureThreshold": 1}
    product = str(LOAD.parent / "shop-product")
    if user:
        (folder / "shop").mkdir()
        shop_for(folder, user)
        product = f"{folder}/bin/shop-product"
    env = [{"name": "DATABASE", "value": "/data/product.db"}, {"name": "GRPC_PORT", "value": "9000"}]
    health = pod("health", container(
        "c", product, env=env, ports=[{"containerPort": 8080}, {"containerPort": 9000}], **MOUNT,
        readinessProbe={"grpc": {"port": 9000}, **grpc}), labels={"app": "health"}, **DATA)
    absent = pod("absent", container(
        "c", product, env=env, ports=[{"containerPort": 8080}, {"containerPort": 9000}], **MOUNT,
        livenessProbe={"grpc": {"port": 9000, "service": "no.such.Service"}, **grpc}), **DATA)
    opens = app("opens", OPENS, 9000, readinessProbe={"tcpSocket": {"port": "web"}, **grpc})
    commands = app("commands", readinessProbe=execute("test -e /data/ready"),
                   livenessProbe=execute("! test -e /data/slow || sleep 1000"))
    mesh = run(folder, STRICT, health, absent, opens, commands,
               *(service(name, port) for name, port in
                 [("health", 9000), ("opens", 9000), ("commands", 8080)]), user=user)
    try:
        ready(mesh, "health")
        until("it takes requests", lambda: takes_requests(mesh, "health"))
        until("what serves no such name is restarted",
              lambda: one(mesh, "absent")["restartCount"] >= 1)
        told(mesh, "absent", "Unhealthy", "liveness")
        # Frozen, it answers nobody; the probe has a limit of its own.
        sh(mesh, "health", "pkill -STOP -x shop-product")
        unready(mesh, "health")
        sh(mesh, "health", "pkill -CONT -x shop-product")
        ready(mesh, "health")
        for name, file in [("opens", "open"), ("commands", "ready")]:
            until("it runs", lambda: "running" in one(mesh, name)["state"])
            unready(mesh, name)
            sh(mesh, name, f"touch /data/{file}")
            until(f"{name} takes requests", lambda: takes_requests(mesh, name))
            sh(mesh, name, f"rm /data/{file}")
            unready(mesh, name)
        assert one(mesh, "commands")["restartCount"] == 0
        sh(mesh, "commands", "touch /data/slow")
        until("it is restarted", lambda: one(mesh, "commands")["restartCount"] >= 1)
        soon(mesh, "commands", "rm -f /data/slow")
        told(mesh, "commands", "Unhealthy", "liveness", f"longer than {COMMAND_MAX} s")
        # What a probe left running is gone with its time, also what the next one began.
        until("nothing of it runs", lambda: "sleep 1000" not in sh(
            mesh, "commands", "ps ax | grep -v grep"))
    finally:
        mesh.stop()


def test_hooks_ask_by_http_and_are_waited_for(folder):
    asks = {"httpGet": {"path": "/hooked", "port": "web",
                        "httpHeaders": [{"name": "x-probe", "value": "hook"}]}}
    polite = app("polite", lifecycle={"postStart": {"exec": {"command": [
        "/bin/sh", "-c", "until [ -e /data/go ]; do sleep 0.05; done"]}}, "preStop": asks})
    slow = app("slow", lifecycle={"preStop": {"sleep": {"seconds": 1000}}})
    fails = app("fails", lifecycle={"postStart": {"exec": {"command": ["/bin/false"]}}})
    opens = app("opens", OPENS, 9000, lifecycle={"preStop": {"tcpSocket": {"port": 9000}}})
    mesh = run(folder, polite, slow, fails, opens)
    try:
        ready(mesh, "slow")
        # It listens, but is not ready before its hook is done.
        until("it listens", lambda: sh(mesh, "polite", "curl -s localhost:8080/ && echo yes"))
        assert not one(mesh, "polite")["ready"]
        sh(mesh, "polite", "touch /data/go")
        ready(mesh, "polite")
        until("whose hook fails is restarted", lambda: one(mesh, "fails")["restartCount"] >= 1)
        told(mesh, "fails", "FailedPostStartHook")
        follow = mesh.data.parent / "followed"
        with open(follow, "wb") as out:
            process = subprocess.Popen([BIN / "kubectl", "--kubeconfig", mesh.kubeconfig(), "logs",
                                        "-f", "polite"], stdout=out)
            # Nobody follows the log of a pod that is gone.
            until("the log is followed", lambda: "by caller" in follow.read_text())
            mesh.kubectl("delete", "pod", "polite")
            process.wait(60)
        assert "asked /hooked by hook" in follow.read_text()
        # The grace period (3 s) ends what a hook would go on with, and a hook that fails is said.
        mesh.kubectl("delete", "pod", "slow")
        mesh.kubectl("delete", "pod", "opens")
        told(mesh, "opens", "FailedPreStopHook")
    finally:
        mesh.stop()
