# SPDX-License-Identifier: Apache-2.0
"""Several servers on one etcd: one authority, one leader, and nothing lost when one of them or a
member of the etcd goes away."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests

from mesh import BIN, WEFT, free_port, until
from test_store import Server, put, raw

SEAL = "a seal key of the tests, forty bytes long"


class Etcd:
    """Three members on loopback, short beats so that a drill takes seconds. Where no time is the
    thing tested the beats (ms) are longer: on a busy machine a member may be without a processor for
    half a second, and is not to be voted out for that."""

    def __init__(self, folder, members=3, args=(), users=None):
        self.folder, self.users = folder, users or {}
        self.beat = 50 if users else 150
        self.names = [f"m{i}" for i in range(members)]
        self.client = {n: free_port() for n in self.names}
        self.peer = {n: free_port() for n in self.names}
        self.args = list(args)
        self.members = {}

    def __enter__(self):
        for name in self.names:
            self.start(name)
        until("etcd has a leader", lambda: self.health(self.names[0]))
        return self

    def __exit__(self, *_):
        for process in self.members.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(60)
        self.log.close()

    def start(self, name):
        self.log = open(self.folder / f"etcd-{name}.log", "ab")
        cluster = ",".join(f"{n}=http://127.0.0.1:{p}" for n, p in self.peer.items())
        client, peer = (f"http://127.0.0.1:{ports[name]}" for ports in (self.client, self.peer))
        data, user = self.folder / f"etcd-{name}", self.users.get(name)
        data.mkdir(mode=0o700, exist_ok=True)
        if user:
            os.chown(data, user, user)
        # The wrapper execs: signals reach etcd itself.
        self.members[name] = subprocess.Popen(
            [str(BIN / "etcd"), "--name", name, "--data-dir", str(data),
             "--unsafe-no-fsync", "--heartbeat-interval", str(self.beat),
             "--election-timeout", str(10 * self.beat),
             "--listen-client-urls", client, "--advertise-client-urls", client,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
             "--initial-cluster", cluster, *self.args],
            stdout=self.log, stderr=self.log, user=user, group=user)

    def health(self, name):
        url = f"http://127.0.0.1:{self.client[name]}/health"
        return requests.get(url, timeout=10).json().get("health") in ("true", True)

    def url(self, prefix="weft"):
        hosts = ",".join(f"127.0.0.1:{p}" for p in self.client.values())
        return f"etcd://{hosts}/{prefix}"

    def leader(self):
        def found():
            for name in self.names:
                done = self.ctl("endpoint", "status", "-w", "json", at=name)
                status = json.loads(done)[0]["Status"]
                if status["leader"] == status["header"]["member_id"]:
                    return name
            return None
        return until("a member of etcd leads", found)

    @contextlib.contextmanager
    def cut(self, name, peers_only=False):
        """Nothing that the member sends arrives, or nothing of it at its peers. In a network of the
        test's own, and with a user for each member."""
        own, user = self.peer[name], self.users[name]
        others = ", ".join(str(port) for other, port in self.peer.items() if other != name)
        which = [f"meta skuid {user} tcp dport {{ {others} }} drop;",
                 f"meta skuid {user} tcp sport {own} drop;"] if peers_only else \
                [f"meta skuid {user} drop;"]
        lines = "\n".join(which)
        nft(f"table inet cut {{\nchain c {{\ntype filter hook output priority 0;\n{lines}\n}}\n}}\n")
        try:
            yield
        finally:
            nft("delete table inet cut\n")

    def ctl(self, *args, at=None):
        hosts = ",".join(f"127.0.0.1:{p}" for n, p in self.client.items() if at in (None, n))
        env = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run([str(BIN / "etcdctl"), "--endpoints", hosts, *args], env=env,
                              capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("latin-1")


def nft(rules):
    subprocess.run([BIN / "nft", "-f", "-"], input=rules, text=True, check=True)


@pytest.fixture
def etcd(tmp_path):
    with Etcd(tmp_path) as cluster:
        yield cluster


def seal_file(tmp_path):
    path = tmp_path / "seal"
    path.write_text(SEAL)
    path.chmod(0o600)
    return path


def server(tmp_path, etcd, name, extra=()):
    return Server(tmp_path / name, ["--store", etcd.url(), "--seal-key-file",
                                    str(seal_file(tmp_path)), "--node", name, *extra])


def status(at):
    return requests.get(f"{at.api}/v1/weft/status", timeout=20).json()


def leader_of(servers):
    said = {status(s)["leader"] for s in servers}
    assert len(said) == 1 and None not in said, said
    return said.pop()


def test_servers_share_one_mesh_and_one_leads(tmp_path, etcd):
    with server(tmp_path, etcd, "a") as a, server(tmp_path, etcd, "b") as b:
        assert put(a, "k", "1").status_code == 200
        until("b shows it", lambda: raw(b, "k").text == "1")
        assert put(b, "k", "2").status_code == 200
        until("a shows it", lambda: raw(a, "k").text == "2")
        name = until("one leads", lambda: leader_of([a, b]))
        until("both are named", lambda: status(a)["servers"] == ["a", "b"] == status(b)["servers"])
        leads = {s.data.name: "\nweft_leader 1\n" in requests.get(f"{s.api}/metrics", timeout=20).text
                 for s in (a, b)}
        assert leads == {"a": name == "a", "b": name == "b"}
        # One authority, whose key lies in etcd sealed and is in no log.
        root = (tmp_path / "a/ca/root.pem").read_bytes()
        assert (tmp_path / "b/ca/root.pem").read_bytes() == root
        everything = etcd.ctl("get", "/weft/", "--prefix").encode("latin-1")
        secret = root.split(b"-----")[2].strip().replace(b"\n", b"")[:40]
        assert b"PRIVATE KEY" not in everything and secret not in everything
        assert b"PRIVATE KEY" not in (a.log_text() + b.log_text()).encode()
        # A token made by one admits at the other; both would sign with the same authority.
        made = requests.post(f"{a.api}/v1/weft/tokens", json={}, timeout=20)
        assert made.ok, made.text
        listed = until("b knows the token", lambda: requests.get(
            f"{b.api}/v1/weft/tokens", timeout=20).json()["tokens"])
        assert len(listed) == 1
        said = subprocess.run([str(WEFT), "status", "--server", b.api], capture_output=True,
                              text=True, timeout=60).stdout
        assert f"servers a, b   {name} leads" in said
        # The leader is killed: the other leads within the lease, and what only it said ends.
        first, second = (a, b) if name == "a" else (b, a)
        first.kill()
        gone = time.monotonic()
        # The lease is 5 s; the machine may be busy with others.
        until("the other leads", lambda: status(second)["leader"] == second.data.name)
        took = time.monotonic() - gone
        print(f"\nthe other led after {took:.1f} s")
        until("it is not named any more",
              lambda: status(second)["servers"] == [second.data.name])
        assert put(second, "k", "3").status_code == 200
        # It comes back without its data, as a stateless server does.
        subprocess.run(["rm", "-r", str(first.data)], check=True)
        first.start()
        assert raw(first, "k").text == "3"
        assert (first.data / "ca/root.pem").read_bytes() == root


def test_consuls_clients_are_told_the_truth_of_leaders_and_of_a_store_out_of_reach(tmp_path, etcd):
    with server(tmp_path, etcd, "a") as a, server(tmp_path, etcd, "b") as b:
        name = until("one leads", lambda: leader_of([a, b]))
        leads, other = (a, b) if name == "a" else (b, a)

        def get(at, path):
            return requests.get(f"{at.consul}/v1/{path}", timeout=40)

        # Each server names all, and the one that leads.
        apis = [s.api.removeprefix("http://") for s in (a, b)]
        of_leader = leads.api.removeprefix("http://")
        for at in (a, b):
            until("both are peers", lambda: get(at, "status/peers").json() == apis)
            until("it knows who leads", lambda: get(at, "status/leader").json() == of_leader)
            raft = get(at, "operator/raft/configuration").json()["Servers"]
            assert [(s["Node"], s["Leader"]) for s in raft] == [("a", name == "a"),
                                                                ("b", name == "b")]
            health = get(at, "operator/autopilot/health").json()
            assert (health["Healthy"], health["FailureTolerance"]) == (True, 1)
            ids = {s["Node"]: s["ID"] for s in raft}
            stats = get(at, "agent/self").json()
            assert ids[at.data.name] == stats["Config"]["NodeID"]
            assert stats["Stats"]["consul"]["leader"] == str(at is leads).lower()
        assert put(a, "k", "1").status_code == 200
        # What one acknowledged the other shows at once, to who asks like everybody does.
        # (An etcd that stalls for over a second has it say that it may be an older answer.)
        sure = 0
        for n in range(150):
            assert put(a, "turn", str(n)).status_code == 200
            told = raw(b, "turn")
            assert register(b, f"s{n}", 80, "elsewhere").ok
            found = get(a, f"health/service/s{n}")
            for answer, right in ((told, told.text == str(n)), (found, len(found.json()) == 1)):
                if answer.headers["X-Consul-Effective-Consistency"] == "leader":
                    assert right, "an answer from before that says to be the leader's"
                    sure += 1
        assert sure > 150, f"{sure} of 300 answers were sure"
        reads = ["health/service/consul", "catalog/nodes", "kv/k"]
        for path in reads:
            for mode in ("consistent", "stale", "near="):
                answer = get(other, f"{path}?{mode}")
                assert answer.status_code == 200, answer.text
                assert answer.headers["X-Consul-KnownLeader"] == "true"
        # No member is left: what must be sure is refused as clients can understand it.
        for member in etcd.members.values():
            member.kill()
            member.wait(60)
        until("it is known", lambda: get(
            other, "catalog/nodes").headers["X-Consul-KnownLeader"] == "false")
        for path in reads:
            refused = get(other, f"{path}?consistent")
            assert refused.status_code == 500, (path, refused.status_code, refused.text)
            assert refused.text.startswith("No cluster leader"), refused.text
            stale = get(other, f"{path}?stale")
            assert stale.status_code == 200 and stale.headers["X-Consul-KnownLeader"] == "false"
            assert int(stale.headers["X-Consul-LastContact"]) >= 2000
            assert stale.headers["X-Consul-Effective-Consistency"] == "stale"
        refused = put(other, "k", "2")
        assert refused.status_code == 500 and refused.text.startswith("No cluster leader"), refused
        assert get(other, "status/leader").json() == ""
        for member in etcd.names:
            etcd.start(member)
        until("all is well again", lambda: get(
            other, "catalog/nodes").headers["X-Consul-KnownLeader"] == "true")
        until("writes go on", lambda: put(other, "k", "3").status_code == 200)
        assert get(other, "kv/k?consistent&raw").text == "3"


def test_a_server_with_another_seal_key_or_mesh_is_refused(tmp_path, etcd):
    with server(tmp_path, etcd, "a"):
        pass
    other = tmp_path / "other"
    other.write_text("another key, which is long enough as well")
    other.chmod(0o600)
    command = [str(WEFT), "server", "--ports", "auto", "--store", etcd.url()]

    def refused(*args):
        done = subprocess.run([*command, *map(str, args)], capture_output=True, text=True,
                              timeout=60)
        assert done.returncode in (1, 2), done
        return done.stderr
    assert "sealed with another key" in refused("--data", tmp_path / "c", "--seal-key-file", other)
    assert "--seal-key-file" in refused("--data", tmp_path / "c")
    with Server(tmp_path / "own"):
        pass
    said = refused("--data", tmp_path / "own", "--seal-key-file", seal_file(tmp_path))
    assert "authority of another mesh" in said


def test_a_dead_servers_node_is_given_up_and_its_name_is_its_own(tmp_path, etcd):
    with server(tmp_path, etcd, "a") as a, server(tmp_path, etcd, "b") as b:
        # A second one of a name, from another data directory, while the first lives.
        second = Server(tmp_path / "elsewhere", ["--store", etcd.url(), "--seal-key-file",
                                                 str(seal_file(tmp_path)), "--node", "b"])
        with pytest.raises(AssertionError, match="give each server a --node of its own"):
            second.start()
        put_service = requests.put(f"{b.consul}/v1/agent/service/register", timeout=20,
                                   json={"Name": "web", "Port": 80})
        assert put_service.ok
        held = requests.put(f"{b.consul}/v1/session/create", json={"Name": "lock"}, timeout=20)
        lock = held.json()["ID"]

        def at_a(path):
            return requests.get(f"{a.consul}/v1/{path}", timeout=20).json()
        until("a sees it", lambda: len(at_a("health/service/web?passing")) == 1)
        b.kill()
        until("its node is given up", lambda: at_a("health/service/web?passing") == [])
        checks = {check["CheckID"]: check["Status"] for check in at_a("health/node/b")}
        assert checks["serfHealth"] == "critical"
        until("its session is over", lambda: at_a(f"session/info/{lock}") == [])
        b.start()
        until("it is back", lambda: len(at_a("health/service/web?passing")) == 1)


def test_a_paused_leader_writes_nothing_stale(tmp_path, etcd):
    """F27: SIGSTOP for longer than the lease; what the leader decided before is not written."""
    with server(tmp_path, etcd, "a") as a, server(tmp_path, etcd, "b") as b:
        name = until("one leads", lambda: leader_of([a, b]))
        first, second = (a, b) if name == "a" else (b, a)
        # A check that this server runs: it passes all the while, and nothing changes at it.
        listener = socket.create_server(("127.0.0.1", 0))
        checked = {"Name": "checked", "Port": listener.getsockname()[1], "Check": {
            "TCP": f"127.0.0.1:{listener.getsockname()[1]}", "Interval": "1s"}}
        assert requests.put(f"{first.consul}/v1/agent/service/register", json=checked,
                            timeout=20).ok

        def said():
            found = requests.get(f"{second.consul}/v1/health/service/checked?passing", timeout=20)
            return len(found.json())
        until("its check passes", lambda: said() == 1)
        # Every write of the leader's key from now on, as etcd has it: also where who watches is slow
        # to begin.
        now = json.loads(etcd.ctl("get", "/weft/none", "-w", "json"))["header"]["revision"]
        terms = tmp_path / "terms"
        with open(terms, "wb") as out:
            watching = subprocess.Popen(
                [str(BIN / "etcdctl"), "--endpoints",
                 f"127.0.0.1:{etcd.client[etcd.names[0]]}", "watch", f"--rev={now + 1}",
                 "/weft/k/e/leader"], stdout=out, env={**os.environ, "ETCDCTL_API": "3"})
        events = []
        stop = threading.Event()
        failed = []

        def follow():
            """A watcher of keys at the server that goes on: no event twice, none lost."""
            index, session = 0, requests.Session()
            while not stop.is_set():
                answer = session.get(f"{second.consul}/v1/kv/n/?recurse&index={index}&wait=2s",
                                     timeout=20)
                now = int(answer.headers["X-Consul-Index"])
                assert now >= index, "an index went back"
                if answer.status_code == 200 and now > index:
                    events.append((now, len(answer.json())))
                index = now
        watcher = threading.Thread(target=follow)
        watcher.start()
        os.kill(first.process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        until("the other leads", lambda: status(second)["leader"] == second.data.name)
        n = 0
        while time.monotonic() - stopped < 10:
            answer = put(second, f"n/{n:04}", "x")
            if answer.status_code != 200:
                failed.append(answer.text)
            n += 1
            time.sleep(0.02)
        until("its node is given up with its lease", lambda: said() == 0)
        os.kill(first.process.pid, signal.SIGCONT)
        until("it knows", lambda: status(first)["leader"] == second.data.name)
        until("it has caught up", lambda: len(requests.get(
            f"{first.consul}/v1/kv/n/?recurse", timeout=20).json()) == n)
        until("its node is heard again", lambda: said() == 1)
        listener.close()
        until("the watcher has the last one", lambda: events and events[-1][1] == n)
        stop.set()
        watcher.join()
        until("the other's term is told", lambda: "PUT" in terms.read_text().splitlines())
        watching.terminate()
        watching.wait(60)
        told = terms.read_text()
        assert not failed, failed[:3]
        counts = [count for _, count in events]
        assert counts == sorted(set(counts)) and counts[-1] == n, "told twice, or not at all"
        lines = [line for line in told.splitlines() if line in ("PUT", "DELETE")]
        # A write of a leader that was one no more would follow the other's: two PUTs in a row.
        changes = max(1, len(lines) // 2)
        assert lines == ["DELETE", "PUT"] * changes, "each began after another's end: " + told
        assert "leads no more" in first.log_text()


def register(at, name, port, node, timeout=20):
    body = {"Node": node, "Address": "127.0.0.1",
            "Service": {"Service": name, "ID": f"{name}-{port}", "Port": port,
                        "Address": "127.0.0.1"}}
    return requests.put(f"{at.consul}/v1/catalog/register", json=body, timeout=timeout)


BACKEND = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(sys.argv[1])))
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())
    def log_message(self, *_):
        pass
