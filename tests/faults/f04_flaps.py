# SPDX-License-Identifier: Apache-2.0
"""F4: the server is killed and started again, over and over, while proxies on another machine's
agent serve the shop. No request fails and nothing that runs is started anew. Proxies come back one
by one, not all at once; they say what they hold, and are sent nothing of it again. The server
itself needs less than one processor."""

import json
import pathlib
import signal
import sys
import threading
import time

import requests

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from mesh import Elsewhere, copy_shop, fixed_ports, free_port, until  # noqa: E402

# Beside the shop's own: sidecars with little behind them.
MANY = """
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: many, namespace: shop}}
spec:
  replicas: {count}
  selector: {{matchLabels: {{app: many}}}}
  template:
    metadata: {{labels: {{app: many}}}}
    spec:
      containers: [{{name: many, image: none, command: [sleep, infinity]}}]
"""


def synced(mesh):
    """How many proxies are in sync, if all are."""
    status = mesh.get("/v1/weft/status").json()
    return status["proxies"] if status["proxies"] == status["proxies_in_sync"] else 0


def restarts(mesh):
    pods = json.loads(mesh.kubectl("get", "pods", "-n", "shop", "-o", "json").stdout)["items"]
    return sorted((p["metadata"]["name"], c["restartCount"])
                  for p in pods for c in p["status"].get("containerStatuses", []))


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def pushed(mesh):
    """What this run of the server sent to proxies."""
    rows = [line.split() for line in mesh.get("/metrics").text.splitlines()
            if line.startswith("weft_push_")]
    return {name.removeprefix("weft_push_").removesuffix("_total"): int(n) for name, n in rows}


class Arrivals(threading.Thread):
    """When streams of proxies were opened, since the server was there."""

    EVERY = 0.1

    def __init__(self, mesh):
        super().__init__(daemon=True)
        self.mesh, self.stopping, self.streams = mesh, threading.Event(), [0]
        self.start()

    def run(self):
        while not self.stopping.wait(self.EVERY):
            try:
                self.streams.append(pushed(self.mesh)["streams"])
            except (requests.RequestException, KeyError, ValueError):
                continue

    def came(self):
        return self.streams[-1]

    def end(self):
        self.stopping.set()
        self.join(60)
        assert not self.is_alive()
        return [later - earlier for earlier, later in zip(self.streams, self.streams[1:])]


def run(whole, folder):
    times, down, up = (60, 2.5, 2.5) if whole else (6, 1.5, 2.5)
    port = free_port()
    shop = copy_shop(folder / "shop", port)
    wanted = 5
    if whole:
        (shop / "many.yaml").write_text(MANY.format(count=45))
        wanted = 50
    mesh = Elsewhere(shop, folder / "data", gateway_port=port)
    command = [w for w in mesh.command() if w not in ("--ports", "auto")] + fixed_ports()
    mesh.command = lambda: command
    with mesh:
        url = f"http://127.0.0.1:{port}/products/1"
        until("the shop answers", lambda: requests.get(url, timeout=20).status_code == 200)
        until("all proxies are in sync", lambda: synced(mesh) > wanted, 120)
        before, proxies, first = restarts(mesh), synced(mesh), pushed(mesh)
        session, good, failed, used, alive = requests.Session(), 0, [], 0.0, 0.0
        arrivals, sent = [], []

        def ask(seconds):
            nonlocal good
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                answer = session.get(url, timeout=5 if whole else 20)
                good += answer.status_code == 200
                failed.extend([answer.text] if answer.status_code != 200 else [])
        for _ in range(times):
            mesh.process.send_signal(signal.SIGKILL)
            mesh.process.wait()
            ask(down)
            began = time.monotonic()
            super(Elsewhere, mesh).start()
            watch = Arrivals(mesh)
            ask(up)
            # A busy machine has longer to come back, and requests go on meanwhile.
            late = time.monotonic() + 30
            while not whole and watch.came() < proxies / 2 and time.monotonic() < late:
                ask(0.5)
            arrivals.append(watch.end())
            sent.append(pushed(mesh))
            used += cpu(mesh.process.pid)
            alive += time.monotonic() - began
        until("all proxies are in sync again", lambda: synced(mesh) > wanted)
        sent[-1] = pushed(mesh)
        streams = sum(one["streams"] for one in sent)
        again = max(one["resources"] for one in sent)
        crowds = sorted(max(flap) / max(sum(flap), 1) for flap in arrivals)
        crowd = crowds[len(crowds) // 2]
        text = (f"F4 {times} flaps, {proxies} proxies: {len(failed)} of {good + len(failed)} "
                f"failed; {streams} streams came back, {crowd:.0%} of a flap's within 100 ms; "
                f"{again} resources sent again after a flap at most, of {first['resources']}; "
                f"the server used {used / alive:.2f} of a processor while it ran")
        assert not failed, f"{text}: {failed[:3]}"
        assert good > (80 if whole else 10) * times, text
        assert restarts(mesh) == before, "something that ran was started anew"
        assert used <= alive, text
        assert first["resources"] > proxies, text
        assert streams >= times * proxies / 2, text
        assert again <= first["resources"] / 20, f"{text}: {sent}"
        # A few proxies come as it falls out.
        assert crowd <= 0.5 or proxies < 20, f"{text}: {arrivals}"
    return text
