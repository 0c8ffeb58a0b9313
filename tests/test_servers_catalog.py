# SPDX-License-Identifier: Apache-2.0
"""What Consul's clients find of several servers: each lists all of them, as each other does."""

import contextlib
import json
import signal
import subprocess
import types

import dns.message
import dns.query
import requests

from mesh import WEFT, until
from test_servers import etcd, server  # noqa: F401 (the fixture)
from test_store import put


def get(at, path):
    answer = requests.get(f"{at.consul}/v1/{path}", timeout=20)
    answer.raise_for_status()
    return answer.json()


def bare(value):
    """Without indexes, which are of one order at all servers and not the same."""
    if isinstance(value, list):
        return [bare(one) for one in value]
    if isinstance(value, dict):
        return {key: bare(one) for key, one in value.items()
                if key not in ("CreateIndex", "ModifyIndex")}
    return value


def health(at):
    """Each server with what is said of it."""
    def serf(entry):
        return next((check["Status"] for check in entry["Checks"]
                     if check["CheckID"] == "serfHealth"), None)
    return {entry["Node"]["Node"]: serf(entry) for entry in get(at, "health/service/consul")}


def targets(at):
    """Whom `consul.service.consul` names."""
    address, port = at.doors["dns"].rsplit(":", 1)
    ask = dns.message.make_query("consul.service.consul.", "SRV")
    said = dns.query.udp(ask, address, timeout=20, port=int(port))
    return sorted(str(record.target).split(".")[0] for rrset in said.answer for record in rrset)


def test_every_server_lists_all_servers(tmp_path, etcd):  # noqa: F811
    with server(tmp_path, etcd, "a") as a, server(tmp_path, etcd, "b") as b:
        both = {"a": "passing", "b": "passing"}
        for at in (a, b):
            until("both are listed, and pass", lambda: health(at) == both)
        for path in ("catalog/nodes", "catalog/service/consul", "health/service/consul",
                     "catalog/node/b", "health/node/a", "agent/members", "agent/members?wan",
                     "coordinate/nodes"):
            until(f"{path} is the same", lambda: bare(get(a, path)) == bare(get(b, path)))
        until("both have names", lambda: targets(a) == targets(b) == ["a", "b"])
        # A node's id is what its own agent says of itself, whomever one asks.
        ids = {node["Node"]: node["ID"] for node in get(a, "catalog/nodes")}
        assert ids == {name: get(at, "agent/self")["Config"]["NodeID"]
                       for name, at in (("a", a), ("b", b))}
        until("the peers are those", lambda: ids == {
            one["Node"]: one["ID"] for one in get(a, "operator/raft/configuration")["Servers"]})
        b.kill()
        dead = {"a": "passing", "b": "critical"}
        until("the dead one is critical", lambda: health(a) == dead)
        until("it is a member that failed", lambda: {
            m["Name"]: m["Status"] for m in get(a, "agent/members")} == {"a": 1, "b": 4})
        until("its name leads to the living one", lambda: targets(a) == ["a"])
        b.start()
        for at in (a, b):
            until("it is back", lambda: health(at) == both)


