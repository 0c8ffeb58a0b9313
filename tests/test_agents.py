# SPDX-License-Identifier: Apache-2.0
"""Several machines: network namespaces joined by a switch that is in one of its own, so that
nothing of the host's network is touched. The server with its own agent on one, `weft agent` on the
others, the shop spread over all of them.
"""

import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

import pytest
import requests

from mesh import BIN, ROOT, WEFT, alive, copy_shop, until

pytestmark = pytest.mark.root
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def ip(pid, *args):
    subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *args], check=True,
                   capture_output=True, text=True)


def holder():
    """A process that holds a network namespace; it goes with it."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    own = os.readlink("/proc/self/ns/net")
    until("a namespace", lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own)
    ip(process.pid, "link", "set", "lo", "up")
    return process


class Machine:
    """One network namespace with an address at the switch."""

    def __init__(self, switch, name, number):
        self.name, self.switch = name, switch
        self.address = f"10.77.0.{number}"
        self.port = f"p{number}"
        self.process = holder()
        pid = str(self.process.pid)
        ip(switch.pid, "link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", pid)
        ip(switch.pid, "link", "set", self.port, "master", "switch", "up")
        ip(pid, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip(pid, "link", "set", "eth0", "up")

    def cut(self):
        ip(self.switch.pid, "link", "set", self.port, "down")

    def heal(self):
        ip(self.switch.pid, "link", "set", self.port, "up")

    def popen(self, *command, **kw):
        inside = ["nsenter", "-t", str(self.process.pid), "-n", *map(str, command)]
        return subprocess.Popen(inside, **kw)

    def run(self, *command, check=True):
        inside = ["nsenter", "-t", str(self.process.pid), "-n", *map(str, command)]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=60, cwd=ROOT)
        if check and done.returncode != 0:
            raise AssertionError(f"{command} -> {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def inside(self, function):
        """Runs a function in a thread of this machine: its sockets are the machine's."""
        outcome = []

        def body():
            with open(f"/proc/{self.process.pid}/ns/net") as ns:
                if LIBC.setns(ns.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            try:
                outcome.append((function(), None))
            except Exception as error:  # handed on to the caller
                outcome.append((None, error))

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        value, error = outcome[0]
        if error:
            raise error
        return value

    def get(self, url, **kw):
        return self.inside(lambda: requests.get(url, timeout=20, **kw))

    def weft(self, *args, check=True):
        return self.run(WEFT, *args, check=check)

    def end(self):
        self.process.kill()
        self.process.wait()


class Process:
    """A running weft, with its announcement and its log."""

    def __init__(self, machine, folder, *args):
        self.folder = pathlib.Path(folder)
        self.log_path = self.folder / f"{machine.name}.log"
        self.out_path = self.folder / f"{machine.name}.out"
        with open(self.log_path, "ab") as log, open(self.out_path, "wb") as out:
            env = {**os.environ, "WEFT_LOG": "info"}
            self.process = machine.popen(WEFT, *args, "--announce", stdout=out, stderr=log, env=env,
                                         cwd=ROOT)

    def announced(self):
        def line():
            assert self.process.poll() is None, self.log()[-3000:]
            lines = self.out_path.read_text().splitlines()
            return next((json.loads(text) for text in lines if text.startswith("{")), None)
        try:
            return until("an announcement", line)
        except AssertionError:
            raise AssertionError(self.out_path.read_text() + self.log()[-4000:])

    def log(self):
        return self.log_path.read_text(errors="replace")

    def stop(self, how=signal.SIGINT, seconds=90):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"it did not end: {self.log()[-2000:]}")


