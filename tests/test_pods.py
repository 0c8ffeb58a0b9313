# SPDX-License-Identifier: Apache-2.0
"""Pods in namespaces: what a Deployment written for a cluster finds, what it may not do, and what is
left of it afterwards (nothing)."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import requests

from mesh import LOAD, WEFT, Mesh, alive, copy_shop, free_port, sidecar_of, until
from test_shop import books, disturb, failures, finish, load

NOBODY = 65534
FLASK = """\
import socket
from flask import Flask, jsonify
app = Flask(__name__)
@app.get("/user/<int:number>")
def user(number):
    return jsonify(id=number, pod=socket.gethostname())
app.run(host="0.0.0.0", port=8080)
"""
PLAIN = """\
import http.server, json, socket, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = json.dumps({"path": self.path, "pod": socket.gethostname()}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
Server(("0.0.0.0", 8080), Handler).serve_forever()
"""


@pytest.fixture
def folder():
    """A folder that ordinary users can reach too."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="weft-pods-", dir="/tmp"))
    path.chmod(0o755)
    (path / "m").mkdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def write(folder, *objects):
    for index, obj in enumerate(objects):
        (folder / "m" / f"{index:02}.json").write_text(json.dumps(obj))


def run(folder, *objects, user=None, **kw):
    write(folder, *objects)
    weft = WEFT
    if user:
        # Nobody may read where the tests' own weft is.
        weft = folder / "weft"
        shutil.copy2(WEFT, weft)
        subprocess.run(["chown", "-R", str(user), str(folder)], check=True)
    mesh = Mesh(folder / "m", folder / "data", user=user, extra=["--pods=namespace"],
                program=weft, **kw)
    return mesh.start()


def container(name, *command, **more):
    return {"name": name, "image": name, "command": list(command), **more}


def pod(name, *containers, labels=None, annotations=None, **spec):
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels or {},
                         "annotations": annotations or {}},
            "spec": {"containers": list(containers), "terminationGracePeriodSeconds": 3, **spec}}


def sleeper(name, **more):
    return pod(name, container("c", "/bin/sleep", "1000"), **more)


