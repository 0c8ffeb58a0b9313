# SPDX-License-Identifier: Apache-2.0
"""F6: a server is killed again and again while it is written to, in single writes and in
transactions. Nothing that it acknowledged is lost, no value is another one, no transaction is there
in part, and it starts again within a second.

A start makes a few things durable and waits for the drive as often. Where others write much the
drive may take seconds for one of those; so a file beside the log is made durable again and again
meanwhile, and a start during which the drive stalled is told and not counted; half of them count."""

import base64
import json
import os
import pathlib
import random
import sys
import threading
import time

import requests

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from mesh import until  # noqa: E402
from test_store import Server, weft  # noqa: E402

TOGETHER = 64
# What the drive takes for one file that is made durable, when nothing is the matter with it.
USUAL_SYNC = 0.05
# What is more than that, in all, while a server starts: that one's time says nothing of the server.
STALL = 0.2


class Drive(threading.Thread):
    """How long the drive takes meanwhile to make something durable; the sum of what is unusual."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.path, self.stopping, self.stalled = folder / "drive", threading.Event(), 0.0

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.join(120)

    def run(self):
        with open(self.path, "wb", buffering=0) as file:
            while not self.stopping.wait(0.1):
                began = time.monotonic()
                file.write(b"x" * 4096)
                os.fsync(file.fileno())
                self.stalled += max(0.0, time.monotonic() - began - USUAL_SYNC)


class Lane(threading.Thread):
    """Writes without end until the server goes away; keeps what was acknowledged."""

    def __init__(self, server, name, together):
        super().__init__(daemon=True)
        self.server, self.name_, self.together = server, name, together
        self.acked, self.stopping = [], threading.Event()

    def run(self):
        session, n = requests.Session(), 0
        while not self.stopping.is_set():
            key = f"w/{self.name_}-{n:06}"
            keys = [f"{key}/{i}" for i in range(TOGETHER)] if self.together else [key]
            try:
                if self.write(session, keys):
                    self.acked += keys
            except requests.RequestException:
                return
            n += 1

    def write(self, session, keys):
        if not self.together:
            answer = session.put(f"{self.server.consul}/v1/kv/{keys[0]}", data=keys[0] * 3,
                                 timeout=60)
            return answer.status_code == 200 and answer.text.strip() == "true"
        sets = [{"KV": {"Verb": "set", "Key": key, "Value": base64.b64encode(
            (key * 3).encode()).decode()}} for key in keys]
        answer = session.put(f"{self.server.consul}/v1/txn", data=json.dumps(sets), timeout=60)
        return answer.status_code == 200


def run(whole, folder):
    folder.mkdir(parents=True, exist_ok=True)
    kills = 200 if whole else 20
    data, acked, starts, stalls = folder / "data", [], [], []
    chance = random.Random(6)
    for round_ in range(kills):
        with Drive(folder) as drive:
            server = Server(data).start()
        starts.append(server.ready_after)
        stalls.append(drive.stalled)
        lanes = [Lane(server, f"{round_}-{n}", n == 0) for n in range(4)]
        for lane in lanes:
            lane.start()
        wanted = chance.randint(300, 800)
        until("writes", lambda: sum(len(lane.acked) for lane in lanes) >= wanted, 120, every=0.001)
        server.kill()
        for lane in lanes:
            lane.stopping.set()
            lane.join()
            acked += lane.acked
    assert "it is sound" in weft("store", "check", "--data", data)
    with Server(data) as server:
        found = requests.get(f"{server.consul}/v1/kv/w/?recurse", timeout=120).json()
        there = {p["Key"]: base64.b64decode(p["Value"]).decode() for p in found}
    lost = [key for key in acked if key not in there]
    wrong = [key for key, value in there.items() if value != key * 3]
    parts = {}
    for key in there:
        if key.count("/") == 2:
            parts.setdefault(key.rsplit("/", 1)[0], []).append(key)
    torn = [name for name, keys in parts.items() if len(keys) != TOGETHER]
    text = (f"F6 {kills} kills: {len(lost)} of {len(acked):,} acknowledged writes lost, "
            f"{len(wrong)} wrong, {len(torn)} of {len(parts)} transactions in part, "
            f"start {sorted(starts)[kills // 2]:.2f} s, {max(starts):.2f} s at most, of which the "
            f"drive stalled for {max(zip(starts, stalls))[1]:.2f} s")
    own = [start for start, stall in zip(starts, stalls) if stall < STALL]
    assert not lost and not wrong and not torn, f"{text}: {lost[:3]} {wrong[:3]} {torn[:3]}"
    assert len(acked) >= 500 * kills or not whole, text
    assert len(acked) >= 300 * kills, text
    told = [(round(start, 2), round(stall, 2)) for start, stall in zip(starts, stalls)]
    if not whole:
        # Other tests run beside it: the drive's time and the processor's are taken off, and no more.
        own = [max(0.0, start - stall) for start, stall in zip(starts, stalls)]
    assert len(own) >= kills / 2, f"the drive stalls all the time; {text}: {told}"
    assert max(own) <= (1 if whole else 10), f"{text}: {told}"
    return text