class Machines:
    """A server with its own agent on `s`, agents on `a` and `b`."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.switch = holder()
        ip(self.switch.pid, "link", "add", "switch", "type", "bridge")
        ip(self.switch.pid, "link", "set", "switch", "up")
        self.s, self.a, self.b = (Machine(self.switch, n, i + 1) for i, n in enumerate("sab"))
        self.running = {}

    def start(self):
        base = self.folder / "base"
        base.mkdir()
        (base / "ns.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
        return self.serve("up", base, "--plain")

    def serve(self, *role):
        self.running["s"] = Process(self.s, self.folder, *role, "--data", self.folder / "server",
                                    "--agents-bind", self.s.address)
        self.doors = self.running["s"].announced()
        self.api = self.doors["api"]
        assert self.doors["agents"] == f"{self.s.address}:15012"
        return self

    def token(self, *args):
        made = self.s.weft("token", "create", "-o", "json", *args).stdout
        return json.loads(made)["token"]

    def agent(self, machine, token=None, *more):
        name = [] if "--name" in more else ["--name", machine.name]
        args = ["agent", "--server", f"{self.s.address}:15012", *name, "--data", self.folder / f"agent-{machine.name}", "--workdir", self.folder, *more]
        if token:
            args += ["--token", token]
        self.running[machine.name] = Process(machine, self.folder, *args)
        return self.running[machine.name]

    def join(self, machine, *more):
        agent = self.agent(machine, self.token(), *more)
        announced = agent.announced()
        assert announced["address"] == machine.address
        self.until_node(machine.name, "True")

    def json(self, path):
        answer = self.s.get(self.api + path)
        answer.raise_for_status()
        return answer.json()

    def node(self, name):
        return self.json(f"/api/v1/nodes/{name}")

    def until_node(self, name, status):
        def ready():
            conditions = self.node(name)["status"]["conditions"]
            return next(c for c in conditions if c["type"] == "Ready")["status"] == status
        until(f"node {name} is ready: {status}", ready)

    def pods(self, **labels):
        items = self.json("/api/v1/namespaces/shop/pods")["items"]
        return [p for p in items if labels.items() <= p["metadata"].get("labels", {}).items()]

    def ready_pods(self, **labels):
        def ready(pod):
            conditions = pod["status"].get("conditions", [])
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        return [p for p in self.pods(**labels) if ready(p)]

    def deploy_shop(self):
        shop = copy_shop(self.folder / "shop", 8000, self.at_home)
        shutil.rmtree(shop / "changes")
        (self.folder / "shop/.data").mkdir(exist_ok=True)
        self.s.weft("apply", "-f", shop)
        for app, count in (("user", 2), ("product", 3), ("order", 2)):
            until(f"{app} is ready", lambda: len(self.ready_pods(app=app)) == count)
        until("the gateway answers", lambda: self.user(1).status_code == 200)

    def scaled(self, app, replicas):
        """The app's manifest with another number of replicas."""
        found = next(f for f in (self.folder / "shop").glob("*.yaml")
                     if f"name: {app}\n" in f.read_text() and "replicas:" in f.read_text())
        text = re.sub(r"replicas: \d+", f"replicas: {replicas}", found.read_text())
        target = self.folder / f"{app}-{replicas}.yaml"
        target.write_text(text)
        return target

    def synced(self):
        proxies = self.json("/v1/weft/proxies")["proxies"]
        return proxies and all(p["connected"] and p["state"] == "in sync" for p in proxies)

    def at_home(self, _, text):
        """All machines have one disk here: programs start in the same folder on each."""
        build = os.environ.get("SHOP_BUILD", "release")
        text = text.replace("target/release/", f"target/{build}/")
        return re.sub(r"(\n\s*)(weft.dev/command:)", rf"\1weft.dev/workdir: {self.folder}/shop\1\2",
                      text)

    def user(self, number):
        return self.gateway().get(f"http://127.0.0.1:8000/users/{number}")

    def gateway(self):
        """The machine that the Gateway's pod is on."""
        pods = [p for p in self.ready_pods()
                if p["metadata"].get("annotations", {}).get("weft.dev/proxy") == "gateway"]
        home = pods[0]["spec"]["nodeName"]
        return {"a": self.a, "b": self.b}.get(home, self.s)

    def order(self):
        def post():
            body = {"user": 1, "product": 2, "quantity": 1}
            return requests.post("http://127.0.0.1:8000/orders", json=body, timeout=20)
        return self.gateway().inside(post)

    def end(self):
        try:
            for name in ("a", "b", "s"):
                if name in self.running:
                    self.running[name].stop()
        finally:
            for machine in (self.s, self.a, self.b):
                machine.end()
            self.switch.kill()
            self.switch.wait()
        for process in self.running.values():
            assert "panicked" not in process.log()