@contextlib.contextmanager
def machine(folder, servers):
    """A machine's agent with a Consul API and DNS of its own."""
    token = requests.post(f"{servers[0].api}/v1/weft/tokens", json={}, timeout=20).json()["token"]
    known = ",".join(at.doors["agents"] for at in servers)
    with open(folder / "m.log", "ab") as log:
        process = subprocess.Popen(
            [str(WEFT), "agent", "--server", known, "--name", "m", "--data", str(folder / "m"),
             "--token", token, "--consul-listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0",
             "--announce"], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = next((line for line in process.stdout if line.startswith("{")), None)
        assert line, (folder / "m.log").read_text()[-3000:]
        doors = json.loads(line)
        port = doors["consul"].rsplit(":", 1)[1]
        yield types.SimpleNamespace(doors=doors, consul=f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@contextlib.contextmanager
def reached_at(address):
    """An address of this machine that is not loopback's. Needs root."""
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield address
    finally:
        subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)


def test_the_servers_name_leads_to_the_door_beside_who_asks(tmp_path, etcd):  # noqa: F811
    """No door but the agents' is open at `--agents-bind`: the name does not lead there."""
    def bound(name):
        return server(tmp_path, etcd, name, ["--agents-bind", "198.51.100.77"])
    with reached_at("198.51.100.77"), bound("a") as a, bound("b") as b, \
            machine(tmp_path, (a, b)) as m:
        for at in (a, b, m):
            until("both are listed, and pass",
                  lambda: health(at) == {"a": "passing", "b": "passing"})
            address, port = at.doors["dns"].rsplit(":", 1)
            ask = dns.message.make_query("consul.service.consul.", "A")
            said = dns.query.udp(ask, address, timeout=20, port=int(port))
            led = {str(record) for rrset in said.answer for record in rrset}
            assert led == {"127.0.0.1"}, said
            # Who follows it with the port of the door beside it is answered.
            answer = requests.get(f"{at.consul}/v1/catalog/nodes", timeout=20,
                                  headers={"Host": "consul.service.consul"})
            assert answer.ok, answer.text
            assert {node["Node"] for node in answer.json()} >= {"a", "b", "m"}
        for at in (a, b):
            until("all are members", lambda: {
                one["Name"]: (one["Tags"]["role"], one["Status"]) for one in get(at, "agent/members")
            } == {"a": ("consul", 1), "b": ("consul", 1), "m": ("node", 1)})
            members = {one["Name"]: one for one in get(at, "agent/members")}
            assert members["a"]["Addr"] == members["b"]["Addr"] == "127.0.0.1"


def figures(at):
    """Every figure of /metrics by its name with labels."""
    lines = requests.get(f"{at.api}/metrics", timeout=20).text.splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_an_operator_sees_what_becomes_of_the_etcd(tmp_path, etcd):  # noqa: F811
    with server(tmp_path, etcd, "a") as a:
        for n in range(20):
            assert put(a, f"k/{n}", "x").status_code == 200
        before = figures(a)
        assert before["weft_store_commit_duration_seconds_count"] >= 20
        assert before['weft_store_commit_duration_seconds_bucket{le="+Inf"}'] == \
            before["weft_store_commit_duration_seconds_count"]
        assert 0 < before["weft_store_commit_duration_seconds_sum"]
        assert before["weft_store_compactions_met_total"] == 0
        until("its leases are renewed",
              lambda: figures(a)['weft_store_lease_renewals_total{result="kept"}'] > 0)
        # All members go and come back: the log is followed on from where it was.
        for member in etcd.members.values():
            member.kill()
            member.wait(60)
        lost = 'weft_store_etcd_calls_total{result="unreachable"}'
        until("calls fail", lambda: figures(a)[lost] > before[lost])
        for member in etcd.names:
            etcd.start(member)
        until("writes go on", lambda: put(a, "again", "x").status_code == 200)
        until("the log is followed again", lambda: figures(a)[
            "weft_store_watch_resumes_total"] > before["weft_store_watch_resumes_total"])
        until("that is counted", lambda: figures(a)[
            "weft_store_reconnects_total"] > before["weft_store_reconnects_total"])
        # Whichever it asks now goes and comes back, as each does in turn: others are asked.
        for number, member in enumerate(etcd.names):
            etcd.members[member].kill()
            etcd.members[member].wait(60)
            until("writes go on without it", lambda: put(a, f"k/{number}", "y").status_code == 200)
            etcd.start(member)
            until("it is back", lambda: etcd.health(member))
        until("also the change of its member is counted", lambda: figures(a)[
            "weft_store_etcd_member_changes_total"] > 0)
        after = figures(a)
        # As many rows as before: no label comes from what happens.
        own = [name for name in after if name.startswith("weft_store_")]
        assert sorted(own) == sorted(n for n in before if n.startswith("weft_store_"))
