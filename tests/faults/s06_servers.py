# SPDX-License-Identifier: Apache-2.0
"""S6: the shop runs on a machine's agent, of two servers over an etcd of three members, at 300
requests a second, orders among them. The server that the agent is linked to is killed and started
again; the member that leads the etcd is cut off: it runs on, and nothing that it sends arrives. No
request fails, every order that was acknowledged is in the books once, and registrations go on within
5 s. Needs root: it runs in a network namespace of its own."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import requests

from drill import HERE, alone

sys.path.insert(0, str(HERE.parent))
from mesh import LOAD, ROOT, WEFT, copy_shop, free_port, until  # noqa: E402
from test_servers import Etcd, leader_of, register, server, status  # noqa: E402

BACK_MAX = 5.0
USERS = {"m0": 21_001, "m1": 21_002, "m2": 21_003}


@contextlib.contextmanager
def shop(folder, a, b):
    """The shop on an agent that knows both servers; where its gateway is."""
    port, log = free_port(), open(folder / "agent.log", "ab")
    manifests = copy_shop(folder / "shop", port)
    token = requests.post(f"{a.api}/v1/weft/tokens", json={}, timeout=60).json()["token"]
    agent = subprocess.Popen(
        [str(WEFT), "agent", "--server", f"{a.doors['xds']},{b.doors['xds']}", "--name", "host",
         "--data", str(folder / "agent"), "--workdir", str(manifests), "--token", token],
        stdout=log, stderr=log, env={**os.environ, "WEFT_LOG": "info"}, cwd=ROOT)
    try:
        subprocess.run([str(WEFT), "apply", "--server", b.api, "-f", str(manifests)], check=True,
                       timeout=60, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        order = {"user": 1, "product": 2, "quantity": 1}
        until("the shop answers", lambda: requests.post(
            f"{url}/orders", json=order, timeout=10).status_code == 201, 90)
        until("all its proxies are in sync", lambda: in_sync(a, b) >= 8)
        yield url
    finally:
        agent.send_signal(signal.SIGINT)
        try:
            agent.wait(60)
        finally:
            agent.kill()
            log.close()


def in_sync(*servers):
    """How many proxies there are, if all are in sync; each is linked to one of the servers."""
    said = [status(at) for at in servers]
    all_, synced = (sum(one[key] or 0 for one in said) for key in ("proxies", "proxies_in_sync"))
    return all_ if all_ == synced else 0


class Registrations:
    """What other programs register meanwhile, and how long each fault kept them from it."""

    def __init__(self):
        self.count, self.took = 0, []

    def go_on(self, at, began):
        """Registers until one is taken; `began` is when the fault did."""
        self.count += 1
        number = self.count
        until("registrations go on", lambda: register(
            at, f"other-{number}", 8000 + number, "elsewhere", timeout=2).ok)
        self.took.append(time.monotonic() - began)


def faults(etcd, a, b, times, pause):
    """One after the other; whoever is hit goes on before the next. The second server stays."""
    registrations = Registrations()
    for _ in range(times):
        began = time.monotonic()
        a.kill()
        registrations.go_on(b, began)
        time.sleep(pause)
        a.start()
        until("both are there", lambda: len(status(a)["servers"]) == 2 == len(
            status(b)["servers"]))
        cut, began = etcd.leader(), time.monotonic()
        with etcd.cut(cut):
            registrations.go_on(a, began)
            registrations.go_on(b, began)
            time.sleep(pause)
        until("the member is back", lambda: etcd.health(cut))
    return registrations


def books(folder, ids):
    """Every order that was acknowledged is there once, and no stock is lost."""
    data = folder / "shop/.data"
    done = subprocess.run([str(LOAD), "--check", "--order-db", str(data / "order.db"),
                           "--product-db", str(data / "product.db"), "--ids", str(ids),
                           "--settle", "300"], capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr


def drill(whole, folder, etcd, a, b):
    until("one leads", lambda: leader_of([a, b]))
    rate, times, pause = (300, 3, 6) if whole else (60, 1, 1)
    with shop(folder, a, b) as url:
        ids = folder / "ids"
        load = subprocess.Popen([str(LOAD), "--url", url, "--rps", str(rate), "--seconds", "900",
                                 "--ids", str(ids)], stdout=subprocess.PIPE, text=True)
        try:
            # The load's first seconds, before anything happens.
            time.sleep(pause)
            done = faults(etcd, a, b, times, pause)
            time.sleep(pause)
        finally:
            load.send_signal(signal.SIGINT)
            out, _ = load.communicate(timeout=120)
        said = json.loads(out)
        books(folder, ids)
        took = max(done.took)
        text = (f"S6 {times} kills of a server and {times} cuts of etcd's leader, the shop at "
                f"{said['sent'] / said['seconds']:.0f} requests/s: {said['failed']} of "
                f"{said['sent']} failed, every order in the books once; registrations went on "
                f"after {took:.2f} s at most")
        assert said["failed"] == 0, f"{text}: {json.dumps(said['kinds'])[:3000]}"
        assert said["sent"] >= (0.95 if whole else 0.5) * rate * said["seconds"], text
        assert took <= (BACK_MAX if whole else 30), f"{text}: {done.took}"
        return text


def run(whole, folder):
    folder.mkdir(parents=True, exist_ok=True)
    return alone(__file__, whole, folder, 900)


def inside(whole, folder):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # The members' users must reach their directories.
    place = pathlib.Path(tempfile.mkdtemp(prefix="weft-s6-"))
    place.chmod(0o755)
    try:
        with Etcd(place, users=USERS) as etcd, server(folder, etcd, "a") as a, \
                server(folder, etcd, "b") as b:
            text = drill(whole, folder, etcd, a, b)
            logs = [a.log_text(), b.log_text(), (folder / "agent.log").read_text(errors="replace")]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert not any("panicked" in log for log in logs), "a panic; see the logs"
    print(text)


if __name__ == "__main__":
    inside(sys.argv[1] == "whole", pathlib.Path(sys.argv[2]))