@pytest.fixture
def bare(tmp_path):
    """Machines on which nothing runs yet."""
    machines = Machines(tmp_path)
    try:
        yield machines
    finally:
        machines.end()


@pytest.fixture
def machines(bare):
    return bare.start()


class Readers:
    """Reads through the gateway without a pause, counted by outcome."""

    def __init__(self, machines, threads=4):
        self.machines, self.failed, self.good = machines, [], 0
        self.ending = threading.Event()
        gateway = machines.gateway()
        self.threads = [threading.Thread(target=gateway.inside, args=(self.read,))
                        for _ in range(threads)]

    def read(self):
        session = requests.Session()
        while not self.ending.is_set():
            try:
                for path in ("users/1", "products/1"):
                    answer = session.get(f"http://127.0.0.1:8000/{path}", timeout=30)
                    if answer.status_code == 200:
                        self.good += 1
                    else:
                        self.failed.append(f"{path}: {answer.status_code} {answer.text[:300]}")
            except requests.RequestException as error:
                self.failed.append(repr(error))
            time.sleep(0.005)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        for thread in self.threads:
            thread.join()


def test_the_shop_on_three_machines_and_one_is_cut_off(machines):
    machines.join(machines.a)
    machines.join(machines.b, "--label", "disk=ssd")
    assert machines.node("b")["metadata"]["labels"]["disk"] == "ssd"
    machines.deploy_shop()
    at = {app: {p["spec"]["nodeName"] for p in machines.ready_pods(app=app)}
          for app in ("user", "product", "order")}
    server = next(n["metadata"]["name"] for n in machines.json("/api/v1/nodes")["items"]
                  if n["metadata"]["name"] not in ("a", "b"))
    assert at["product"] == {server, "a", "b"}
    assert len(at["user"]) == 2 and len(at["order"]) == 2
    # Each pod is reached at its machine's address.
    for pod in machines.ready_pods(app="product"):
        address = pod["metadata"]["annotations"]["weft.dev/mesh-address"]
        home = {server: machines.s, "a": machines.a, "b": machines.b}[pod["spec"]["nodeName"]]
        assert address.startswith(home.address + ":")
        assert pod["status"]["hostIP"] == home.address
    before = machines.json("/api/v1/namespaces/shop/pods")
    assert machines.order().status_code == 201

    with Readers(machines) as readers:
        until("reads go well", lambda: readers.good > 200)
        assert not readers.failed, readers.failed[:3]
        machines.b.cut()
        machines.until_node("b", "False")
        until("its pods take no requests", lambda: not [
            p for p in machines.ready_pods() if p["spec"]["nodeName"] == "b"])
        good = readers.good
        until("reads go on", lambda: readers.good > good + 200)
        # Also while nobody knew yet: requests found another instance.
        assert not readers.failed, readers.failed[:3]

        assert machines.order().status_code == 201
        status = machines.s.weft("status", check=False)
        assert status.returncode == 3
        assert "node b" in status.stdout and "not heard of" in status.stdout, status.stdout

        machines.b.heal()
        machines.until_node("b", "True")
        until("its pods take requests again", lambda: [
            p for p in machines.ready_pods(app="product") if p["spec"]["nodeName"] == "b"])
        good = readers.good
        until("reads go on", lambda: readers.good > good + 200)
        assert not readers.failed, readers.failed[:3]
    after = machines.json("/api/v1/namespaces/shop/pods")
    names = [sorted(p["metadata"]["name"] for p in x["items"]) for x in (before, after)]
    assert names[0] == names[1], "nothing was started anew for a short silence"
    until("no problem is left", lambda: machines.s.weft("status", check=False).returncode == 0)