class S(http.server.ThreadingHTTPServer):
    request_queue_size = 256
S(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""

GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec:
  gatewayClassName: weft
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners:
  - {{name: http, port: {port}, protocol: HTTP}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: default}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - backendRefs: [{{name: web, port: {backend}}}]
"""


class Load(threading.Thread):
    """Requests at a steady rate over a few connections; every one that fails, or is not answered
    within `patience` seconds, is noted."""

    def __init__(self, port, rate, patience=5):
        super().__init__(daemon=True)
        self.port, self.rate, self.patience = port, rate, patience
        self.sent, self.failed, self.slowest, self.answered = 0, [], 0.0, set()
        self.began = time.monotonic()
        self.stopping = threading.Event()

    def run(self):
        lanes = [threading.Thread(target=self.lane, args=(i,)) for i in range(6)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()

    def lane(self, number):
        import http.client
        every, connection = 6 / self.rate, None
        due = time.monotonic() + number * every / 6
        while not self.stopping.is_set():
            time.sleep(max(0, due - time.monotonic()))
            due += every
            began = time.monotonic()
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port,
                                                            timeout=self.patience)
                connection.request("GET", "/")
                answer = connection.getresponse()
                self.answered.add(int(answer.read() or b"0"))
                if answer.status != 200:
                    self.failed.append(answer.status)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failed.append(repr(error))
                connection = None
            self.sent += 1
            self.slowest = max(self.slowest, time.monotonic() - began)


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=30)


MESHED = """
apiVersion: v1
kind: Namespace
metadata: {{name: meshed}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: all, namespace: meshed}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: meshed}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
        - name: main
          image: none
          command: [{python}, {program}, $(POD_IP), $(PORT), $(POD_NAME)]
          ports: [{{name: http, containerPort: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: meshed}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: http}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: meshed}}
