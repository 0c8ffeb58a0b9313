# SPDX-License-Identifier: Apache-2.0
"""F5: two servers over an etcd of three members, each with a user of its own; the member that
leads is cut off again and again, in turn from everybody and from its peers alone. Writes are back
within 5 s (how much of that is etcd's own election is measured beside it); a member without a
majority takes none; the history of a register is linearizable; a watch tells everything once and in
order, and is resumed where it ended; requests through a gateway do not fail. Beside each member is a
server that knows it alone: while its member has no majority it refuses writes with a sentence and
says of its reads that they may be old. Needs root: it runs in a network namespace of its own."""

import contextlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import requests

from drill import HERE, alone

sys.path.insert(0, str(HERE.parent))
from mesh import WEFT, free_port, until  # noqa: E402
from test_servers import (  # noqa: E402
    BACKEND, GATEWAY, Etcd, Load, leader_of, register, seal_file, server)
from test_store import Server, put  # noqa: E402

USERS = {"m0": 21_001, "m1": 21_002, "m2": 21_003}


def run(whole, folder):
    return alone(__file__, whole, folder, 800)


# -- what is watched ---------------------------------------------------------------------------

class Watched(threading.Thread):
    """What goes on beside the drill. If it ends by an exception it showed nothing from there on."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stopping, self.broke = threading.Event(), None

    def run(self):
        try:
            self.go()
        except Exception as error:  # whatever it is
            self.broke = error

    def end(self):
        self.stopping.set()
        self.join(60)
        who = type(self).__name__
        assert not self.is_alive(), f"{who} does not end"
        assert self.broke is None, f"{who}: {self.broke!r}"


class Register(Watched):
    """Writes and reads one key; each operation with its beginning, end and revision."""

    def __init__(self, servers, number):
        super().__init__()
        self.servers, self.number, self.done, self.sent = servers, number, [], set()

    def go(self):
        n, links = 0, [requests.Session() for _ in self.servers]
        while not self.stopping.is_set():
            at = (self.number + n) % len(self.servers)
            began, value = time.monotonic(), f"{self.number}-{n}"
            # A refused transaction's `Results` are null.
            with contextlib.suppress(requests.RequestException, KeyError, IndexError, ValueError,
                                     TypeError):
                base = self.servers[at].consul
                if n % 3:
                    said = links[at].get(f"{base}/v1/kv/register?consistent", timeout=2)
                    pair, kind = said.json()[0], "read"
                    value = pair["Value"]
                else:
                    self.sent.add(value_of(value))
                    body = [{"KV": {"Verb": "set", "Key": "register", "Value": value_of(value)}}]
                    said = links[at].put(f"{base}/v1/txn", json=body, timeout=2)
                    pair, kind = said.json()["Results"][0]["KV"], "write"
                    value = value_of(value)
                self.done.append((began, time.monotonic(), kind, value, pair["ModifyIndex"]))
            n += 1
            time.sleep(0.01)


def value_of(text):
    import base64
    return base64.b64encode(text.encode()).decode()


def linearizable(done):
    """Operations that carry the revision that they wrote or saw have one order already. It must
    be one that the clients could have seen: what began after another ended comes not before it."""
    values = {}
    for _, _, _, value, revision in done:
        assert values.setdefault(revision, value) == value, f"two values at {revision}"
    assert len(set(values.values())) == len(values), "a value was written twice"
    ends = sorted((end, revision) for _, end, _, _, revision in done)
    newest, at = 0, 0
    for began, _, kind, value, revision in sorted(done):
        while at < len(ends) and ends[at][0] < began:
            newest, at = max(newest, ends[at][1]), at + 1
        late = revision < newest or (kind == "write" and revision == newest)
        assert not late, f"{kind} of {value} is at {revision}, but {newest} was known before it began"


class Follower(Watched):
    """A watch of ConfigMaps, resumed at either server where it ended."""

    def __init__(self, servers):
        super().__init__()
        self.servers, self.told, self.resumed = servers, [], 0
        listed = requests.get(f"{servers[0].api}/api/v1/namespaces/default/configmaps", timeout=60)
        self.at = listed.json()["metadata"]["resourceVersion"]

    def go(self):
        turn = 0
        while not self.stopping.is_set():
            turn += 1
            at = self.servers[turn % len(self.servers)]
            url = (f"{at.api}/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=5"
                   f"&resourceVersion={self.at}")
            with contextlib.suppress(requests.RequestException):
                with requests.get(url, stream=True, timeout=10) as answer:
                    for line in answer.iter_lines():
                        event = json.loads(line)
                        assert event["type"] == "ADDED", event
                        meta = event["object"]["metadata"]
                        self.at = meta["resourceVersion"]
                        self.told.append((int(self.at), meta["name"]))
            self.resumed += 1


class Maker(Watched):
    """Makes ConfigMaps one after the other."""

    def __init__(self, servers):
        super().__init__()
        self.servers, self.made, self.acked = servers, {}, []

    def go(self):
        n = 0
        while not self.stopping.is_set():
            name, base = f"n-{n:05}", self.servers[n % len(self.servers)].api
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
            began = time.monotonic()
            with contextlib.suppress(requests.RequestException):
                answer = requests.post(f"{base}/api/v1/namespaces/default/configmaps", json=body,
                                       timeout=2)
                if answer.status_code == 201:
                    self.made[name] = int(answer.json()["metadata"]["resourceVersion"])
                    self.acked.append((began, time.monotonic()))
            n += 1
            time.sleep(0.02)

    def back_after(self, moment):
        """How long after a moment a write that began then was acknowledged."""
        return next((end - moment for began, end in self.acked if began >= moment), None)


class Elections(Watched):
    """Asks each member of etcd itself for what only a majority knows."""

    def __init__(self, etcd, patience):
        super().__init__()
        self.etcd, self.patience, self.sure = etcd, patience, []

    def go(self):
        lanes = [threading.Thread(target=self.lane, args=(name,)) for name in self.etcd.names]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()

    def lane(self, name):
        link, url = requests.Session(), f"http://127.0.0.1:{self.etcd.client[name]}/v3/kv/range"
        while not self.stopping.is_set():
            began = time.monotonic()
            with contextlib.suppress(requests.RequestException):
                if link.post(url, json={"key": value_of("none")}, timeout=self.patience).ok:
                    self.sure.append((began, time.monotonic(), name))
            time.sleep(0.02)

    def over_after(self, moment, but):
        """How long after a moment a member other than this one knew of a majority."""
        return next((end - moment for began, end, name in list(self.sure)
                     if began >= moment and name != but), None)


# -- the drill ---------------------------------------------------------------------------------

def refuses(one):
    """The server whose only member has no majority: it takes no write and says why, and says of
    what it shows that it may be old. What it shows was acknowledged once."""
    def kv(method, path, **how):
        return requests.request(method, f"{one.consul}/v1/kv/{path}", timeout=30, **how)
    # Whatever becomes of this one later, it is not acknowledged now.
    refused = kv("PUT", "minority", data="x")
    assert refused.status_code == 500, f"a minority took a write: {refused.text}"
    assert refused.text.startswith("No cluster leader"), refused.text
    sure = kv("GET", "register?consistent")
    assert sure.status_code == 500 and sure.text.startswith("No cluster leader"), sure.text

    def told():
        answer = kv("GET", "register")
        said = {name: answer.headers.get(f"X-Consul-{name}") for name in (
            "KnownLeader", "Effective-Consistency", "LastContact")}
        assert said["KnownLeader"] == "false", said
        assert said["Effective-Consistency"] == "stale" and int(said["LastContact"]) > 0, said
        return answer.json()[0]
    pair = until("it says that it may be old", told)
    leader = requests.get(f"{one.consul}/v1/status/leader", timeout=60).json()
    assert leader == "", f"it names {leader} as the leader"
    return pair["ModifyIndex"], pair["Value"]


def alone_with(folder, etcd, name):
    """A server that knows one member, and is on its side of whatever is cut."""
    return Server(folder / f"at-{name}", [
        "--store", f"etcd://127.0.0.1:{etcd.client[name]}/weft", "--seal-key-file",
        str(seal_file(folder)), "--node", f"at-{name}"])


def inside(whole, folder):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # The members' users must reach their directories.
    place = pathlib.Path(tempfile.mkdtemp(prefix="weft-f5-"))
    place.chmod(0o755)
    try:
        with contextlib.ExitStack() as all_:
            etcd = all_.enter_context(Etcd(place, users=USERS))
            servers = [all_.enter_context(server(folder, etcd, name)) for name in "ab"]
            beside = {name: all_.enter_context(alone_with(folder, etcd, name))
                      for name in etcd.names}
            drill(whole, folder, etcd, servers, beside)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def gateway(folder, a, b):
    """An agent's gateway in front of one backend, which the servers know by registration."""
    port, backend = free_port(), free_port()
    processes = [subprocess.Popen([sys.executable, "-c", BACKEND, str(backend)],
                                  stderr=subprocess.DEVNULL)]
    try:
        token = requests.post(f"{a.api}/v1/weft/tokens", json={}, timeout=60).json()["token"]
        log = open(folder / "agent.log", "ab")
        processes.append(subprocess.Popen(
            [str(WEFT), "agent", "--server", f"{a.doors['xds']},{b.doors['xds']}", "--name", "host",
             "--data", str(folder / "agent"), "--token", token], stdout=log, stderr=log))
        assert register(a, "web", backend, "legacy").ok
        (folder / "edge.yaml").write_text(GATEWAY.format(port=port, backend=backend))
        subprocess.run([str(WEFT), "apply", "--server", b.api, "-f", str(folder / "edge.yaml")],
                       check=True, timeout=60)
        until("the gateway serves", lambda: requests.get(
            f"http://127.0.0.1:{port}/", timeout=5).status_code == 200)
        yield port
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def drill(whole, folder, etcd, servers, beside):
    """`beside` each member is a server that knows it alone."""
    a, b = servers
    until("one leads", lambda: leader_of([*servers, *beside.values()]))
    with gateway(folder, a, b) as port:
        maker, follower, elections = Maker(servers), Follower(servers), Elections(
            etcd, 0.2 if whole else 1)
        registers = [Register(servers, n) for n in range(3)]
        load = Load(port, *((300, 5) if whole else (60, 15)))
        running = [maker, follower, elections, *registers]
        for thread in [load, *running]:
            thread.start()
        until("writes flow", lambda: len(maker.acked) > 20 and all(
            one.done for one in registers))
        took, voted, shown = [], [], []
        for cycle in range(20 if whole else 2):
            name, peers_only = etcd.leader(), cycle % 2 == 0
            with etcd.cut(name, peers_only):
                moment = time.monotonic()
                took.append(until("writes are back", lambda: maker.back_after(moment)))
                voted.append(until("etcd has a leader again",
                                   lambda: elections.over_after(moment, name)))
                if peers_only:
                    shown.append(refuses(beside[name]))
            until("the member is back", lambda: etcd.health(name))
            if peers_only:
                until("the server at it takes writes again",
                      lambda: put(beside[name], "minority", "y").status_code == 200)
        # Two cuts leave little time for writes on a slow machine.
        wanted = 50 if whole else 10
        until("the register was written", lambda: sum(
            kind == "write" for one in registers for _, _, kind, _, _ in list(one.done)) > wanted)
        for thread in (maker, elections, *registers):
            thread.end()
        until("the watch has told the last", lambda: follower.told and
              follower.told[-1][0] >= max(maker.made.values()))
        load.stopping.set()
        follower.end()
        load.join(30)
        assert not load.is_alive(), "the load does not end"
        judge(whole, maker, follower, registers, load, (took, voted), shown)
    for one in [*servers, *beside.values()]:
        assert "panicked" not in one.log_text()


