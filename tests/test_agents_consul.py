# SPDX-License-Identifier: Apache-2.0
"""The Consul API and DNS of a machine's own agent: what is registered there, is checked there and
comes into the server's catalog; what is asked there goes on without a server. Clients are
py-consul and dnspython; the agent knows nothing of the server but its mTLS port.
"""

import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import dns.message
import dns.query
import dns.rcode
import pytest
import requests

from mesh import BIN, ROOT, WEFT, Mesh, fixed_ports, until
from test_dns import Resolver

# python-consul has the same module name, in a folder of its own.
sys.path.insert(0, str(BIN.parent / "consul" / "py-consul"))
import consul  # noqa: E402


class Server(Mesh):
    """`weft server`, which may be killed and comes back where it was."""

    at = None

    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.ports = fixed_ports()

    def command(self):
        return [str(WEFT), "server", "--data", str(self.data), "--announce", *self.ports,
                *self.extra]

    def start(self, seconds=180):
        super().start(seconds)
        self.at = self.doors
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.reader.join(60)
        self.log.close()


class Agent:
    """`weft agent` with doors of its own."""

    doors = ("--consul-listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0")

    def __init__(self, server, folder, name, *extra):
        self.server, self.data, self.name = server, folder / f"{name}.data", name
        self.extra, self.log_file = extra, folder / f"{name}.log"
        self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)

    def start(self, announced=True):
        command = [str(WEFT), "agent", "--server", self.server.at["xds"], "--name", self.name,
                   "--data", str(self.data), *self.doors, "--announce", *self.extra]
        if not (self.data / "host.pem").exists():
            token = self.server.weft("token", "create", "-o", "json").stdout
            command += ["--token", json.loads(token)["token"]]
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
                                            env={**os.environ, "WEFT_LOG": "info"}, text=True)
        line = next((line for line in self.process.stdout if line.startswith("{")), None)
        assert line, self.log_file.read_text()[-3000:]
        doors = json.loads(line)
        port = lambda door: int(doors[door].rsplit(":", 1)[1]) if doors.get(door) else None
        self.consul_port, self.dns_port = port("consul"), port("dns")
        self.client = consul.Consul(port=self.consul_port)
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def url(self, path):
        return f"http://127.0.0.1:{self.consul_port}{path}"

    def get(self, path, **kw):
        return requests.get(self.url(path), timeout=30, **kw)

    def put(self, path, body=None, **kw):
        return requests.put(self.url(path), json=body, timeout=30, **kw)

    def resolve(self, name, kind="A", tcp=False):
        question = dns.message.make_query(name, kind)
        ask = dns.query.tcp if tcp else dns.query.udp
        return ask(question, "127.0.0.1", port=self.dns_port, timeout=20)

    def addresses(self, name):
        return {r.address for rrset in self.resolve(name).answer for r in rrset}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with Server([], folder / "data") as server:
        yield server


@pytest.fixture(scope="module")
def agents(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents")
    with Agent(server, folder, "m1") as one, Agent(server, folder, "m2") as other:
        nodes = lambda: {node["Node"] for node in one.client.catalog.nodes()[1]}
        until("both are nodes", lambda: {"m1", "m2"} <= nodes())
        yield one, other


class App(http.server.BaseHTTPRequestHandler):
    well = True

    def do_GET(self):
        self.send_response(200 if App.well else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def app():
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), App)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd.server_address[1]
    httpd.shutdown()


def status(client, service, check):
    """The status of a check of a service as the catalog has it."""
    _, entries = client.health.service(service)
    found = [c["Status"] for e in entries for c in e["Checks"] if c["CheckID"] == check]
    return found[0] if found else None


