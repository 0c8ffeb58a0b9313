# SPDX-License-Identifier: Apache-2.0
"""A server that is killed and started again while requests flow: what its checks said stands, so
nobody is taken out for it. Alone on its store, and as one of several on an etcd."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import requests

from mesh import WEFT, free_port, until
from standalone import listens
from test_l4 import listening
from test_servers import BACKEND, GATEWAY, Etcd, Load, server
from test_store import Server

TTL = 600
RATE = 300


def with_heartbeat(at, name, port):
    """Registered with the server's own agent API, and heard once."""
    ident = f"{name}-{port}"
    body = {"Name": name, "ID": ident, "Port": port, "Address": "127.0.0.1",
            "Check": {"CheckID": f"beat-{ident}", "TTL": f"{TTL}s"}}
    done = requests.put(f"{at.consul}/v1/agent/service/register", json=body, timeout=20)
    assert done.ok, done.text
    done = requests.put(f"{at.consul}/v1/agent/check/pass/beat-{ident}", timeout=20)
    assert done.ok, done.text


def passing(at, name):
    found = requests.get(f"{at.consul}/v1/health/service/{name}?passing", timeout=20)
    return len(found.json())


def one_of(store, tmp_path):
    if store == "own":
        return None, Server(tmp_path / "a")
    etcd = Etcd(tmp_path, members=1).__enter__()
    return etcd, server(tmp_path, etcd, "a")


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize("store", ["own", "etcd"])
def test_a_server_that_is_started_again_takes_nobody_out(tmp_path, store, how):
    backends, processes = sorted(free_port() for _ in range(2)), []
    etcd, a = one_of(store, tmp_path)
    a.start()
    try:
        for port in backends:
            processes.append(subprocess.Popen([sys.executable, "-c", BACKEND, str(port)],
                                              stderr=subprocess.DEVNULL))
        for port in backends:
            until("the backend listens", lambda: listens(port))
            with_heartbeat(a, "web", port)
        # Nobody beats in this test from here on: what was said has to last.
        assert passing(a, "web") == 2
        token = requests.post(f"{a.api}/v1/weft/tokens", json={}, timeout=20).json()["token"]
        log = open(tmp_path / "agent.log", "ab")
        processes.append(subprocess.Popen(
            [str(WEFT), "agent", "--server", a.doors["xds"], "--name", "host", "--data",
             str(tmp_path / "agent"), "--token", token], stdout=log, stderr=log,
            env={**os.environ, "WEFT_LOG": "info"}))
        gateway = free_port()
        (tmp_path / "edge.yaml").write_text(GATEWAY.format(port=gateway, backend=backends[0]))
        subprocess.run([str(WEFT), "apply", "--server", a.api, "-f", str(tmp_path / "edge.yaml")],
                       check=True, timeout=60)
        until("the gateway serves", lambda: requests.get(
            f"http://127.0.0.1:{gateway}/", timeout=20).status_code == 200)
        load = Load(gateway, RATE, 15)
        load.start()
        until("requests flow to both", lambda: load.answered == set(backends))
        before = load.sent
        if how == "killed":
            a.kill()
        else:
            a.stop(signal.SIGTERM)
        time.sleep(1)  # it is away for a while: what is not there cannot be waited for
        a.start()
        assert passing(a, "web") == 2, "as it was, from its first answer on"
        until("the gateway is back", lambda: joined(a))
        until("requests went on", lambda: load.sent > before + 5 * RATE)
        load.stopping.set()
        load.join(60)
        print(f"\n{load.sent} requests, {len(load.failed)} failed, slowest {load.slowest:.3f} s")
        assert load.failed == [], f"{len(load.failed)} of {load.sent}: {load.failed[:5]}"
        assert passing(a, "web") == 2
        assert "panicked" not in a.log_text()
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        a.stop()
        if etcd:
            etcd.__exit__()


