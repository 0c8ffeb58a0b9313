# SPDX-License-Identifier: Apache-2.0
"""`weft agent --capture`: programs of a machine that know nothing of weft, by their user. Two
network namespaces are the machines: server and a pod on one, an agent that captures on the other.
Each has a resolver of its own (`resolv.conf` in a private mount namespace), so that it is seen who
asks whom for names.
"""

import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading

import pytest
import requests

from mesh import BIN, WEFT, until
from test_agents import Machine, Process, holder, ip

pytestmark = pytest.mark.root
CAPTURED, OTHER = 4711, 4712
ACCOUNT = "spiffe://cluster.local/ns/shop/sa/legacy"
WEB = """\
import json, os, sys, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/call/"):
            body = urllib.request.urlopen("http://" + self.path[6:], timeout=20).read()
        else:
            body = json.dumps({"name": NAME, "path": self.path, "from": self.client_address[0],
                               "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


NAME, PORT = sys.argv[1], int(sys.argv[2])
ThreadingHTTPServer((os.environ.get("POD_IP", "0.0.0.0"), PORT), Web).serve_forever()
"""
MANIFESTS = """\
apiVersion: v1
kind: Namespace
metadata: {{name: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: user, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: user}}}}
  template:
    metadata:
      labels: {{app: user}}
      annotations: {{weft.dev/command: "{python} {web} user $(PORT)"}}
    spec:
      serviceAccountName: user
      containers:
      - {{name: user, image: user, ports: [{{containerPort: 8080, name: http}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: user-service, namespace: shop}}
spec:
  selector: {{app: user}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"""
STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


class Names(threading.Thread):
    """The machines' own resolver: knows one name, and who asked for which."""

    def __init__(self, machine):
        super().__init__(daemon=True)
        self.asked = []
        self.socket = machine.inside(self.bind)

    @staticmethod
    def bind():
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("0.0.0.0", 53))
        return udp

    def run(self):
        while True:
            try:
                query, asker = self.socket.recvfrom(4096)
            except OSError:
                return
            end = query.index(b"\0", 12)
            labels, at = [], 12
            while at < end:
                labels.append(query[at + 1:at + 1 + query[at]].decode())
                at += 1 + query[at]
            name, kind = ".".join(labels), struct.unpack("!H", query[end + 1:end + 3])[0]
            self.asked.append((asker[0], name))
            known = name == "outside.test"
            head = query[:2] + struct.pack("!HHHHH", 0x8180 if known else 0x8183, 1,
                                           int(known and kind == 1), 0, 0)
            answer = head + query[12:end + 5]
            if known and kind == 1:
                answer += b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes([10, 77, 0, 1])
            self.socket.sendto(answer, asker)