def user_service(program, text, folder):
    (folder / "m" / "user.py").write_text(text)
    template = {"metadata": {"labels": {"app": "user"}}, "spec": {"containers": [
        container("user", program, "user.py", ports=[{"containerPort": 8080}],
                  readinessProbe={"httpGet": {"path": "/user/0", "port": 8080},
                                  "timeoutSeconds": 20})]}}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment",
         "metadata": {"name": "user-service", "namespace": "default"},
         "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "user"}},
                  "template": template}},
        {"apiVersion": "v1", "kind": "Service",
         "metadata": {"name": "user-service", "namespace": "default"},
         "spec": {"selector": {"app": "user"},
                  "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}},
    ]


def inside(mesh, name, *command, check=True, of="c"):
    """Runs a command in a pod."""
    return mesh.kubectl("exec", name, "-c", of, "--", *command, check=check).stdout


def status(mesh, name):
    answer = mesh.get(f"/api/v1/namespaces/default/pods/{name}")
    return answer.json() if answer.ok else {}


def ready(mesh, name):
    def holds():
        said = status(mesh, name).get("status", {})
        conditions = said.get("conditions", [])
        is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        assert is_ready, said.get("message", said)
        return True
    until(f"{name} is ready", holds)


def metrics(mesh, pod_object):
    return requests.get(f"http://{sidecar_of(pod_object)}:15020/metrics", timeout=20).text


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary-user"])
def test_replicas_that_know_nothing_of_weft_are_called_by_name(folder, user):
    program, text = ("/usr/bin/python3", PLAIN) if user else (sys.executable, FLASK)
    mesh = run(folder, *user_service(program, text, folder), sleeper("client"), user=user)
    try:
        ready(mesh, "client")
        seen, calls = set(), 0
        # The last one to be ready may come to this client's sidecar a moment later.
        while calls < 12 or len(seen) < 3 and calls < 60:
            answer = json.loads(inside(mesh, "client", "curl", "-sS", "http://user-service/user/1"))
            seen.add(answer["pod"])
            calls += 1
        pods = mesh.ready_pods("default", app="user")
        assert seen == {p["metadata"]["name"] for p in pods}

        def encrypted():
            said = "".join(metrics(mesh, p) for p in pods)
            lines = [l for l in said.splitlines() if l.startswith("istio_requests_total")
                     and 'connection_security_policy="mutual_tls"' in l]
            return sum(float(l.rsplit(" ", 1)[1]) for l in lines)
        # From the client's side plain text, on the wire mutual TLS. A request is counted when it is
        # over, a moment after its answer is there.
        until("all were by mutual TLS", lambda: encrypted() == calls)
        addresses = {p["status"]["podIP"] for p in pods}
        assert len(addresses) == 3 and all(a.startswith("10.244.") for a in addresses)
        assert inside(mesh, "client", "hostname").strip() == "client"
        names = inside(mesh, "client", "cat", "/etc/hosts", "/etc/resolv.conf")
        assert "\tclient\n" in names and "search default.svc.cluster.local" in names
        # The usual port of each is its own; nothing of it is on the machine.
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:8080/", timeout=2)
    finally:
        mesh.stop()


VOLUMES = [
    {"name": "conf", "configMap": {"name": "conf", "items": [{"key": "mode", "path": "a/mode"}]}},
    {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 0o440}},
    {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    {"name": "scratch", "emptyDir": {}},
    {"name": "about", "downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
]
MOUNTS = [
    {"name": "conf", "mountPath": "/etc/shop/conf"},
    {"name": "secret", "mountPath": "/var/run/secrets/shop"},
    {"name": "memory", "mountPath": "/cache"},
    {"name": "scratch", "mountPath": "/data"},
    {"name": "scratch", "mountPath": "/data/sub", "subPath": "deep/er"},
    {"name": "about", "mountPath": "/about", "readOnly": True},
]


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary-user"])
def test_volumes_users_and_what_is_not_to_be_seen(folder, user):
    one = container("c", "/bin/sleep", "1000", volumeMounts=MOUNTS, securityContext={
        "runAsUser": 1234, "runAsGroup": 2345, "readOnlyRootFilesystem": True})
    two = container("other", "/bin/sleep", "1000", volumeMounts=[
        {"name": "scratch", "mountPath": "/shared"}, {"name": "memory", "mountPath": "/cache"}])
    mesh = run(
        folder,
        {"apiVersion": "v1", "kind": "ConfigMap",
         "metadata": {"name": "conf", "namespace": "default"}, "data": {"mode": "fast"}},
        {"apiVersion": "v1", "kind": "Secret",
         "metadata": {"name": "secret", "namespace": "default"}, "data": {"raw": "/wA="}},
        pod("p", one, two, labels={"app": "x"}, volumes=VOLUMES, securityContext={"fsGroup": 3000}),
        user=user)
    try:
        ready(mesh, "p")
        sh = lambda line, of="c", check=True: inside(mesh, "p", "sh", "-c", line, of=of, check=check)
        assert sh("id -u; id -g").split() == ["1234", "2345"]
        assert sh("cat /etc/shop/conf/a/mode") == "fast"
        # The secret is its group's; an ordinary user's weft has one user for all.
        assert sh("wc -c < /var/run/secrets/shop/raw").strip() == "2"
        assert ("3000" in sh("id -G").split()) == (user is None)
        assert sh('cat /about/labels') == 'app="x"'
        # Shared by both containers, deeper mounts too.
        sh("echo one > /data/x; echo two > /data/sub/y; echo three > /cache/z")
        assert sh("cat /shared/x /shared/deep/er/y /cache/z", of="other").split() == [
            "one", "two", "three"]
        assert "1.0M" in sh("df -h /cache | tail -1")
        # Nothing else can be written, and nothing of weft's can be read.
        for line in ["touch /x", "touch /etc/x", "touch /etc/shop/conf/x", "touch /about/x"]:
            assert "Read-only" in sh(f"{line} 2>&1 || true") or "denied" in sh(f"{line} 2>&1 || true")
        assert sh(f"ls -A {folder}/data") == ""
        assert sh("ls -A /.weft-old 2>/dev/null || true") == ""
        # Root of another container is root of little.
        caps = int(re.search(r"CapEff:\s*(\w+)", sh("cat /proc/self/status", of="other"))[1], 16)
        for forbidden in (12, 13, 21):  # NET_ADMIN, NET_RAW, SYS_ADMIN
            assert not caps >> forbidden & 1
        # A change arrives, all at once.
        mesh.kubectl("patch", "configmap", "conf", "-p", '{"data": {"mode": "slow"}}')
        until("the change is seen", lambda: sh("cat /etc/shop/conf/a/mode") == "slow")
        # Both containers see each other's processes, and none of the machine's.
        assert sh("ps ax | grep -c '[s]leep 1000'").strip() == "2"
        assert sh("cat /proc/1/comm").strip() == "weft-pod"
    finally:
        mesh.stop()


def test_strict_holds_against_a_pod_without_sidecar(folder):
    strict = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
              "metadata": {"name": "default", "namespace": "default"},
              "spec": {"mtls": {"mode": "STRICT"}}}
    outside = sleeper("outside", annotations={"weft.dev/inject": "false"})
    mesh = run(folder, *user_service("/usr/bin/python3", PLAIN, folder), strict,
               sleeper("client"), outside)
    try:
        for name in ("client", "outside"):
            ready(mesh, name)
        target = mesh.ready_pods("default", app="user")[0]["status"]["podIP"]
        line = f"curl -sS -m 20 -o /dev/null -w '%{{http_code}}' http://{target}:8080/user/1"
        assert inside(mesh, "client", "sh", "-c", line) == "200"
        refused = inside(mesh, "outside", "sh", "-c", f"{line} 2>&1; echo $?")
        assert "200" not in refused, refused
        # Its own rules are out of reach, even for root of the pod.
        mark = ("import socket; s = socket.socket(); "
                "s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x77656674)")
        said = inside(mesh, "client", "sh", "-c", f"/usr/bin/python3 -c '{mark}' 2>&1 || true")
        assert "PermissionError" in said, said
        # Without its sidecar a pod's traffic goes nowhere.
        for pid in mesh.tree():
            words = command_of(pid)
            if "proxy" in words and any(w.endswith("~client") for w in words):
                os.kill(pid, signal.SIGSTOP)
                stopped = pid
        said = inside(mesh, "client", "sh", "-c", f"{line.replace('-m 20', '-m 1')} 2>&1 || true")
        os.kill(stopped, signal.SIGCONT)
        assert "200" not in said, said
    finally:
        mesh.stop()


def test_lost_namespaces_are_made_anew(folder):
    mesh = run(folder, *user_service("/usr/bin/python3", PLAIN, folder), sleeper("client"))
    try:
        for part, whose in [("pod-net", ""), ("pod-init", status(mesh, "client")["metadata"]["uid"])]:
            ready(mesh, "client")
            before = status(mesh, "client")["status"]["containerStatuses"][0]["restartCount"]
            killed = next(pid for pid in mesh.tree() if command_of(pid)[1:2] == [part]
                          and whose in " ".join(command_of(pid)))
            os.kill(killed, signal.SIGKILL)
            until("it ran again", lambda: status(
                mesh, "client")["status"]["containerStatuses"][0]["restartCount"] > before)
            until("it is answered again", lambda: json.loads(
                inside(mesh, "client", "curl", "-sS", "-m", "10", "http://user-service/user/1")))
    finally:
        mesh.stop()


def command_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


JOB = """\
echo begun; until [ -e /shared/hooked ]; do sleep 0.05; done; echo done
"""


def test_jobs_hooks_and_containers_that_run_beside(folder):
    beside = container("beside", "/bin/sh", "-c",
                       "trap 'echo beside ends; exit 0' TERM; while :; do sleep 0.1; done",
                       restartPolicy="Always")
    hook = {"postStart": {"exec": {"command": ["/bin/sh", "-c", "touch /shared/hooked"]}}}
    mount = [{"name": "work", "mountPath": "/shared"}]
    job = {"apiVersion": "batch/v1", "kind": "Job",
           "metadata": {"name": "job", "namespace": "default"},
           "spec": {"template": {"spec": {
               "restartPolicy": "Never", "volumes": [{"name": "work", "emptyDir": {}}],
               "initContainers": [beside],
               "containers": [container("c", "/bin/sh", "-c", JOB, lifecycle=hook,
                                        volumeMounts=mount)]}}}}
    polite = pod("polite", container(
        "c", "/bin/sh", "-c", "trap 'echo asked; exit 0' TERM; while :; do sleep 0.1; done",
        lifecycle={"preStop": {"exec": {"command": ["/bin/sh", "-c", "echo first > /proc/1/fd/1; "
                                                    "echo first > /shared/first"]}}},
        volumeMounts=[{"name": "shared", "mountPath": "/shared"}]),
        volumes=[{"name": "shared", "hostPath": {"path": str(folder / "m"), "type": "Directory"}}])
    mesh = run(folder, job, polite)
    try:
        done = until("the job is done", lambda: mesh.get(
            "/apis/batch/v1/namespaces/default/jobs/job").json().get("status", {}).get("succeeded"))
        assert done == 1
        name = next(p["metadata"]["name"] for p in mesh.pods("default")
                    if p["metadata"]["name"].startswith("job-"))
        until("its sidecars have ended", lambda: not [
            pid for pid in mesh.tree() if any(w.endswith(f"~{name}") for w in command_of(pid))])
        assert mesh.kubectl("logs", name, "-c", "c").stdout.split() == ["begun", "done"]
        assert "beside ends" in mesh.kubectl("logs", name, "-c", "beside").stdout
        ready(mesh, "polite")
        mesh.kubectl("delete", "pod", "polite")
        assert (folder / "m" / "first").read_text() == "first\n"
    finally:
        mesh.stop()


def size_of(path):
    """Of a file that may be rotated away meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_size
    return 0


FORKS = """\
import os, sys, time
made = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
        made += 1
    except OSError as error:
        print("made", made, error, flush=True)
        time.sleep(1000)
"""


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary-user"])
def test_what_misbehaves_is_bounded_and_named(folder, user):
    limits = lambda memory: {"limits": {"memory": memory, "cpu": "500m"}}
    grow = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    if user:  # Nothing would hold it.
        grow = "import time; time.sleep(1000)"
    (folder / "m" / "forks.py").write_text(FORKS)
    mesh = run(
        folder, *user_service("/usr/bin/python3", PLAIN, folder), sleeper("client"),
        pod("grows", container("c", "/usr/bin/python3", "-c", grow, resources=limits("64Mi"))),
        pod("forks", container("c", "/usr/bin/python3", "forks.py")),
        pod("chatters", container("c", "/bin/sh", "-c", "yes 0123456789abcdef")),
        pod("deaf", container("c", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")),
        pod("crashes", container("c", "/bin/sh", "-c", "echo out of luck; exit 3")), user=user)
    try:
        def ended(name):
            found = status(mesh, name)["status"]["containerStatuses"][0]
            return found.get("lastState", {}).get("terminated")
        if user:
            until("what does not hold is told", lambda: "memory of container c do not hold" in
                  mesh.kubectl("get", "events").stdout)
        else:
            until("the one that grows is ended",
                  lambda: (ended("grows") or {}).get("reason") == "OOMKilled")
        until("forks are bounded", lambda: "made" in mesh.kubectl("logs", "forks").stdout)
        made = int(re.search(r"made (\d+)", mesh.kubectl("logs", "forks").stdout)[1])
        assert 100 < made <= 1024
        crashed = until("the crash is told", lambda: ended("crashes"))
        assert crashed["exitCode"] == 3 and "out of luck" in crashed["message"]
        begun = time.monotonic()
        mesh.kubectl("delete", "pod", "deaf")
        # Its grace is 3 s; what Kubernetes gives to who says nothing is 30.
        assert time.monotonic() - begun < 28
        size = sum(size_of(os.path.join(place, name))
                   for place, _, names in os.walk(folder / "data/logs") for name in names
                   if "chatters" in os.path.join(place, name))
        assert 0 < size <= 32 << 20, size
        # Meanwhile the others are as they were.
        ready(mesh, "client")
        answer = inside(mesh, "client", "curl", "-sS", "-m", "30", "http://user-service/user/1")
        assert json.loads(answer)["pod"].startswith("user-service-")
    finally:
        mesh.stop()


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary-user"])
def test_a_pod_that_fills_its_disk_is_evicted_and_replaced(folder, user):
    """And one that fills its memory is told that there is no room, as the kernel does it."""
    mount = [{"name": "data", "mountPath": "/data"}]
    fills = "head -c 100000 /dev/zero > /data/x; sleep 1; [ -e /shared/calm ] || head -c 3000000 " \
            "/dev/zero > /data/y; sleep 1000"
    template = {"metadata": {"labels": {"app": "fills"}}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}},
                    {"name": "shared", "hostPath": {"path": str(folder / "m")}}],
        "containers": [container("c", "/bin/sh", "-c", fills, volumeMounts=[
            *mount, {"name": "shared", "mountPath": "/shared"}])]}}
    memory = pod("memory", container("c", "/bin/sh", "-c", "head -c 3000000 /dev/zero > /data/x; "
                                     "sleep 1000", volumeMounts=mount),
                 volumes=[{"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}])
    mesh = run(folder, memory, {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "fills", "namespace": "default"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "fills"}},
                 "template": template}}, user=user)
    try:
        def evicted():
            return [p for p in mesh.pods("default", app="fills")
                    if (p["status"].get("reason"), p["status"]["phase"]) == ("Evicted", "Failed")]
        first = until("one is evicted", evicted)[0]
        assert 'EmptyDir volume "data" exceeds' in first["status"]["message"], first["status"]
        (folder / "m" / "calm").touch()
        until("another runs in its place", lambda: [
            p for p in mesh.ready_pods("default", app="fills") if p["metadata"]["uid"]
            != first["metadata"]["uid"]])
        until("an event says so", lambda: "Evicted" in mesh.kubectl("get", "events").stdout)
        # What it kept is gone, while the pod itself can still be looked at.
        uid = first["metadata"]["uid"]
        until("its disk is free", lambda: not list((folder / "data").rglob(f"pods/{uid}/*")))
        until("it is told that there is no room",
              lambda: "No space left" in mesh.kubectl("logs", "memory").stdout)
        assert inside(mesh, "memory", "stat", "-c", "%s", "/data/x").strip() == "1048576"
        mesh.kubectl("delete", "pod", first["metadata"]["name"])
    finally:
        mesh.stop()


KINDS = ("net", "mnt", "pid", "uts", "ipc", "user")


def namespaces(pids):
    found = set()
    for pid in pids:
        for kind in KINDS:
            try:
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except OSError:
                pass
    return found


def holders(made):
    """Who is in one of these namespaces: process numbers, and when each began."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        try:
            began = (entry / "stat").read_text().rsplit(")", 1)[1].split()[19]
        except (OSError, IndexError):
            continue
        if entry.name.isdigit() and namespaces([entry.name]) & made:
            found.add((entry.name, began))
    return found


def machine():
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = sorted(line.split(":")[1].strip() for line in links.splitlines())
    return names, pathlib.Path("/proc/self/mountinfo").read_text()


def groups(mesh):
    name = "weft-" + (mesh.data / "run/id").read_text()[:8]
    # Groups of other tests come and go meanwhile, which this way to look for them takes.
    return [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if os.path.basename(folder) == name]


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary-user"])
@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_nothing_is_left(folder, user, how):
    before, own = machine(), namespaces(["self"])
    escapes = "setsid sh -c 'trap \"\" TERM; sleep 1000' & setsid nohup sleep 1001 & sleep 1002"
    objects = [*user_service("/usr/bin/python3", PLAIN, folder),
               pod("escapes", container("c", "/bin/sh", "-c", escapes))]
    mesh = run(folder, *objects, user=user)
    ready(mesh, "escapes")
    tree = mesh.tree()
    made = namespaces(tree) - own
    assert len(made) >= 4 * 4 + 1, "each pod has its own"
    assert machine() == before, "the machine's own network and mounts are not touched"
    # Only they are looked for: numbers of namespaces that are gone are given anew, to anybody.
    held = holders(made)
    assert len(held) > 4
    if how == "interrupt":
        mesh.stop()
    else:
        mesh.stop(how=signal.SIGKILL)
        until("no process is left", lambda: not [p for p in tree if alive(p)])
        subprocess.run([str(WEFT), "down", "--data", str(mesh.data)], check=True)
    until("no namespace is left", lambda: not held & holders(made))
    assert machine() == before
    # Who was killed is gone when the kernel has come round to it.
    until("no group is left", lambda: groups(mesh) == [], seconds=30)
    until("no process is left", lambda: not [p for p in tree if alive(p)], seconds=30)
    # The next start works as the first did.
    again = Mesh(folder / "m", folder / "data", user=user, extra=["--pods=namespace"],
                 program=mesh.program).start()
    again.stop()


# A system on which nobody may make a network namespace.
NO_NETWORKS = ["unshare", "--map-root-user", "sh", "-c",
               "echo 0 > /proc/sys/user/max_net_namespaces; exec \"$@\"", "sh"]


def test_the_way_is_tried_chosen_and_told(folder):
    write(folder, sleeper("client"))
    refused = subprocess.run(
        [*NO_NETWORKS, str(WEFT), "up", str(folder / "m"), "--data", str(folder / "data"),
         "--ports", "auto", "--pods=namespace"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1 and "network namespace" in refused.stderr, refused.stderr
    assert "--pods=process" in refused.stderr
    with Mesh(folder / "m", folder / "data", extra=["--pods=auto"], prefix=NO_NETWORKS) as mesh:
        assert any("plain processes" in l and "network namespace" in l for l in mesh.lines)
        ready(mesh, "client")
        assert status(mesh, "client")["status"]["podIP"].startswith("127.")


def test_a_run_goes_on_the_other_way(folder):
    text = "import os\n" + PLAIN.replace('"0.0.0.0"', 'os.environ["POD_IP"]')
    objects = [*user_service("/usr/bin/python3", text, folder), sleeper("client")]
    write(folder, *objects)
    for way, network in [("namespace", "10.244."), ("process", "127."), ("auto", "10.244.")]:
        with Mesh(folder / "m", folder / "data", extra=[f"--pods={way}"]) as mesh:
            ready(mesh, "client")
            assert status(mesh, "client")["status"]["podIP"].startswith(network)
            url = "http://user-service" + ("" if network == "10.244." else ".default") + "/user/1"
            answer = inside(mesh, "client", "curl", "-sS", "-m", "30", url)
            assert json.loads(answer)["pod"], answer


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary-user"])
def test_no_request_of_the_shop_fails_while_it_is_disturbed(folder, user):
    port = free_port()
    copy_shop(folder / "shop", port)
    if user:
        shop_for(folder, user)
    mesh = Mesh(folder / "shop", folder / "data", gateway_port=port, user=user,
                extra=["--pods=namespace"],
                program=folder / "weft" if user else WEFT).start()
    try:
        process = load(mesh, 30, rps=100)
        log = []
        disturb(mesh, log)
        mesh.kubectl("rollout", "restart", "deployment/product-v2", "-n", "shop")
        mesh.kubectl("rollout", "status", "deployment/product-v2", "-n", "shop", "--timeout=170s")
        log.append("product rolled")
        report = finish(process)
        assert report["failed"] == 0, f"{log}\n{failures(report)}"
        books(mesh, process.ids)
    finally:
        mesh.stop()


def shop_for(folder, user):
    """The shop's programs where an ordinary user reaches them."""
    shutil.copy2(WEFT, folder / "weft")
    (folder / "bin").mkdir()
    for name in ("shop-user", "shop-order", "shop-product"):
        shutil.copy2(LOAD.parent / name, folder / "bin" / name)
    for manifest in (folder / "shop").rglob("*.yaml"):
        manifest.write_text(manifest.read_text().replace(f"{LOAD.parent}/", f"{folder}/bin/"))
    subprocess.run(["chown", "-R", str(user), str(folder)], check=True)
