# SPDX-License-Identifier: Apache-2.0
"""Software that knows nothing of weft, moved from Consul by the one line that names the server:
Prometheus' consul_sd_configs, Traefik's Consul catalog provider, an application of python-consul;
and the requests that Spring Cloud Consul and consul-template make, one after the other."""

import http.server
import json
import os
import signal
import ssl
import subprocess
import threading

import pytest
import requests

from mesh import BIN, PEERS, ROOT, free_port, until
from standalone import Site, Threads
from test_store import Server

SEQUENCES = ROOT / "tests/consul/sequences"


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path / "server") as running:
        yield running
    assert "panicked" not in running.log_text()


def register(server, **body):
    url = f"{server.consul}/v1/agent/service/register"
    requests.put(url, json=body, timeout=20).raise_for_status()


def deregister(server, service):
    url = f"{server.consul}/v1/agent/service/deregister/{service}"
    requests.put(url, timeout=20).raise_for_status()


class Origin(Site):
    """An HTTP server that says its name."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def answer(self, request):
        return 200, self.name.encode(), {"content-type": "text/plain"}


class Connected:
    """The same as a native instance of Consul's mesh: it shows the certificate that its agent has
    for the service, takes clients with one of the mesh, and says which service called."""

    def __init__(self, server, folder, service):
        leaf = requests.get(f"{server.consul}/v1/agent/connect/ca/leaf/{service}", timeout=20).json()
        roots = requests.get(f"{server.consul}/v1/agent/connect/ca/roots", timeout=20).json()
        (folder / "leaf.pem").write_text(leaf["CertPEM"])
        (folder / "leaf.key").write_text(leaf["PrivateKeyPEM"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "leaf.pem", folder / "leaf.key")
        context.load_verify_locations(cadata="".join(r["RootCert"] for r in roots["Roots"]))
        context.verify_mode = ssl.CERT_REQUIRED

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                names = self.connection.getpeercert()["subjectAltName"]
                body = next(name for kind, name in names if kind == "URI").encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Listener(Threads):
            def get_request(self):
                stream, peer = super().get_request()
                # Shaken in the thread of its connection.
                return context.wrap_socket(stream, server_side=True,
                                           do_handshake_on_connect=False), peer

            def handle_error(self, *_):
                """Clients that are refused."""

        self.server = Listener(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Program:
    """A peer, ended with the test."""

    def __init__(self, log, *command, **kw):
        self.path = log
        self.log = open(log, "wb")
        self.process = subprocess.Popen([str(c) for c in command], stdout=self.log,
                                        stderr=self.log, **kw)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def said(self):
        return self.path.read_text(errors="replace")


PROMETHEUS = """
consul_sd_configs:
  - server: SERVER
    tags: [metrics]
    refresh_interval: 1s