def test_what_is_registered_with_one_agent_is_found_with_all(server, agents, app):
    one, other = agents
    assert one.client.agent.self()["Config"]["NodeName"] == "m1"
    assert one.client.agent.self()["Config"]["Server"] is False
    assert one.client.agent.service.register(
        "web", service_id="web-1", port=app, address="10.1.0.1", tags=["v1"],
        check=consul.Check.http(f"http://127.0.0.1:{app}/", "50ms"))
    assert one.client.agent.check.register("beat", consul.Check.ttl("1h"), service_id="web-1")
    # A client reads what it wrote, and so does everybody else: at once, unless the server is so
    # busy that the client was answered first.
    until("it is in the catalog", lambda: [
        (e["Node"]["Node"], e["Service"]["Address"])
        for e in one.client.health.service("web")[1]] == [("m1", "10.1.0.1")])
    assert list(one.client.agent.services()) == ["web-1"]
    assert other.client.agent.services() == {}
    direct = consul.Consul(port=server.consul_port)
    until("the check passes", lambda: status(direct, "web", "service:web-1") == "passing")
    until("no heartbeat yet", lambda: status(other.client, "web", "beat") == "critical")
    one.client.agent.check.ttl_pass("beat", notes="well")
    until("a heartbeat", lambda: status(other.client, "web", "beat") == "passing")
    until("names", lambda: other.addresses("web.service.consul") == {"10.1.0.1"})
    until("tags", lambda: other.addresses("v1.web.service.consul") == {"10.1.0.1"})
    App.well = False
    until("it is critical", lambda: status(direct, "web", "service:web-1") == "critical")
    until("its name is gone", lambda: other.addresses("web.service.consul") == set())
    App.well = True
    until("it is well again", lambda: status(direct, "web", "service:web-1") == "passing")
    # A blocking query at one agent hears of a change at another.
    index, _ = other.client.health.service("web")
    maintenance, woken = "_service_maintenance:web-1", threading.Event()

    def wait():
        at, entries = index, []
        # Other checks may say something new, too.
        while not any(c["CheckID"] == maintenance for e in entries for c in e["Checks"]):
            at, entries = other.client.health.service("web", index=at, wait="60s")
        woken.set()
    threading.Thread(target=wait, daemon=True).start()
    assert one.put("/v1/agent/service/maintenance/web-1?enable=true&reason=why").ok
    assert woken.wait(60), "a blocking query does not hear of it"
    assert one.put("/v1/agent/service/maintenance/web-1?enable=false").ok
    until("it is in use again", lambda: status(direct, "web", maintenance) is None)
    assert one.client.agent.service.deregister("web-1")
    until("it is gone", lambda: direct.health.service("web")[1] == [])


def test_everything_else_goes_through_the_agent(server, agents):
    one, other = agents
    assert one.client.kv.put("a/b", b"\x00\xff")
    assert other.client.kv.get("a/b")[1]["Value"] == b"\x00\xff"
    session = one.client.session.create(ttl=60)
    assert one.client.session.info(session)[1]["Node"] == "m1"
    assert one.client.kv.put("lock", "x", acquire=session)
    assert not other.client.kv.put("lock", "y", acquire=other.client.session.create(ttl=60))
    assert one.client.catalog.datacenters() == ["dc1"]
    assert one.get("/v1/status/leader").status_code == 200
    assert one.get("/v1/nothing").status_code == 404
    assert one.get("/v1/catalog/services?dc=other").status_code == 500
    assert one.get("/v1/agent/service/none").status_code == 404
    # Large answers come whole.
    for n in range(3):
        assert one.client.kv.put(f"large/{n}", b"x" * 500_000)
    assert len(other.client.kv.get("large/", recurse=True)[1]) == 3
    # Without access lists a machine steers nobody else's traffic.
    refused = one.put("/v1/config", {"Kind": "service-resolver", "Name": "web"})
    assert refused.status_code == 403 and "access lists" in refused.text
    refused = one.put("/v1/catalog/register", {
        "Node": "m2", "Address": "10.9.9.9", "Service": {"Service": "evil"}})
    assert refused.status_code == 403, refused.text
    assert one.get("/v1/agent/connect/ca/leaf/web").status_code == 403