LAST = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: the-last-word, namespace: default}
spec:
  parentRefs: [{name: edge}]
  hostnames: [last.example]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"""


def child_of(parent, word):
    """The process below that one which has this word in its command, and the command."""
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            if int(fields[1]) == parent and any(word in w for w in words):
                return int(entry.name), words
    raise AssertionError(f"no process of {word}")


def info_of(pid):
    """What a proxy's admin door says of it."""
    for host, port in listening(pid):
        # The gateway's own port answers as well.
        with contextlib.suppress(requests.RequestException, ValueError, KeyError, TypeError):
            url = f"http://{host}:{port}/server_info"
            return requests.get(url, timeout=10, headers={"host": "localhost"}).json()["weft"]
    raise AssertionError("no admin door")


def test_a_proxy_that_starts_with_no_server_serves_what_it_knew_last(tmp_path):
    """Server and gateway are killed, and only the latter comes back: from its last good table, with
    all instances, while the server that knows them is gone."""
    backends, processes = sorted(free_port() for _ in range(2)), []
    server = Server(tmp_path / "a")
    server.start()
    url = f"http://127.0.0.1:{free_port()}/"
    agent = [str(WEFT), "agent", "--server", server.doors["xds"], "--name", "host", "--data",
             str(tmp_path / "agent")]

    def start_agent(*more):
        log = open(tmp_path / "agent.log", "ab")
        processes.append(subprocess.Popen([*agent, *more], stdout=log, stderr=log,
                                          env={**os.environ, "WEFT_LOG": "info"}))
        return processes[-1].pid

    def answered():
        """Who answers twenty requests, each of which is answered."""
        got = [requests.get(url, timeout=20) for _ in range(20)]
        assert {x.status_code for x in got} == {200}, got
        return sorted({int(x.text) for x in got})

    def everybody():
        return answered() == backends

    try:
        for port in backends:
            processes.append(subprocess.Popen([sys.executable, "-c", BACKEND, str(port)],
                                              stderr=subprocess.DEVNULL))
            with_heartbeat(server, "web", port)
        token = requests.post(f"{server.api}/v1/weft/tokens", json={}, timeout=20).json()["token"]
        pid = start_agent("--token", token)
        (tmp_path / "edge.yaml").write_text(
            GATEWAY.format(port=url.rsplit(":", 1)[1].strip("/"), backend=backends[0]))
        subprocess.run([str(WEFT), "apply", "--server", server.api, "-f",
                        str(tmp_path / "edge.yaml")], check=True, timeout=60)
        until("the gateway serves both", everybody)
        gateway, _ = child_of(pid, "gateway~")
        until("it knows it from the server", lambda: not info_of(gateway)["from_last_good"])
        # What came last is in the file when all that came before is.
        (tmp_path / "last.yaml").write_text(LAST)
        subprocess.run([str(WEFT), "apply", "--server", server.api, "-f",
                        str(tmp_path / "last.yaml")], check=True, timeout=60)
        kept = lambda: list((tmp_path / "agent").rglob("lastgood/*"))  # noqa: E731
        until("it has noted it", lambda: [f for f in kept() if "~" not in f.name
                                          and b"the-last-word" in f.read_bytes()])
        until("it has kept its identity", lambda: [f for f in kept() if f.name.endswith("~svid")])
        server.kill()
        os.kill(gateway, signal.SIGKILL)
        until("another process serves", lambda: child_of(pid, "gateway~")[0] != gateway
              and everybody())
        gateway, _ = child_of(pid, "gateway~")
        assert info_of(gateway)["from_last_good"] is True
        server.start()
        until("it has heard of the server", lambda: not info_of(gateway)["from_last_good"])
        until("it serves as before", everybody)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        server.stop()
    assert "panicked" not in server.log_text() + (tmp_path / "agent.log").read_text()


def joined(at):
    """Whether a proxy has everything from this server."""
    text = requests.get(f"{at.api}/metrics", timeout=20).text
    rows = dict(line.split(" ", 1) for line in text.splitlines() if line and line[0] != "#"
                and "{" not in line)
    return int(float(rows["weft_proxies_in_sync"])) >= 1