class Resolving(Machine):
    """A machine whose programs find `resolv.conf` as a real one's would."""

    resolv = None

    def inner(self, command):
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return ["nsenter", "-t", str(self.process.pid), "-n", "unshare", "-m", "sh", "-c", script,
                str(self.resolv), *map(str, command)]

    def popen(self, *command, **kw):
        return subprocess.Popen(self.inner(command), **kw)

    def run(self, *command, check=True):
        done = subprocess.run(self.inner(command), capture_output=True, text=True, timeout=60)
        if check and done.returncode != 0:
            raise AssertionError(f"{command} -> {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def curl(self, url, user=CAPTURED, seconds=20):
        return self.run("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
                        "curl", "-sS", "--max-time", seconds, "-w", "\n%{http_code}", url, check=False)

    def json(self, url, user=CAPTURED):
        done = self.curl(url, user)
        assert done.returncode == 0, done.stderr
        body, code = done.stdout.rsplit("\n", 1)
        assert code == "200", (code, body)
        return json.loads(body)

    def table(self):
        return self.run(BIN / "nft", "list", "ruleset").stdout


class Rig:
    """The server with a pod on `s`; on `a` nothing yet."""

    def __init__(self, folder):
        self.folder = folder
        folder.chmod(0o755)
        self.web = folder / "web.py"
        self.web.write_text(WEB)
        Resolving.resolv = folder / "resolv.conf"
        Resolving.resolv.write_text("nameserver 10.77.0.1\noptions timeout:10 attempts:1\n")
        self.switch = holder()
        ip(self.switch.pid, "link", "add", "switch", "type", "bridge")
        ip(self.switch.pid, "link", "set", "switch", "up")
        self.s, self.a = Resolving(self.switch, "s", 1), Resolving(self.switch, "a", 2)
        ip(self.a.process.pid, "route", "add", "default", "via", self.s.address)
        self.processes = []
        self.names = Names(self.s)
        self.names.start()

    def start(self):
        base = self.folder / "base"
        base.mkdir()
        (base / "all.yaml").write_text(MANIFESTS.format(web=self.web, python="/usr/bin/python3"))
        self.server = self.kept(Process(self.s, self.folder, "up", base, "--plain",
                                        "--pods=process", "--data", self.folder / "server",
                                        "--agents-bind", self.s.address))
        self.api = self.server.announced()["api"]
        self.until_ready("user-", 1)
        return self

    def kept(self, process):
        self.processes.append(process)
        return process

    def get(self, path):
        answer = self.s.get(self.api + path)
        answer.raise_for_status()
        return answer.json()

    def pods(self, begin):
        items = self.get("/api/v1/namespaces/shop/pods")["items"]
        return [p for p in items if p["metadata"]["name"].startswith(begin)]

    def ready(self, begin):
        def is_ready(pod):
            conditions = pod["status"].get("conditions", [])
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        return [p for p in self.pods(begin) if is_ready(p)]

    def until_ready(self, begin, count):
        until(f"{count} ready {begin}*", lambda: len(self.ready(begin)) == count)

    def token(self, *args):
        made = self.s.run(WEFT, "token", "create", "-o", "json", *args).stdout
        return json.loads(made)["token"]

    def agent(self, *flags, token=None):
        args = ["agent", "--server", f"{self.s.address}:15012", "--name", "a",
                "--data", self.folder / "agent", "--workdir", self.folder, *flags]
        if token:
            args += ["--token", token]
        return self.kept(Process(self.a, self.folder, *args))

    def billing(self, token=None, *more):
        """The agent that captures, with a service that its user's programs serve."""
        agent = self.agent("--capture", f"user={CAPTURED}", "--service-account", "shop/legacy",
                           "--service", "billing", "--port", "8080:http", *more, token=token)
        agent.announced()
        until("the rules", lambda: "table inet weft" in self.a.table())
        return agent

    def program(self, machine, name, port, user):
        process = machine.popen("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
                                "/usr/bin/python3", self.web, name, port)
        process.log = lambda: ""
        process.stop = lambda: (process.kill(), process.wait())
        return self.kept(process)

    def sidecar(self):
        """The process number of the captured programs' sidecar."""
        def found():
            for entry in pathlib.Path("/proc").iterdir():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"sidecar~shop~billing-a" in words and str(self.folder / "agent").encode() in b" ".join(words):
                    return int(entry.name)
        return until("the sidecar's process", found)

    def end(self):
        for process in reversed(self.processes):
            process.stop()
        self.names.socket.close()
        for machine in (self.s, self.a):
            machine.end()
        self.switch.kill()
        self.switch.wait()
        for process in self.processes:
            assert "panicked" not in process.log()


@pytest.fixture(scope="module")
def rig():
    # Other users look into it, which pytest's own folders do not allow.
    with tempfile.TemporaryDirectory(prefix="weft-capture-") as folder:
        rig = Rig(pathlib.Path(folder))
        try:
            yield rig.start()
        finally:
            rig.end()


def clean(rig):
    """Nothing is left on the machine, and the mesh knows of nothing there."""
    assert rig.a.table() == ""
    until("the pod is gone", lambda: not rig.pods("billing-"))


def test_who_may_not_capture_is_told_why(rig):
    def refused(*flags, token=None):
        agent = rig.agent(*flags, token=token)
        return agent.process.wait(60), agent.log()

    account = ["--service-account", "shop/legacy"]
    for flags, code, word in [
        (["--capture", "user=root", *account], 2, "root is not captured"),
        (["--capture", "user=no-such-user", *account], 2, "no user no-such-user"),
        (["--capture", "cgroup=/", *account], 2, "every process"),
        (["--capture", f"user={CAPTURED}"], 2, "--service-account"),
        (["--capture", f"user={CAPTURED}", *account, "--service", "x"], 2, "--port"),
    ]:
        found, log = refused(*flags)
        assert found == code and word in log, (flags, found, log)
    # The server judges: this token names nobody, and that one somebody else.
    for allow in ([], ["--allow", "shop/other"]):
        token = rig.token("--host", "a", *allow)
        found, log = refused("--capture", f"user={CAPTURED}", *account, token=token)
        assert found == 1 and "does not name the service account shop/legacy" in log, log
        assert "--allow shop/legacy" in log
    assert rig.a.table() == ""
    # And the kernel.
    plain = rig.folder / "plain"
    plain.mkdir()
    os.chown(plain, OTHER, OTHER)
    done = rig.a.run("setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups", WEFT,
                     "agent", "--server", f"{rig.s.address}:15012", "--data", plain / "data",
                     "--capture", f"user={CAPTURED}", *account, check=False)
    assert done.returncode == 1 and "CAP_NET_ADMIN" in done.stderr, done.stderr


def test_programs_of_a_user_are_in_the_mesh_and_leave_it_in_good_order(rig):
    a = rig.a
    direct = rig.program(rig.s, "direct", 9000, OTHER)
    until("a program outside of the mesh", lambda: a.json("http://10.77.0.1:9000/", OTHER))
    agent = rig.billing(rig.token("--host", "a", "--allow", "shop/legacy"))

    # By every name that a pod would use; the peer sees who calls.
    for name in ("user-service", "user-service.shop", "user-service.shop.svc.cluster.local"):
        seen = until(name, lambda: a.json(f"http://{name}/{name}"))
        assert (seen["name"], seen["path"]) == ("user", f"/{name}")
        assert f"URI={ACCOUNT}" in seen["headers"]["x-forwarded-client-cert"], seen
    # Names that the mesh does not know are the machine's, and so is what they lead to.
    assert a.json("http://outside.test:9000/x")["name"] == "direct"
    # Somebody else's traffic and names are as they were.
    rig.names.asked.clear()
    assert a.json("http://outside.test:9000/y", OTHER)["name"] == "direct"
    failed = a.curl("http://user-service/", OTHER)
    assert failed.returncode == 6, failed
    assert {(a.address, "outside.test"), (a.address, "user-service")} <= set(rig.names.asked)

    # On the wire between the machines there is no plaintext of it.
    wire = rig.folder / "wire.pcap"
    tcpdump = a.popen(BIN / "tcpdump", "-Z", "root", "-i", "eth0", "-U", "-w", wire, "tcp",
                      stderr=subprocess.PIPE)
    assert b"listening" in tcpdump.stderr.readline()
    a.json("http://user-service/no-plaintext-of-this")
    a.json("http://10.77.0.1:9000/but-of-this")
    until("both were seen", lambda: b"but-of-this" in wire.read_bytes())
    tcpdump.terminate()
    tcpdump.wait()
    assert b"no-plaintext-of-this" not in wire.read_bytes()

    # It serves: ready once its port is open, reached by name over mTLS.
    assert len(rig.pods("billing-a")) == 1 and not rig.ready("billing-a")
    legacy = rig.program(a, "legacy", 8080, CAPTURED)
    rig.until_ready("billing-a", 1)
    [pod] = rig.pods("billing-a")
    assert pod["status"]["podIP"] == a.address and pod["spec"]["nodeName"] == "a"
    listed = rig.s.run(WEFT, "get", "pods", "-n", "shop", "--server", rig.api).stdout
    assert re.search(r"billing-a\s.*Running", listed), listed

    [pod_of_user] = rig.ready("user-")
    user = f"{pod_of_user['status']['podIP']}:8080"
    seen = until("a pod calls it by name", lambda: json.loads(
        rig.s.get(f"http://{user}/call/billing.shop:8080/in").text))
    assert seen["name"] == "legacy"
    assert "URI=spiffe://cluster.local/ns/shop/sa/user" in seen["headers"]["x-forwarded-client-cert"]
    assert seen["from"] == a.address, "it is its own sidecar that calls it"
    # Plaintext passes the sidecar too, and is refused once the policy says so.
    assert rig.s.get(f"http://{a.address}:8080/").json()["name"] == "legacy"
    strict = rig.folder / "strict.yaml"
    strict.write_text(STRICT)
    rig.s.run(WEFT, "apply", "-f", strict, "--server", rig.api)
    until("plaintext is refused", lambda: rig.s.get(f"http://{a.address}:8080/").status_code == 403)
    assert rig.s.get(f"http://{user}/call/billing.shop:8080/in").json()["name"] == "legacy"
    rig.s.run(WEFT, "delete", "-f", strict, "--server", rig.api)
    legacy.stop()
    until("it is not ready", lambda: not rig.ready("billing-a"))

    # Asked to end, nothing stays; the program goes on without.
    agent.stop(signal.SIGTERM)
    clean(rig)
    assert a.curl("http://user-service/").returncode == 6
    assert a.json("http://10.77.0.1:9000/")["name"] == "direct"
    direct.stop()


def test_without_its_sidecar_it_is_refused_and_down_leaves_nothing(rig):
    a = rig.a
    direct = rig.program(rig.s, "direct", 9000, OTHER)
    agent = rig.billing()
    until("it is in the mesh", lambda: a.json("http://user-service/"))
    # An agent that cannot help it.
    agent.process.send_signal(signal.SIGSTOP)
    os.kill(rig.sidecar(), signal.SIGKILL)
    until("refused", lambda: a.curl("http://10.77.0.1:9000/").returncode == 7)
    assert a.json("http://10.77.0.1:9000/", OTHER)["name"] == "direct"
    agent.process.send_signal(signal.SIGCONT)
    until("it is back", lambda: a.json("http://user-service/"))

    # Nor does it open a way around when somebody deletes the pod that stands for it.
    [pod] = rig.pods("billing-a")
    path = "/api/v1/namespaces/shop/pods/" + pod["metadata"]["name"]
    a_while = "?gracePeriodSeconds=1"
    rig.s.inside(lambda: requests.delete(rig.api + path + a_while, timeout=20).raise_for_status())

    tables = []

    def met():
        code = a.curl("http://10.77.0.1:9000/").returncode
        tables.append(a.table())
        return code
    until("refused", lambda: met() == 7)

    def declared_again():
        met()
        found = rig.pods("billing-a")
        return found and found[0]["metadata"]["uid"] != pod["metadata"]["uid"]
    until("declared again", declared_again)
    until("it is in the mesh", lambda: met() == 0 and a.json("http://user-service/"))
    assert all("table inet weft" in table for table in tables), tables

    # A firewall that is loaded anew takes the rules away; they come back.
    a.run(BIN / "nft", "flush", "ruleset")
    until("the rules", lambda: "table inet weft" in a.table())
    until("it is in the mesh", lambda: a.json("http://user-service/"))

    # Killed, what it captured is refused and not let by.
    agent.process.kill()
    agent.process.wait()
    until("refused", lambda: a.curl("http://10.77.0.1:9000/").returncode == 7)
    assert "table inet weft" in a.table()
    assert a.json("http://10.77.0.1:9000/", OTHER)["name"] == "direct"
    # Nor do others get it, who open the sidecar's port now.
    thief = rig.program(a, "thief", 15001, OTHER)
    until("the thief", lambda: a.json("http://127.0.0.1:15001/", OTHER)["name"] == "thief")
    assert a.curl("http://10.77.0.1:9000/", seconds=5).returncode == 28
    thief.stop()
    # The next start takes it up again, without a token.
    agent = rig.billing()
    until("it is in the mesh", lambda: a.json("http://user-service/"))
    agent.process.kill()
    agent.process.wait()
    down = a.run(WEFT, "down", "--data", rig.folder / "agent")
    assert "removed the capture rules" in down.stdout + down.stderr
    assert a.table() == ""
    assert a.json("http://10.77.0.1:9000/")["name"] == "direct"
    # So does one that captures nothing.
    agent = rig.billing()
    agent.process.kill()
    agent.process.wait()
    assert "table inet weft" in a.table()
    rig.agent().announced()
    until("the rules are gone", lambda: a.table() == "")
    direct.stop()