def test_a_script_runs_only_where_the_operators_files_say_so(server, tmp_path):
    config = tmp_path / "config"
    config.mkdir()
    mark = tmp_path / "mark"
    (config / "web.json").write_text(json.dumps({"service": {
        "name": "scripted", "port": 1, "checks": [
            {"args": ["/bin/sh", "-c", f"test -e {mark} || exit 1; echo there"],
             "interval": "1s", "timeout": "5s"}]}}))
    with Agent(server, tmp_path, "m3", "--config-dir", str(config)) as agent:
        check = "service:scripted"
        until("a warning", lambda: status(agent.client, "scripted", check) == "warning")
        mark.touch()
        until("it is there", lambda: status(agent.client, "scripted", check) == "passing")
        refused = agent.put("/v1/agent/check/register", {
            "Name": "evil", "Args": ["/bin/touch", str(tmp_path / "evil")], "Interval": "1s"})
        assert refused.status_code == 400
        assert not (tmp_path / "evil").exists()
    # The check goes from the file and the service stays: nothing is left to expire.
    (config / "web.json").write_text(json.dumps({"service": {"name": "scripted", "port": 1}}))
    with Agent(server, tmp_path, "m3", "--config-dir", str(config)) as agent:
        until("it is no check here", lambda: agent.client.agent.checks() == {})
        until("nor at the server", lambda: agent.client.health.checks("scripted")[1] == [])
        assert list(agent.client.agent.services()) == ["scripted"]
    (config / "web.json").unlink()
    with Agent(server, tmp_path, "m3", "--config-dir", str(config)) as agent:
        until("it is not here", lambda: agent.client.agent.services() == {})
        until("it is gone", lambda: agent.client.health.service("scripted")[1] == [])


def test_an_agent_that_is_killed_knows_what_was_registered(server, tmp_path):
    with Agent(server, tmp_path, "m4") as agent:
        assert agent.client.agent.service.register("kept", port=7, address="10.4.0.4")
        assert agent.client.agent.check.register("up", consul.Check.ttl("1h"), service_id="kept")
        # A death may forget the last tenth of a second. The second copy on disk is begun when the
        # first is whole.
        log = agent.data / "store" / "log.redb"
        for note in ("first-note", "second-note"):
            agent.client.agent.check.ttl_pass("up", note)
            until("it is on disk", lambda: note.encode() in log.read_bytes())
        agent.kill()
        agent.start()
        assert list(agent.client.agent.services()) == ["kept"]
        assert agent.client.agent.checks()["up"]["Status"] == "passing", "as it was"
        # What somebody else wrote under its node is not so, and goes at the next whole telling:
        # the first after a start.
        direct = consul.Consul(port=server.consul_port)
        until("it is passing", lambda: status(direct, "kept", "up") == "passing")
        agent.kill()
        direct.catalog.register("m4", "10.4.0.4", service={"Service": "foreign", "ID": "foreign"})
        direct.catalog.deregister("m4", service_id="kept")
        agent.start()
        services = lambda: set(direct.catalog.node("m4")[1]["Services"])
        until("only its own are there", lambda: services() == {"kept"})
        assert agent.client.agent.check.ttl_pass("up")
        until("it is passing again", lambda: status(direct, "kept", "up") == "passing")


def test_tokens_are_judged_at_the_agent_as_at_the_server(tmp_path):
    secret = "11111111-2222-3333-4444-555555555555"
    (tmp_path / "token").write_text(secret)
    extra = ["--consul-acl", "deny", "--consul-management-token-file", str(tmp_path / "token")]
    with Server([], tmp_path / "data", extra=extra) as server:
        with Agent(server, tmp_path, "m5") as agent:
            root = {"X-Consul-Token": secret}
            body = {"Name": "web", "Port": 1, "Address": "10.5.0.5"}
            assert agent.put("/v1/agent/service/register", body).status_code == 403
            assert agent.get("/v1/agent/services").json() == {}
            wrong = {"X-Consul-Token": "no"}
            assert agent.get("/v1/agent/services", headers=wrong).status_code == 403
            made = agent.put("/v1/acl/token", {"ServiceIdentities": [{"ServiceName": "web"}]},
                             headers=root).json()["SecretID"]
            mine = {"X-Consul-Token": made}
            assert agent.put("/v1/agent/service/register", body, headers=mine).ok
            other = {**body, "Name": "other"}
            assert agent.put("/v1/agent/service/register", other, headers=mine).status_code == 403
            seen = lambda: agent.get("/v1/health/service/web", headers=root).json()
            until("it is in the catalog", lambda: len(seen()) == 1)
            assert agent.get("/v1/health/service/web").json() == []
            # A token that was good is good while nobody can say otherwise; no other is.
            server.kill()
            assert agent.put("/v1/agent/service/register", {**body, "Port": 2}, headers=mine).ok
            assert agent.put("/v1/agent/service/register", body,
                             headers={"X-Consul-Token": "new"}).status_code == 500
            server.start()
            until("the change is told",
                  lambda: seen() and seen()[0]["Service"]["Port"] == 2)


