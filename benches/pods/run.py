# SPDX-License-Identifier: Apache-2.0
"""How long pods take to be ready, and what they cost: python3 benches/pods/run.py WEFT [COUNT...]

One Deployment of the smallest program that listens, in namespaces, on a mesh that already runs.
For each count: seconds from the request that creates it until the last pod is Ready, as a watch
sees it (median of several rounds), and what its sidecars hold. With the largest count, how much
processor everything takes while nothing happens. Needs root or user namespaces, cc, and the Python
package `requests`.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
os.environ["WEFT"] = os.path.abspath(sys.argv[1])
os.environ.setdefault("WEFT_LOG", "warn")
sys.path.insert(0, str(HERE.parent.parent / "tests"))
from mesh import Mesh, pss_kb, until  # noqa: E402
import requests  # noqa: E402

ROUNDS = {1: 7, 10: 5}
PODS = "/api/v1/namespaces/bench/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/bench/deployments"


def deployment(program, replicas):
    template = {"metadata": {"labels": {"app": "listen"}}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "listen", "command": [str(program)],
                        "ports": [{"containerPort": 8080}]}]}}
    return {"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "listen", "namespace": "bench"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "listen"}},
                     "template": template}}


def is_ready(pod):
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


class Watch:
    """When each pod was Ready for the first time, as a client learns it."""

    def __init__(self, api):
        self.ready, self.changed = {}, threading.Condition()
        self.answer = urllib.request.urlopen(f"{api}{PODS}?watch=true", timeout=600)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for line in self.answer:
                pod, now = json.loads(line)["object"], time.monotonic()
                if is_ready(pod):
                    with self.changed:
                        self.ready.setdefault(pod["metadata"]["uid"], now)
                        self.changed.notify_all()
        except (OSError, ValueError, AttributeError):
            pass

    def wait(self, count, seconds=300):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.ready) >= count, seconds), \
                f"{len(self.ready)} of {count} are ready after {seconds} s"
            return sorted(self.ready.values())[:count]



def gone(mesh):
    requests.delete(f"{mesh.api}{DEPLOYMENTS}/listen", timeout=30)
    until("all pods are gone", lambda: not mesh.get(PODS).json()["items"], seconds=120)


def cpu_seconds(pids):
    """Of these processes, and of their children that have ended."""
    total = 0
    for pid in pids:
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(int(field) for field in fields[11:15])
        except OSError:
            pass
    return total / os.sysconf("SC_CLK_TCK")


def sidecars(mesh):
    found = []
    for pid in mesh.tree():
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if command[1:2] == ["proxy"] and "sidecar~" in " ".join(command):
            found.append(pid)
    return found


def own_start(program):
    """Until the program listens when nothing is around it, in ms."""
    def once():
        begun = time.monotonic()
        child = subprocess.Popen(["unshare", "--map-root-user", "--net", str(program)])
        listens = f"/proc/{child.pid}/net/tcp"
        while True:
            try:
                if ":1F90 " in pathlib.Path(listens).read_text():
                    break
            except OSError:
                pass
        took = time.monotonic() - begun
        child.kill()
        child.wait()
        return took * 1000
    return statistics.median(once() for _ in range(9))


def measure(mesh, program, count):
    took, first, spent = [], [], []
    for left in reversed(range(ROUNDS.get(count, 1))):
        watch = Watch(mesh.api)
        before = cpu_seconds(mesh.tree())
        begun = time.monotonic()
        made = requests.post(mesh.api + DEPLOYMENTS, json=deployment(program, count), timeout=30)
        assert made.ok, made.text
        ready = watch.wait(count)
        took.append(ready[-1] - begun)
        first.append(ready[0] - begun)
        spent.append(cpu_seconds(mesh.tree()) - before)
        if left:
            gone(mesh)
    total = statistics.median(took)
    print(f"| {count} | {total:.3f} s | {statistics.median(first) * 1000:.0f} ms | "
          f"{total / count * 1000:.1f} ms | {statistics.median(spent) / count * 1000:.0f} ms |",
          flush=True)


def hold(mesh, count, seconds=10):
    pids = sidecars(mesh)
    each = sorted(pss_kb(pid) for pid in pids)
    print(f"\n{count} pods: sidecars' Pss {sum(each) / 1024:.0f} MB "
          f"(median {each[len(each) // 2] / 1024:.2f} MB), server's "
          f"{pss_kb(mesh.process.pid) / 1024:.1f} MB", flush=True)
    tree, shares = mesh.tree(), {}
    for who, of in (("server", [mesh.process.pid]), ("sidecars", pids), ("everything", tree)):
        shares[who] = (of, cpu_seconds(of))
    threading.Event().wait(seconds)
    idle = [f"{who} {(cpu_seconds(of) - before) / seconds * 100:.1f} %"
            for who, (of, before) in shares.items()]
    print(f"idle, of one processor: {', '.join(idle)}", flush=True)


def main():
    counts = [int(a) for a in sys.argv[2:]] or [1, 10, 100, 200]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weft-bench-", dir="/tmp"))
    folder.chmod(0o755)
    program = folder / "listen"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "listen.c"], check=True)
    (folder / "m").mkdir()
    (folder / "m/ns.json").write_text(json.dumps(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}}))
    print(f"the program alone, in a network namespace: {own_start(program):.1f} ms\n")
    print("| pods | all ready | first ready | per pod | processor per pod |\n|---|---|---|---|---|", flush=True)
    try:
        with Mesh(folder / "m", folder / "data", extra=["--pods=namespace"]) as mesh:
            for index, count in enumerate(counts):
                measure(mesh, program, count)
                if index + 1 < len(counts):
                    gone(mesh)
            hold(mesh, counts[-1])
            begun = time.monotonic()
            gone(mesh)
            print(f"all gone after {time.monotonic() - begun:.1f} s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
