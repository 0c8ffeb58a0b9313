# SPDX-License-Identifier: Apache-2.0
"""F27: a process is stopped for longer than anybody waits for it, as a long pause of a machine
does, and goes on. Here it is the gateway's proxy, while the mesh changes behind its back: what it
was asked meanwhile is answered, what is gone is not asked any more, it is told each change once,
and nothing it says is taken for newer than it is. The leader of several servers on an etcd is
`tests/test_servers.py::test_a_paused_leader_writes_nothing_stale`, which is part of the full form:
no stale write, no event twice."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import requests

from drill import HERE, SLICE, Load, Origin, gateway

sys.path.insert(0, str(HERE.parent))
from mesh import ROOT, until  # noqa: E402

LEADER = "tests/test_servers.py::test_a_paused_leader_writes_nothing_stale"


def proxies(mesh):
    """Processes of the mesh that serve requests: the gateway's alone, in this drill."""
    for pid in mesh.tree():
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if len(words) > 1 and words[1] == b"proxy":
            yield pid


def row(mesh):
    (one,) = mesh.get("/v1/weft/proxies").json()["proxies"]
    return one


def pushed(mesh):
    lines = [line.split() for line in mesh.get("/metrics").text.splitlines()
             if line.startswith("weft_push_")]
    return {name: int(value) for name, value in lines}


def move(mesh, folder, origins, numbers):
    """The Service leads to these origins from now on."""
    text = "".join(SLICE.format(n=n, address=origins[n].address, port=origins[n].port)
                   for n in numbers)
    (folder / "move.yaml").write_text(text)
    mesh.weft("apply", "-f", str(folder / "move.yaml"))


def run(whole, folder):
    pause = 10 if whole else 3
    origins = [Origin() for _ in range(3)]
    with origins[2], gateway(folder, origins[:2]) as (port, mesh):
        (pid,) = proxies(mesh)
        until("it is in sync", lambda: row(mesh)["state"] == "in sync")
        load = Load(port, 100, pause + 120, deadline=pause + (20 if whole else 60))
        runner = threading.Thread(target=load.run)
        runner.start()
        until("requests flow", lambda: len(load.done) > 50)
        os.kill(pid, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            move(mesh, folder, origins, [2])
            for n in (0, 1):
                gone = requests.delete(
                    f"{mesh.api}/apis/discovery.k8s.io/v1/namespaces/drill/endpointslices/"
                    f"origin-{n}", timeout=60)
                assert gone.status_code == 200, gone.text
            # What it does not know is not said to be applied.
            until("the server knows that it is behind", lambda: row(mesh)["state"] != "in sync")
            time.sleep(max(0.0, stopped + pause - time.monotonic()))
            assert row(mesh)["state"] != "in sync", "it answered while it was stopped"
        finally:
            os.kill(pid, signal.SIGCONT)
        began = time.monotonic()
        until("it is in sync again", lambda: row(mesh)["state"] == "in sync")
        took = time.monotonic() - began
        # What was asked until then may still be on its way to anybody.
        asked = load.sent
        until("that is answered", lambda: load.has_ended(asked))
        hits, before = [one.hits() for one in origins], pushed(mesh)
        until("what came is asked", lambda: origins[2].hits() > hits[2] + 100)
        load.over = True
        runner.join(pause + 100)
        assert not runner.is_alive(), "the load does not end"
        after = [one.hits() for one in origins]
        total = len(load.done)
        text = (f"F27 a proxy stopped for {pause} s: {total - load.count(200)} of {total} failed, "
                f"in sync {took:.2f} s after it went on, {sum(after[:2]) - sum(hits[:2])} requests "
                f"to what had gone meanwhile, {after[2] - hits[2]} to what had come")
        assert load.count(200) == total, f"{text}: {load.others(200)}"
        assert sum(after[:2]) == sum(hits[:2]) and after[2] > hits[2], text
        # Told once: nothing more is sent to a proxy that has it all.
        assert pushed(mesh) == before, f"{text}: {before}"
        assert row(mesh)["rejected"] == "" and took <= (5 if whole else 40), text
    if whole:
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:asyncio",
                               LEADER], capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        text += "; a leader stopped for 10 s: no stale write, no event twice"
    return text