def test_a_server_that_dies_and_comes_back_disturbs_nobody(bare):
    """No agent on the server's machine: what runs, runs elsewhere."""
    machines = bare
    machines.serve("server")
    machines.join(machines.a)
    machines.join(machines.b)
    machines.s.weft("apply", "-f", "examples/shop/00-namespace.yaml")
    machines.deploy_shop()
    assert {p["spec"]["nodeName"] for p in machines.ready_pods()} == {"a", "b"}

    def started():
        return sorted((p["metadata"]["name"], c["restartCount"], c.get("containerID"))
                      for p in machines.json("/api/v1/namespaces/shop/pods")["items"]
                      for c in p["status"]["containerStatuses"])
    before = started()
    with Readers(machines) as readers:
        until("reads go well", lambda: readers.good > 100)
        machines.running.pop("s").stop(signal.SIGKILL)
        good = readers.good
        until("reads go on with no server", lambda: readers.good > good + 300)
        machines.serve("server")
        for name in ("a", "b"):
            machines.until_node(name, "True")
        until("proxies are in sync", lambda: machines.synced())
        good = readers.good
        until("reads go on", lambda: readers.good > good + 100)
        assert not readers.failed, readers.failed[:3]
    assert started() == before
    # And it still commands.
    machines.s.weft("apply", "-f", machines.scaled("user", 3))
    until("a third user", lambda: len(machines.ready_pods(app="user")) == 3)


def test_joining_needs_a_good_token_and_an_agent_comes_back_without_one(machines):
    def refused(token, *more):
        agent = machines.agent(machines.a, token, *more)
        code = agent.process.wait(60)
        return code, agent.log()

    code, log = refused(None)
    assert code == 2 and "weft token create" in log
    good = machines.token()
    secret, pin = good.split(".")
    code, log = refused(f"{secret}.{'0' * 64}")
    assert code == 1 and "not of the pinned authority" in log, log
    code, log = refused(f"{secret[:-2]}xx.{pin}")
    assert code == 1 and "not known" in log, log
    listed = machines.s.weft("token", "list").stdout
    assert "unused" in listed and secret not in listed
    spare = json.loads(machines.s.weft("token", "create", "--host", "z", "--ttl", "5m", "-o",
                                       "json").stdout)
    assert "z" in machines.s.weft("token", "list").stdout
    machines.s.weft("token", "delete", spare["id"])
    assert spare["id"] not in machines.s.weft("token", "list").stdout
    code, log = refused(spare["token"], "--name", "z")
    assert code == 1 and "not known" in log, log
    # None of these used the good one up.
    machines.agent(machines.a, good).announced()
    machines.until_node("a", "True")
    running = machines.running["a"]
    assert (machines.folder / "agent-a/host.pem").stat().st_mode & 0o777 == 0o600
    assert "used" in machines.s.weft("token", "list").stdout
    agent = machines.agent(machines.b, good)
    assert agent.process.wait(60) == 1 and "used before" in agent.log()

    # It has a certificate now: it starts again without a token.
    running.stop(signal.SIGKILL)
    machines.until_node("a", "False")
    machines.agent(machines.a).announced()
    machines.until_node("a", "True")
    # One that is stopped says so, and is not waited for.
    machines.running["a"].stop()
    machines.until_node("a", "False")
    conditions = machines.node("a")["status"]["conditions"]
    assert [c["message"] for c in conditions if c["type"] == "Ready"] == ["its agent was stopped"]
    machines.agent(machines.a).announced()
    machines.until_node("a", "True")
    # A host that was removed is none any more, and says so.
    machines.s.weft("delete", "node", "a")
    agent = machines.running.pop("a")
    assert agent.process.wait(60) == 1
    assert "removed from the mesh" in agent.log()