def test_without_a_server_everything_is_as_it_was_last(tmp_path):
    """The short form of ten minutes without a server."""
    with Server([], tmp_path / "data") as server, \
            Agent(server, tmp_path, "m6") as one, Agent(server, tmp_path, "m7") as other:
        assert one.client.agent.service.register("db", port=5432, address="10.6.0.6")
        assert one.client.agent.check.register("beat", consul.Check.ttl("1h"), service_id="db")
        one.client.agent.check.ttl_pass("beat")
        until("it passes", lambda: other.client.health.service("db", passing=True)[1])
        until("it has a name", lambda: other.addresses("db.service.consul") == {"10.6.0.6"})
        index, services = other.client.catalog.services()
        assert "db" in services
        fresh = lambda: other.client.health.service("db")[1]
        direct = consul.Consul(port=server.consul_port)

        def heard():
            """It changes after it was asked: the last good answer is the newer one. Nobody asks for
            the catalog's again: the agent does, by itself. From outside nobody can see when, but
            that a server that is gone then was gone too early; it changes anew then, since an agent
            whose server came back asks for everything."""
            one.client.agent.service.register("db", service_id="db-2", port=5432,
                                              address="10.6.0.7")
            until("both are there", lambda: len(fresh()) == 2)
            until("both have names",
                  lambda: other.addresses("db.service.consul") == {"10.6.0.6", "10.6.0.7"})
            until("both are known", lambda: len(other.client.catalog.service("db")[1]) == 2)
            one.client.agent.service.deregister("db-2")
            until("one is there", lambda: len(direct.health.service("db")[1]) == 1)
            for question in ["", "?passing=1"]:
                until("its answers are known", lambda: len(other.get(
                    f"/v1/health/service/db{question}").json()) == 1)
            until("one has a name", lambda: other.addresses("db.service.consul") == {"10.6.0.6"})
            server.kill()
            if len(other.client.catalog.service("db")[1]) == 1:
                return True
            server.start()
            until("the server is back", lambda: other.get(
                "/v1/health/service/db").headers["X-Consul-KnownLeader"] == "true")
            return False
        until("the agent hears of a change by itself", heard, 240)
        until("it knows that the server is gone", lambda: other.get(
            "/v1/health/service/db").headers["X-Consul-KnownLeader"] == "false")
        for _ in range(3):
            said = other.get("/v1/health/service/db?passing=1")
            assert said.status_code == 200, said.text
            assert [e["Service"]["Address"] for e in said.json()] == ["10.6.0.6"]
            assert said.headers["X-Consul-KnownLeader"] == "false"
            assert int(said.headers["X-Consul-LastContact"]) >= 0
            assert said.headers["X-Cache"] == "HIT" and int(said.headers["Age"]) >= 0
            assert other.addresses("db.service.consul") == {"10.6.0.6"}
            assert "db" in other.client.catalog.services()[1]
        # A blocking query waits as it would, and then says what it knows.
        waited = other.get(f"/v1/catalog/services?index={index}&wait=300ms")
        assert waited.status_code == 200 and "db" in waited.json()
        # What needs the server says so, and so does what was never asked.
        for path in ["/v1/kv/a", "/v1/health/service/other", "/v1/health/service/db?consistent"]:
            refused = other.get(path)
            assert refused.status_code == 500, path
            assert refused.text.startswith("No cluster leader"), refused.text
        assert other.resolve("other.service.consul").rcode() == dns.rcode.SERVFAIL
        # The machine's own goes on, over a death of the agent, too.
        assert other.client.agent.service.register("late", port=1, address="10.7.0.7")
        one.client.agent.check.ttl_fail("beat", notes="no disk")
        assert one.client.agent.checks()["beat"]["Status"] == "critical"
        server.start()
        assert fresh() is not None
        until("what was registered meanwhile is there",
              lambda: direct.health.service("late")[1])
        until("what changed meanwhile is so", lambda: status(direct, "db", "beat") == "critical")
        assert direct.health.service("late")[1][0]["Node"]["Node"] == "m7"
        until("names are fresh", lambda: other.addresses("db.service.consul") == set())
        until("answers are the leader's", lambda: other.get(
            "/v1/health/service/db").headers["X-Consul-KnownLeader"] == "true")