def judge(whole, maker, follower, registers, load, times, shown):
    took, voted = times
    done = [one for register in registers for one in register.done]
    text = (f"F5 {len(took)} cuts: writes back after {max(took):.2f} s at most "
            f"({usual(took):.2f} s usually; etcd's own election {max(voted):.2f} s and "
            f"{usual(voted):.2f} s), {len(shown)} servers with a minority "
            "refused writes and said that what they show may be old; "
            f"{len(done)} operations linearizable; {len(follower.told)} events told once and in "
            f"order over {follower.resumed} watches; {len(load.failed)} of {load.sent} requests "
            "failed")
    linearizable(done)
    # A minority shows what was the register's value once.
    known = {revision: value for _, _, _, value, revision in done}
    sent = set().union(*(register.sent for register in registers))
    for at, value in shown:
        assert known.get(at, value) == value and value in sent, f"{text}: {value} at {at}"
    assert len(shown) == (len(took) + 1) // 2, text
    order = [revision for revision, _ in follower.told]
    assert order == sorted(set(order)), "told twice or out of order"
    told = {name: revision for revision, name in follower.told}
    assert len(told) == len(order), "an object was told twice"
    missed = [name for name, revision in maker.made.items() if told.get(name) != revision]
    assert not missed, f"acknowledged and not told: {missed[:5]}"
    assert not load.failed, f"{text}: {load.failed[:3]}"
    assert max(took) <= (5 if whole else 30), text
    print(text)


def usual(times):
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    inside(sys.argv[1] == "whole", pathlib.Path(sys.argv[2]))
