# SPDX-License-Identifier: Apache-2.0
"""Show 6: two servers and an etcd of three members; a server is killed and the member that leads is
cut off, while requests flow through a gateway. In a network namespace of the test's own, where what
a member sends can be dropped: it runs on and believes to lead, as nobody does that is stopped."""

import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import pytest
import requests

from mesh import WEFT, free_port, until
from standalone import listens
from test_servers import BACKEND, GATEWAY, Etcd, Load, leader_of, register, server, status

USERS = {"m0": 21_001, "m1": 21_002, "m2": 21_003}
RATE = 300
# What the issue asks for, and what any machine must do.
BACK_MAX, BACK_EVER = 5.0, 20.0
# A registration takes some milliseconds. Where the usual one takes longer before anything happens,
# or the requests do not come to their rate then, the machine is at its limit with other work: times
# say nothing of weft, and what is asserted is that all goes on as it did before. Drill S6 in full
# (`./test faults s06`) always asserts the 5 s and the rate.
IDLE_REGISTRATION = 0.1


@pytest.mark.root
# Its requests must go on at the rate at which they came before.
@pytest.mark.alone
def test_show_6_a_server_and_a_member_go_and_requests_do_not(tmp_path):
    command = ["unshare", "--net", "--mount", sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    print(done.stdout)


def inside(folder):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # The members' users must reach their directories.
    place = pathlib.Path(tempfile.mkdtemp(prefix="weft-show6-"))
    place.chmod(0o755)
    try:
        with Etcd(place, users=USERS) as etcd:
            show(folder, etcd)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def show(folder, etcd):
    """300 requests/s through a gateway of an agent that knows both servers."""
    # A mirrored Service has the lowest port of its instances.
    backends, processes = sorted(free_port() for _ in range(2)), []
    a, b = server(folder, etcd, "a").start(), server(folder, etcd, "b").start()
    try:
        for port in backends:
            processes.append(subprocess.Popen([sys.executable, "-c", BACKEND, str(port)],
                                              stderr=subprocess.DEVNULL))
        for port in backends:
            until("the backend listens", lambda: listens(port))
        until("one leads", lambda: leader_of([a, b]))
        processes.append(agent_of(folder, a, b))
        assert register(a, "web", backends[0], "legacy").ok
        gateway = free_port()
        (folder / "edge.yaml").write_text(GATEWAY.format(port=gateway, backend=backends[0]))
        subprocess.run([str(WEFT), "apply", "--server", b.api, "-f", str(folder / "edge.yaml")],
                       check=True, timeout=60)
        until("the gateway serves", lambda: requests.get(
            f"http://127.0.0.1:{gateway}/", timeout=20).status_code == 200)
        load = Load(gateway, RATE)
        load.start()
        until("requests flow", lambda: load.sent > 200)
        idle, before = usual(b), load.sent / (time.monotonic() - load.began)
        took = faults(etcd, a, b, backends, load)
        load.stopping.set()
        load.join(30)
        judge(load, took, idle, before)
        for log in (a.log_text(), b.log_text(), (folder / "agent.log").read_text()):
            assert "panicked" not in log
    finally:
        for process in processes:
            end(process)
        for one in (a, b):
            one.stop()


def agent_of(folder, a, b):
    token = requests.post(f"{a.api}/v1/weft/tokens", json={}, timeout=20).json()["token"]
    with open(folder / "agent.log", "ab") as log:
        return subprocess.Popen(
            [str(WEFT), "agent", "--server", f"{a.doors['xds']},{b.doors['xds']}", "--name", "host",
             "--data", str(folder / "agent"), "--token", token],
            stdout=log, stderr=log, env={**os.environ, "WEFT_LOG": "info"})


def usual(at):
    """How long a registration takes while nothing happens."""
    times = []
    for n in range(15):
        began = time.monotonic()
        assert register(at, "usual", 7000 + n, "legacy").ok
        times.append(time.monotonic() - began)
    return statistics.median(times)


def faults(etcd, a, b, backends, load):
    """How long registrations were kept from going on, from the moment of each fault."""
    # The server that the agent is linked to is killed: the first of its list.
    began = time.monotonic()
    a.kill()
    took = [registered(b, backends[1], "after-kill", began)]
    # The agent and its gateway go to the other server: what is registered there is served.
    until("what was registered then is served", lambda: backends[1] in load.answered)
    assert load.answered == set(backends)
    # The member that leads etcd goes on, and nobody hears it.
    cut, began = etcd.leader(), time.monotonic()
    with etcd.cut(cut):
        took.append(registered(b, backends[1], "after-cut", began))
        a.start()
        until("the killed server is back", lambda: len(status(a)["servers"]) == 2)
        assert register(a, "web", backends[1], "again", timeout=20).ok
    until("the member is back", lambda: etcd.health(cut))
    until("enough requests were sent", lambda: load.sent > 2000)
    return took


def registered(at, port, node, began):
    until("registrations go on", lambda: register(at, "web", port, node, timeout=2).ok, BACK_EVER)
    return time.monotonic() - began


def judge(load, took, idle, before):
    rate = load.sent / (time.monotonic() - load.began)
    text = (f"Show 6: {load.sent} requests ({rate:.0f}/s), {len(load.failed)} failed, slowest "
            f"{load.slowest:.3f} s; registered {took[0]:.2f} s after the kill, {took[1]:.2f} s "
            f"after the cut; before it was {before:.0f}/s, registered in {idle * 1000:.0f} ms")
    assert load.failed == [], f"{text}: {load.failed[:5]}"
    if idle <= IDLE_REGISTRATION and before >= 0.95 * RATE:
        assert max(took) <= BACK_MAX, text
    # Its own rate, which is the one that was asked for where the machine can.
    assert rate >= 0.8 * min(before, RATE), text
    print(text)


def end(process):
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    inside(pathlib.Path(sys.argv[1]))