def test_names_outside_are_asked_of_the_machines_recursors(tmp_path):
    recursor = Resolver()
    extra = ("--dns-recursor", f"127.0.0.1:{recursor.port}")
    with Server([], tmp_path / "data") as server, \
            Agent(server, tmp_path, "m10", *extra) as one, Agent(server, tmp_path, "m11") as bare:
        said = lambda agent, name: {
            r.to_text() for rrset in agent.resolve(name).answer for r in rrset}
        assert said(one, "example.com") == {"192.0.2.9"}
        assert bare.resolve("example.com").rcode() == dns.rcode.REFUSED
        # What is registered under a name outside has an address, too.
        assert one.client.agent.service.register("ext", port=1, address="db.example.invalid")
        until("it has a name", lambda: said(bare, "ext.service.consul") == {"db.example.invalid."})
        whole = {"db.example.invalid.", "192.0.2.9"}
        until("and an address", lambda: said(one, "ext.service.consul") == whole)
        server.kill()
        for agent in (one, bare):
            until("the server is missed", lambda: agent.get("/v1/kv/a").status_code == 500)
        # Never asked before: the world outside is there without a server.
        assert said(one, "example.net") == {"192.0.2.9"}
        assert said(one, "ext.service.consul") == whole
        assert bare.resolve("example.net").rcode() == dns.rcode.SERVFAIL
        for name in ("other.service.consul", "other.shop.svc.cluster.local"):
            assert one.resolve(name).rcode() == dns.rcode.SERVFAIL, name
            assert f"{name}." not in recursor.heard, "what is the mesh's nobody else hears of"


class Usual(Agent):
    """As people start it: its doors are where Consul's agents have them."""

    doors = ()


@pytest.mark.root
def test_an_agent_has_consuls_usual_doors_where_nobody_else_has_them(tmp_path):
    # In a network of its own: on this machine somebody may have the usual ports.
    done = subprocess.run(["unshare", "--net", sys.executable, __file__, str(tmp_path)],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def usual_doors(folder):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with Server([], folder / "data") as server:
        for door in ("WEFT_CONSUL_LISTEN", "WEFT_DNS_LISTEN"):
            os.environ.pop(door, None)
        with Usual(server, folder, "m8") as one, Usual(server, folder, "m9") as other:
            assert (one.consul_port, one.dns_port) == (8500, 8600)
            # The ports are taken: it does its other work.
            assert (other.consul_port, other.dns_port) == (None, None)
            assert "this door stays closed" in other.log_file.read_text()
            client = consul.Consul()
            assert client.agent.service.register("usual", port=1, address="10.8.0.8")
            until("it has a name", lambda: one.addresses("usual.service.consul") == {"10.8.0.8"})
            assert [e["Node"]["Node"] for e in client.health.service("usual")[1]] == ["m8"]


if __name__ == "__main__":
    usual_doors(pathlib.Path(sys.argv[1]))