def test_pods_of_an_agent_that_is_killed_leave_nothing_behind(machines):
    machines.join(machines.a)
    pod = {"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": "sleeper", "namespace": "shop",
                        "annotations": {"weft.dev/command":
                                        "sh -c 'echo good evening; exec /bin/sleep 100077'"}},
           "spec": {"nodeSelector": {"kubernetes.io/hostname": "a"},
                    "containers": [{"name": "c", "image": "sleep"}]}}
    file = machines.folder / "pod.json"
    file.write_text(json.dumps(pod))
    machines.s.weft("apply", "-f", file)
    until("it runs", lambda: machines.ready_pods())
    # What it says is read on the server's machine.
    log = machines.api + "/api/v1/namespaces/shop/pods/sleeper/log"
    until("it has said so", lambda: machines.s.get(log).text == "good evening\n")
    missing = machines.s.get(log + "?container=other")
    assert missing.status_code == 400 and "other" in missing.text, missing.text
    assert machines.s.get(log + "?previous=true").status_code == 400

    def follow():
        with requests.get(log + "?follow=true", stream=True, timeout=60) as answer:
            return next(answer.iter_lines())
    assert machines.s.inside(follow) == b"good evening"
    found = subprocess.run(["pgrep", "-f", "/bin/sleep 100077"], capture_output=True, text=True)
    pids = [int(p) for p in found.stdout.split()]
    assert pids
    agent = machines.running.pop("a")
    agent.process.kill()
    agent.process.wait()
    until("its processes are gone", lambda: not any(alive(p) for p in pids))


def test_pods_of_another_machine_are_looked_into_and_measured(machines):
    """kubectl's every form is in test_kubectl_streams.py; here the machine goes away meanwhile."""
    machines.join(machines.a)
    pod = {"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": "busy", "namespace": "shop", "annotations": {
               "weft.dev/command": "sh -c 'while :; do :; done'"}},
           "spec": {"nodeSelector": {"kubernetes.io/hostname": "a"},
                    "containers": [{"name": "c", "image": "busy"}]}}
    file = machines.folder / "pod.json"
    file.write_text(json.dumps(pod))
    machines.s.weft("apply", "-f", file)
    until("it runs", lambda: machines.ready_pods())
    kubectl = [BIN / "kubectl", "--server", machines.api, "-n", "shop"]
    script = "readlink /proc/self/ns/net; exit 5"
    done = machines.s.run(*kubectl, "exec", "busy", "--", "sh", "-c", script, check=False)
    assert done.returncode == 5, done
    assert done.stdout.strip() == os.readlink(f"/proc/{machines.a.process.pid}/ns/net")

    def used():
        rows = machines.s.run(*kubectl, "top", "pods").stdout.splitlines()[1:]
        return [r for r in rows if r.startswith("busy") and int(r.split()[1].rstrip("m")) > 20]
    until("its processor is measured", used)
    assert "a " in machines.s.run(*kubectl, "top", "nodes").stdout

    def watcher():
        process = machines.s.popen(*kubectl, "exec", "busy", "--", "sh", "-c",
                                   "echo up; exec sleep 1000", stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        assert process.stdout.readline() == "up\n"
        return process
    # A machine that is cut off ends what was open, and says which it is.
    open_there = watcher()
    machines.a.cut()
    said, _ = open_there.communicate(timeout=60)
    assert open_there.returncode != 0 and "host a" in said, said
    machines.until_node("a", "False")
    refused = machines.s.run(*kubectl, "exec", "busy", "--", "true", check=False)
    assert refused.returncode != 0 and "host a" in refused.stderr, refused
    machines.a.heal()
    machines.until_node("a", "True")
    until("it can be looked into again", lambda: machines.s.run(
        *kubectl, "exec", "busy", "--", "true", check=False).returncode == 0)
    # So does an agent that is killed.
    open_there = watcher()
    agent = machines.running.pop("a")
    agent.process.kill()
    agent.process.wait()
    said, _ = open_there.communicate(timeout=60)
    assert open_there.returncode != 0 and "host a" in said, said
