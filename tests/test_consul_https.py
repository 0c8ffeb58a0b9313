# SPDX-License-Identifier: Apache-2.0
"""Consul's API over HTTPS and a Unix socket, as its clients reach it: curl, requests, and py-consul
with the authority that it is told to believe."""

import json
import os
import pathlib
import subprocess

import pytest
import requests

from mesh import PEERS, free_port, until
from standalone import certificates
from test_store import Server

CLIENT = """
import sys, consul
port, ca, *pair = sys.argv[1:]
c = consul.Consul(port=int(port), scheme="https", verify=ca or True, cert=tuple(pair) or None)
assert c.kv.put("greeting", "hello")
index, pair = c.kv.get("greeting")
assert pair["Value"] == b"hello", pair
assert c.agent.service.register("web", port=80)
# It waits for a change that another client makes.
assert c.kv.put("ready", "now")
while True:
    index, pair = c.kv.get("greeting", index=index, wait="20s")
    if pair["Value"] == b"bye":
        break
print([s["Service"]["ID"] for s in c.health.service("web", passing=True)[1]])
"""


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("certs"))


def opened(tmp_path, certs, *more, **kw):
    at, door = free_port(), tmp_path / "consul.sock"
    server = Server(tmp_path / "server", [
        f"--consul-https=127.0.0.1:{at}", f"--consul-tls-cert={tmp_path}/server.pem",
        f"--consul-tls-key={tmp_path}/server.key", f"--consul-socket={door}", *more], **kw)
    for name in ("server.pem", "server.key"):
        (tmp_path / name).write_bytes((certs / name).read_bytes())
    server.https, server.door = at, door
    return server


def curl(*words):
    return subprocess.run(["curl", "-sS", "--max-time", "30", *map(str, words)],
                          capture_output=True, text=True)


def py_consul(port, ca, *pair):
    env = {**os.environ, "PYTHONPATH": str(PEERS / "consul/py-consul")}
    return subprocess.Popen([PEERS / "python", "-c", CLIENT, str(port), str(ca), *map(str, pair)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_clients_that_verify_the_door_use_it_and_others_refuse_it(tmp_path, certs):
    with opened(tmp_path, certs) as server:
        url = f"https://localhost:{server.https}/v1"
        client = py_consul(server.https, certs / "ca.pem")
        ready = f"{server.consul}/v1/kv/ready?raw"
        until("it waits", lambda: requests.get(ready, timeout=20).text == "now")
        # The doors show one and the same.
        said = curl("--cacert", certs / "ca.pem", "-X", "PUT", "-d", "bye", f"{url}/kv/greeting")
        assert said.stdout.strip() == "true", said
        out, error = client.communicate(timeout=60)
        assert (client.returncode, out) == (0, "['web']\n"), error
        said = curl("--unix-socket", server.door, "http://localhost/v1/kv/greeting?raw")
        assert said.stdout == "bye", said
        for version in ("--http1.1", "--http2"):
            said = curl(version, "--cacert", certs / "ca.pem", "-i", f"{url}/health/service/web")
            assert '"ID":"web"' in said.stdout.replace(" ", ""), said
            assert "x-consul-index: " in said.stdout.lower()
        # An authority that signed nothing here.
        stranger = py_consul(server.https, "")
        _, error = stranger.communicate(timeout=60)
        assert stranger.returncode and "CERTIFICATE_VERIFY_FAILED" in error, error
        assert curl(f"{url}/status/leader").returncode == 60
        # Plain text is not HTTPS, and nothing of it is answered as if it were.
        assert curl(f"http://localhost:{server.https}/v1/status/leader").returncode
        assert server.door.stat().st_mode & 0o777 == 0o600
    assert "panicked" not in server.log_text()


def test_a_door_that_asks_for_certificates_lets_only_their_owners_in(tmp_path, certs):
    with opened(tmp_path, certs, f"--consul-tls-ca={certs}/ca.pem",
                "--consul-tls-verify-incoming") as server:
        pair = (certs / "client.pem", certs / "client.key")
        client = py_consul(server.https, certs / "ca.pem", *pair)
        ready = f"{server.consul}/v1/kv/ready?raw"
        until("it waits", lambda: requests.get(ready, timeout=20).text == "now")
        requests.put(f"{server.consul}/v1/kv/greeting", data="bye", timeout=20)
        _, error = client.communicate(timeout=60)
        assert client.returncode == 0, error
        url = f"https://localhost:{server.https}/v1/status/leader"
        said = curl("--cacert", certs / "ca.pem", "--cert", pair[0], "--key", pair[1], url)
        assert json.loads(said.stdout), said
        refused = curl("--cacert", certs / "ca.pem", url)
        assert refused.returncode and not refused.stdout, refused


def test_a_renewed_certificate_is_shown_and_a_broken_one_is_not(tmp_path, certs):
    other = tmp_path / "other"
    other.mkdir()
    certificates(other)
    with opened(tmp_path, certs) as server, requests.Session() as kept:
        url = f"https://localhost:{server.https}/v1/status/leader"
        believed = pathlib.Path(tmp_path / "both.pem")
        believed.write_text((certs / "ca.pem").read_text() + (other / "ca.pem").read_text())
        assert kept.get(url, verify=str(believed), timeout=20).ok
        (tmp_path / "server.key").write_text("no key")
        until("it is said", lambda: "server.key" in server.log_text())
        assert curl("--cacert", certs / "ca.pem", url).returncode == 0, "the old one stays"
        for name in ("server.pem", "server.key"):
            (tmp_path / name).write_bytes((other / name).read_bytes())
        until("the new one is shown",
              lambda: curl("--cacert", other / "ca.pem", url).returncode == 0)
        assert kept.get(url, verify=str(believed), timeout=20).ok, "who was there goes on"