spec:
  gatewayClassName: weft
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners: [{{name: http, port: {port}, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: meshed}}
spec:
  parentRefs: [{{name: edge}}]
  rules: [{{backendRefs: [{{name: web, port: 80}}]}}]
"""

NAMED = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        name = sys.argv[3].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(name)))
        self.end_headers()
        self.wfile.write(name)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()
"""


def agent_of(tmp_path, one, name, token):
    """An agent that knows one server only."""
    with open(tmp_path / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            [str(WEFT), "agent", "--server", one.doors["xds"], "--name", name, "--data",
             str(tmp_path / name), "--token", token], stdout=log, stderr=log)


def chain_of(at, service, folder):
    """A leaf that this server signs, and the root that it names, as files."""
    leaf = requests.get(f"{at.consul}/v1/agent/connect/ca/leaf/{service}", timeout=20).json()
    roots = requests.get(f"{at.consul}/v1/connect/ca/roots", timeout=20).json()
    (root,) = [r["RootCert"] for r in roots["Roots"] if r["Active"]]
    paths = folder / f"{at.data.name}-leaf.pem", folder / f"{at.data.name}-root.pem"
    for path, text in zip(paths, (leaf["CertPEM"], root)):
        path.write_text(text)
    return *paths, roots["TrustDomain"]


def test_servers_that_begin_at_once_have_one_authority_and_each_signs(tmp_path, etcd):
    """No two roots after a race; what either server signed is good for all, also for proxies of
    agents that know one server each, and after the other server is gone."""
    a, b = (server(tmp_path, etcd, name) for name in "ab")
    beginning = [threading.Thread(target=one.start) for one in (a, b)]
    agents = []
    try:
        for thread in beginning:
            thread.start()
        for thread in beginning:
            thread.join()
        assert (tmp_path / "a/ca/root.pem").read_bytes() == (tmp_path / "b/ca/root.pem").read_bytes()
        until("one leads", lambda: leader_of([a, b]))
        chains = [chain_of(one, "web", tmp_path) for one in (a, b)]
        assert chains[0][2] == chains[1][2]
        serials = set()
        for (leaf, _, _), (_, root, _) in zip(chains, reversed(chains)):
            # Each one's leaf by what the other says is the root.
            openssl("verify", "-CAfile", root, leaf)
            said = subprocess.run(["openssl", "x509", "-in", leaf, "-noout", "-serial"],
                                  capture_output=True, check=True, timeout=30)
            serials.add(said.stdout)
        assert len(serials) == 2, "two servers gave one serial number"
        # With the index of another's leaf nobody is answered at once, again and again.
        late = int(time.time()) + 1000
        began = time.monotonic()
        kept = requests.get(f"{b.consul}/v1/agent/connect/ca/leaf/web?index={late}&wait=1s",
                            timeout=20)
        assert kept.status_code == 200 and time.monotonic() - began >= 0.9
        # A token of each, for an agent of the other.
        tokens = [requests.post(f"{one.api}/v1/weft/tokens", json={}, timeout=20).json()["token"]
                  for one in (b, a)]
        agents = [agent_of(tmp_path, one, name, token)
                  for one, name, token in zip((a, b), ("left", "right"), tokens)]
        # Who is not ready yet would be given no pod.
        for one in (a, b):
            until("both machines are ready", lambda: {"left", "right"} <= {
                n["metadata"]["name"]
                for n in requests.get(f"{one.api}/api/v1/nodes", timeout=20).json()["items"]
                for c in n["status"]["conditions"] if (c["type"], c["status"]) == ("Ready", "True")})
        port = free_port()
        (tmp_path / "named.py").write_text(NAMED)
        (tmp_path / "meshed.yaml").write_text(MESHED.format(
            python=sys.executable, program=tmp_path / "named.py", port=port))
        subprocess.run([str(WEFT), "apply", "--server", b.api, "-f", str(tmp_path / "meshed.yaml")],
                       check=True, timeout=60)

        def pods():
            items = requests.get(f"{b.api}/api/v1/namespaces/meshed/pods?labelSelector=app=web",
                                 timeout=20).json()["items"]
            return {p["metadata"]["name"]: p["spec"].get("nodeName") for p in items}
        until("a pod is on either machine",
              lambda: sorted(map(str, pods().values())) == ["left", "right"])
        met = set()

        def answered():
            answer = requests.get(f"http://127.0.0.1:{port}/", timeout=20)
            met.update([answer.text] if answer.status_code == 200 else [])
            return met == set(pods())
        until("the gateway reaches both by mutual TLS", answered)
        # A server is gone: the other signs for whoever comes.
        a.kill()
        leaf, _, _ = chain_of(b, "other", tmp_path)
        openssl("verify", "-CAfile", chains[0][1], leaf)
    finally:
        for process in agents:
            process.send_signal(signal.SIGINT)
            process.wait(60)
        a.stop()
        b.stop()
    for name in ("left", "right"):
        assert "panicked" not in (tmp_path / f"{name}.log").read_text(errors="replace")


def test_an_etcd_with_tls_and_users(tmp_path):
    """Certificates on both sides, a user that may touch one prefix only, and its password."""
    ca, ca_key = tmp_path / "ca.pem", tmp_path / "ca.key"
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", "/CN=etcd-ca")
    for name in ("member", "server"):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.csr", "-subj", f"/O={name}")
        names = tmp_path / f"{name}.ext"
        names.write_text("subjectAltName=IP:127.0.0.1\n")
        openssl("x509", "-req", "-in", tmp_path / f"{name}.csr", "-CA", ca, "-CAkey", ca_key,
                "-CAcreateserial", "-days", "2", "-extfile", names, "-out",
                tmp_path / f"{name}.pem")
        (tmp_path / f"{name}.key").chmod(0o600)
    client, peer = free_port(), free_port()
    url = f"https://127.0.0.1:{client}"
    log = open(tmp_path / "etcd.log", "ab")
    process = subprocess.Popen(
        [str(BIN / "etcd"), "--name", "one", "--data-dir", str(tmp_path / "etcd"),
         "--unsafe-no-fsync", "--listen-client-urls", url, "--advertise-client-urls", url,
         "--listen-peer-urls", f"http://127.0.0.1:{peer}",
         "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
         "--initial-cluster", f"one=http://127.0.0.1:{peer}",
         "--cert-file", str(tmp_path / "member.pem"), "--key-file", str(tmp_path / "member.key"),
         "--client-cert-auth", "--trusted-ca-file", str(ca)], stdout=log, stderr=log)

    def ctl(*args):
        env = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run(
            [str(BIN / "etcdctl"), "--endpoints", url, "--cacert", str(ca), "--cert",
             str(tmp_path / "server.pem"), "--key", str(tmp_path / "server.key"), *args],
            env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout
    try:
        until("etcd answers", lambda: ctl("endpoint", "health") or True)
        for user in ("root:rootpw", "weft:secret"):
            ctl("user", "add", user)
        ctl("user", "grant-role", "root", "root")
        ctl("role", "add", "mesh")
        ctl("role", "grant-permission", "mesh", "readwrite", "/weft/", "--prefix=true")
        ctl("user", "grant-role", "weft", "mesh")
        ctl("auth", "enable")
        password = tmp_path / "password"
        password.write_text("secret\n")
        password.chmod(0o600)
        tls = ["--store-ca", str(ca), "--store-cert", str(tmp_path / "server.pem"), "--store-key",
               str(tmp_path / "server.key"), "--seal-key-file", str(seal_file(tmp_path))]
        store = ["--store", f"etcd://weft@127.0.0.1:{client}/weft"]
        with Server(tmp_path / "a", [*store, *tls, "--store-password-file", str(password)]) as a:
            assert put(a, "k", "1").status_code == 200
            assert raw(a, "k").text == "1"
            until("it leads", lambda: status(a)["leader"])
            assert "secret" not in a.log_text()

        def refused(*args):
            done = subprocess.run([str(WEFT), "server", "--ports", "auto", "--data",
                                   str(tmp_path / "b"), *args], capture_output=True, text=True,
                                  timeout=60)
            assert done.returncode != 0, done
            return done.stderr
        password.write_text("wrong\n")
        said = refused(*store, *tls, "--store-password-file", str(password))
        assert "check the user, its password" in said, said
        password.write_text("secret\n")
        elsewhere = ["--store", f"etcd://weft@127.0.0.1:{client}/theirs"]
        said = refused(*elsewhere, *tls, "--store-password-file", str(password))
        assert "permission" in said, said
    finally:
        process.kill()
        process.wait()
        log.close()


def test_a_data_directory_moves_into_an_etcd(tmp_path, etcd):
    """`weft store migrate --to`: everything durable, leases with their numbers, the authority."""
    with Server(tmp_path / "own") as own:
        for i in range(250):
            assert put(own, f"k/{i}", f"value {i}").status_code == 200
        node = {"Node": "n", "Address": "127.0.0.1"}
        requests.put(f"{own.consul}/v1/catalog/register", json=node, timeout=20)
        made = requests.put(f"{own.consul}/v1/session/create",
                            json={"Node": "n", "TTL": "1h", "Checks": []}, timeout=20)
        session = made.json()["ID"]
        assert put(own, "lock", "held", params={"acquire": session}).text.strip() == "true"
    root = (tmp_path / "own/ca/root.pem").read_bytes()
    consul_root = (tmp_path / "own/consul-ca/root.pem").read_bytes()
    command = [str(WEFT), "store", "migrate", "--data", str(tmp_path / "own"), "--to", etcd.url(),
               "--seal-key-file", str(seal_file(tmp_path))]
    # As one that was killed left it: no server begins on it, and another copy does it anew.
    etcd.ctl("put", "/weft/k/t/migrating", "sother")
    etcd.ctl("put", "/weft/k/k/v/default/k/249", "shalf")
    half = subprocess.run([str(WEFT), "server", "--ports", "auto", "--store", etcd.url(), "--data",
                           str(tmp_path / "half"), "--seal-key-file", str(seal_file(tmp_path))],
                          capture_output=True, text=True, timeout=60)
    assert half.returncode == 1 and "not whole" in half.stderr, half.stderr
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "copied" in done.stdout, done.stdout + done.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2 and "holds a mesh already" in again.stderr, again.stderr
    with server(tmp_path, etcd, "a") as a:
        assert raw(a, "k/249").text == "value 249"
        assert (tmp_path / "a/ca/root.pem").read_bytes() == root
        assert (tmp_path / "a/consul-ca/root.pem").read_bytes() == consul_root
        lock = requests.get(f"{a.consul}/v1/kv/lock", timeout=20).json()[0]
        assert lock["Session"] == session
        renewed = requests.put(f"{a.consul}/v1/session/renew/{session}", timeout=20)
        assert renewed.status_code == 200, renewed.text
        requests.put(f"{a.consul}/v1/session/destroy/{session}", timeout=20)
        assert "Session" not in requests.get(f"{a.consul}/v1/kv/lock", timeout=20).json()[0]