"""


def test_prometheus_discovery_finds_what_is_registered(server, tmp_path):
    """Debian's prometheus is built without this discovery: Prometheus' own code for it runs here by
    itself, with the configuration that one would give it."""
    config = tmp_path / "prometheus.yml"
    config.write_text(PROMETHEUS.replace("SERVER", f"127.0.0.1:{server.consul_port}"))
    with Program(tmp_path / "found.log", BIN / "prometheus-consul-sd", config) as program:
        def found():
            """The newest set of targets, by service id."""
            sets = [json.loads(x) for x in program.said().splitlines() if x.startswith("{")]
            api = [x for x in sets if x["source"] == "api"]
            return {t["__meta_consul_service_id"]: t for t in api[-1]["targets"]} if api else {}

        register(server, Name="api", ID="a", Port=9100, Address="10.0.0.1",
                 Tags=["metrics", "x"], Meta={"version": "1"})
        register(server, Name="api", ID="b", Port=9101, Tags=["metrics"], Check={"TTL": "1h"})
        register(server, Name="quiet", Port=1, Address="127.0.0.1")
        until("both are found", lambda: set(found()) == {"a", "b"})
        a, b = found()["a"], found()["b"]
        assert a["__address__"] == "10.0.0.1:9100" and b["__address__"] == "127.0.0.1:9101"
        assert a["__meta_consul_tags"] == ",metrics,x,"
        assert a["__meta_consul_service_metadata_version"] == "1"
        assert (a["__meta_consul_health"], b["__meta_consul_health"]) == ("passing", "critical")
        assert '"__meta_consul_dc":"dc1"' in program.said()
        deregister(server, "b")
        until("one is forgotten", lambda: set(found()) == {"a"})
        assert '"quiet"' not in program.said()


def test_traefik_routes_to_what_is_registered_and_healthy(server, tmp_path):
    traefik = PEERS / "bin/traefik"
    edge = free_port()
    with Origin("a") as a, Origin("b") as b, Program(
            tmp_path / "traefik.log", traefik, "--log.level=INFO",
            f"--providers.consulcatalog.endpoint.address=127.0.0.1:{server.consul_port}",
            "--providers.consulcatalog.watch=true", "--providers.consulcatalog.cache=true",
            "--providers.consulcatalog.defaultrule=PathPrefix(`/{{ .Name }}`)",
            f"--entrypoints.web.address=127.0.0.1:{edge}", cwd=tmp_path):
        def who(path):
            answers = {requests.get(f"http://127.0.0.1:{edge}{path}", timeout=20)
                       for _ in range(4)}
            return {x.text if x.status_code == 200 else x.status_code for x in answers}

        register(server, Name="shop", ID="a", Port=a.port, Address="127.0.0.1",
                 Check={"TTL": "1h", "Status": "passing"})
        until("one answers", lambda: who("/shop") == {"a"})
        register(server, Name="shop", ID="b", Port=b.port, Address="127.0.0.1",
                 Check={"TTL": "1h"})
        register(server, Name="blog", Port=b.port, Address="127.0.0.1",
                 Tags=["traefik.http.routers.blog.rule=PathPrefix(`/b`)"])
        until("tags are followed", lambda: who("/b") == {"b"})
        assert who("/shop") == {"a"}, "the other's check has not passed yet"
        url = f"{server.consul}/v1/agent/check/pass/service:b"
        requests.put(url, timeout=20).raise_for_status()
        until("both answer", lambda: who("/shop") == {"a", "b"})
        deregister(server, "a")
        until("one is left", lambda: who("/shop") == {"b"})


def test_traefik_calls_services_of_the_mesh_with_its_own_certificate(server, tmp_path):
    """`connectAware`: roots and Traefik's leaf are watched at the agent, instances come from
    `health/connect`, and both sides prove who they are."""
    edge = free_port()
    with Connected(server, tmp_path, "shop") as shop, Connected(server, tmp_path, "thief") as thief, \
            Origin("plain") as plain, Program(
            tmp_path / "traefik.log", BIN / "traefik", "--log.level=DEBUG",
            f"--providers.consulcatalog.endpoint.address=127.0.0.1:{server.consul_port}",
            "--providers.consulcatalog.watch=true", "--providers.consulcatalog.connectaware=true",
            "--providers.consulcatalog.servicename=edge",
            "--providers.consulcatalog.defaultrule=PathPrefix(`/{{ .Name }}`)",
            f"--entrypoints.web.address=127.0.0.1:{edge}", cwd=tmp_path):
        def get(path):
            return requests.get(f"http://127.0.0.1:{edge}{path}", timeout=20)

        tag = "traefik.consulcatalog.connect=true"
        register(server, Name="shop", ID="s1", Port=shop.port, Address="127.0.0.1", Tags=[tag],
                 Connect={"Native": True})
        register(server, Name="blog", Port=plain.port, Address="127.0.0.1")
        until("the mesh's service answers", lambda: get("/shop").status_code == 200)
        who = get("/shop").text
        assert who.startswith("spiffe://") and who.endswith("/ns/default/dc/dc1/svc/edge"), who
        until("others are called as before", lambda: get("/blog").text == "plain")
        # An instance that has the certificate of another service is not believed.
        deregister(server, "s1")
        register(server, Name="shop", ID="s2", Port=thief.port, Address="127.0.0.1", Tags=[tag],
                 Connect={"Native": True})
        until("it is called, and refused", lambda: get("/shop").status_code == 500 and
              "peer certificate mismatch" in (tmp_path / "traefik.log").read_text())


def test_traefik_is_configured_by_keys(server, tmp_path):
    """Its KV provider: `--providers.consul`, which watches the tree."""
    edge = free_port()

    def put(key, value):
        url = f"{server.consul}/v1/kv/traefik/http/{key}"
        assert requests.put(url, data=value, timeout=20).text.strip() == "true"

    with Origin("a") as a, Origin("b") as b:
        put("routers/one/rule", "PathPrefix(`/one`)")
        put("routers/one/service", "one")
        put("services/one/loadBalancer/servers/0/url", f"http://127.0.0.1:{a.port}")
        with Program(tmp_path / "traefik.log", BIN / "traefik", "--log.level=INFO",
                     f"--providers.consul.endpoints=127.0.0.1:{server.consul_port}",
                     "--providers.consul.rootkey=traefik",
                     f"--entrypoints.web.address=127.0.0.1:{edge}", cwd=tmp_path):
            def get(path):
                return requests.get(f"http://127.0.0.1:{edge}{path}", timeout=20)

            until("keys from before count", lambda: get("/one").text == "a")
            put("services/one/loadBalancer/servers/0/url", f"http://127.0.0.1:{b.port}")
            until("a change is followed", lambda: get("/one").text == "b")
            put("routers/two/rule", "PathPrefix(`/two`)")
            put("routers/two/service", "one")
            until("a new router is there", lambda: get("/two").text == "b")
            url = f"{server.consul}/v1/kv/traefik/http/routers/one?recurse"
            requests.delete(url, timeout=20).raise_for_status()
            until("one is gone", lambda: get("/one").status_code == 404)
            assert get("/two").text == "b"


def test_an_application_of_python_consul_runs_as_it_is(server, tmp_path):
    env = {**os.environ, "CONSUL_PORT": str(server.consul_port),
           "PYTHONPATH": str(PEERS / "consul/python-consul")}

    def start(name):
        return Program(tmp_path / f"{name}.log", PEERS / "python", ROOT / "tests/consul/app.py",
                       name, str(free_port()), env=env)

    with start("one") as one:
        until("it leads", lambda: "one leads" in one.said())
        until("it finds itself", lambda: "one peers one\n" in one.said())
        with start("two") as two:
            for app in (one, two):
                until("they find each other", lambda: "peers one two\n" in app.said())
            url = f"{server.consul}/v1/kv/worker/config"
            requests.put(url, data="blue", timeout=20).raise_for_status()
            for app in (one, two):
                until("both are told", lambda: "config blue" in app.said())
            assert "two leads" not in two.said()
            one.process.kill()
            until("the other one leads", lambda: "two leads" in two.said())
            until("and is alone", lambda: two.said().rstrip().endswith("two peers two")
                  or "two peers two\n" in two.said())


def steps(name):
    for line in (SEQUENCES / f"{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            asked, wanted = line.rsplit(" -> ", 1)
            yield asked.split(" ", 1), wanted.split(" ")


@pytest.mark.parametrize("name", ["spring-cloud-consul", "consul-template"])
def test_the_requests_of_a_client_one_after_the_other(server, name):
    for (method, rest), (status, *words) in steps(name):
        media = "application/json"
        if not rest.startswith("/"):
            media, rest = rest.split(" ", 1)
        path, _, body = rest.partition(" ")
        answer = requests.request(method, server.consul + path, data=body or None, timeout=20,
                                  headers={"content-type": media} if body else {})
        told = f"{method} {path}: {answer.status_code} {answer.text}"
        assert answer.status_code == int(status), told
        text = answer.text
        if answer.headers.get("content-type", "").startswith("application/json"):
            text = json.dumps(answer.json(), separators=(",", ":"))
        for word in words:
            assert word in text, f"{word} is not in {told}"
        reads = method == "GET" and not path.startswith(("/v1/agent", "/v1/status", "/v1/catalog/d"))
        if reads and answer.status_code in (200, 404):
            assert int(answer.headers["X-Consul-Index"]) > 0, told
            assert answer.headers["X-Consul-KnownLeader"] == "true", told
            assert answer.headers["X-Consul-LastContact"] == "0", told
