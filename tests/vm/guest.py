# SPDX-License-Identifier: Apache-2.0
"""What run.sh asserts inside its virtual machine: the limits of containers by control groups of
version 2, as root and as an ordinary user to whom a part of the tree was delegated."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

CGROUPS = pathlib.Path("/sys/fs/cgroup")
WEFT = "/bin/weft"
USER = 1000
GROW = "x = []\nwhile True: x.append(bytearray(1 << 20))"
FORKS = """
import os, signal, time
made = 0
while True:
    try:
        pid = os.fork()
    except OSError as error:
        print("made", made, flush=True)
        time.sleep(1000)
    if pid == 0:
        signal.pause()
    made += 1
"""


def say(text):
    print(f"vm: {time.monotonic():6.1f} s  {text}", flush=True)


def until(what, check, seconds=60.0):
    deadline = time.monotonic() + seconds
    last = None
    while True:
        try:
            last = check()
            if last:
                return last
        except (AssertionError, OSError, KeyError, IndexError, ValueError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s; last: {last!r}")
        time.sleep(0.1)


def container(*command, limits=None, requests=None):
    resources = {"limits": limits or {}, "requests": requests or {}}
    return {"name": "c", "image": "c", "command": list(command), "resources": resources}


def pod(name, *command, **resources):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [container(*command, **resources)],
                     "terminationGracePeriodSeconds": 1}}


PODS = [
    pod("grows", "/bin/python3", "-c", GROW, limits={"memory": "64Mi"}),
    # Its child grows; the kernel ends the container and not the child alone.
    pod("nurses", "/bin/sh", "-c", f"python3 -c '{GROW}'; sleep 1000", limits={"memory": "64Mi"}),
    pod("busy", "/bin/sh", "-c", "while :; do :; done", limits={"cpu": "100m"}),
    pod("forks", "/bin/python3", "-c", FORKS),
    pod("escapes", "/bin/sh", "-c", "for f in $(find /sys/fs/cgroup -name cgroup.procs); do"
        " echo $$ > $f && echo out; done 2>/dev/null; echo tried; sleep 1000"),
    pod("asks", "/bin/sleep", "1000", requests={"cpu": "500m"}, limits={"memory": "100Mi"}),
]


class Weft:
    """One `weft up`, in a group of its own as a login session or a service has it."""

    running = []

    def __init__(self, name, group, user=None):
        self.home = pathlib.Path("/tmp") / name
        (self.home / "m").mkdir(parents=True, exist_ok=True)
        for obj in PODS:
            file = self.home / "m" / f"{obj['metadata']['name']}.json"
            file.write_text(json.dumps(obj))
        self.group, self.user = group, user
        if user:
            for path in [self.home, *self.home.rglob("*")]:
                os.chown(path, user, user)

    def command(self, group, *args):
        def enter():
            (group / "cgroup.procs").write_text("0")
            if self.user:
                os.setgroups([])
                os.setresgid(self.user, self.user, self.user)
                os.setresuid(self.user, self.user, self.user)
        env = {"PATH": "/bin:/sbin", "HOME": str(self.home), "WEFT_LOG": "info"}
        return dict(args=[WEFT, *args, "--data", str(self.home / "data")], preexec_fn=enter,
                    env=env, cwd=self.home)

    def start(self):
        self.log = open(self.home / "log", "ab")
        self.process = subprocess.Popen(
            **self.command(self.group, "up", "m", "--ports", "auto", "--announce", "--plain", "--no-build",
                           "--pods=namespace"), stdout=subprocess.PIPE, stderr=self.log)
        Weft.running.append(self.process)
        self.api, lines = None, []
        for raw in self.process.stdout:
            lines.append(raw.decode(errors="replace"))
            if lines[-1].startswith("{"):
                self.api = json.loads(lines[-1])["api"]
                break
        assert self.api, "".join(lines) + (self.home / "log").read_text()[-3000:]
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        return self

    def get(self, path):
        with urllib.request.urlopen(self.api + path, timeout=30) as answer:
            return answer.read().decode()

    def pod(self, name):
        return json.loads(self.get(f"/api/v1/namespaces/default/pods/{name}"))

    def ended(self, name):
        state = self.pod(name)["status"]["containerStatuses"][0]
        return (state.get("lastState") or {}).get("terminated") or {}

    def groups(self):
        """The groups that this run made."""
        name = "weft-" + (self.home / "data/run/id").read_text()[:8]
        return [p for p in CGROUPS.rglob(name)]

    def of(self, name):
        [group] = self.groups()
        return group / self.pod(name)["metadata"]["uid"] / "c"

    def stop(self, how=signal.SIGINT):
        self.process.send_signal(how)
        self.process.wait(60)

    def down(self):
        """From another session than the one it ran in."""
        elsewhere = CGROUPS / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        subprocess.run(**self.command(elsewhere, "down"), check=True, stdout=subprocess.DEVNULL)


def number(file, name=None):
    text = file.read_text()
    return int(re.search(rf"^{name} (\d+)", text, re.M)[1] if name else text)


def limits_hold(weft, who):
    for name in ("grows", "nurses"):
        reason = lambda: weft.ended(name).get("reason") == "OOMKilled"
        until(f"{name} is ended", reason)
    say(f"{who}: what exceeds its memory is OOMKilled, the whole container at once")

    busy = weft.of("busy")
    assert busy.joinpath("cpu.max").read_text().split() == ["10000", "100000"]
    until("busy runs", lambda: number(busy / "cpu.stat", "nr_throttled") > 5)
    used, begun = number(busy / "cpu.stat", "usage_usec"), time.monotonic()
    until("its periods pass", lambda: time.monotonic() - begun > 3)
    share = (number(busy / "cpu.stat", "usage_usec") - used) / (time.monotonic() - begun) / 1e6
    assert share < 0.13, share
    say(f"{who}: cpu limit 100m: used {share:.3f} of a processor")

    log = "/api/v1/namespaces/default/pods/forks/log"
    made = int(until("forks are bounded", lambda: re.search(r"made (\d+)", weft.get(log)))[1])
    assert 100 < made < 1024, made
    assert number(weft.of("forks") / "pids.events", "max") > 0
    say(f"{who}: a fork bomb made {made} processes")

    asks = weft.of("asks")
    assert number(asks / "cpu.weight") == 20, "as Kubernetes converts 500m"
    assert number(asks.parent / "cpu.weight") == 20
    assert number(asks / "memory.max") == 100 << 20
    assert number(asks / "memory.swap.max") == 0
    say(f"{who}: requests and limits are in its group")
    log = "/api/v1/namespaces/default/pods/escapes/log"
    until("escapes has tried", lambda: "tried" in weft.get(log))
    assert "out" not in weft.get(log)
    say(f"{who}: no container leaves its group")
    events = weft.get("/api/v1/namespaces/default/events")
    assert "LimitsNotEnforced" not in events, events


def nothing_is_left(weft, who, in_service=False):
    weft.stop()
    assert weft.groups() == [], weft.groups()
    say(f"{who}: no group is left after an interrupt")
    weft.start()
    until("it runs again", lambda: weft.of("asks").exists())
    weft.stop(signal.SIGKILL)
    weft.down()
    assert weft.groups() == [], weft.groups()
    say(f"{who}: no group is left after kill -9 and `weft down`")
    weft.start()
    until("it runs again", lambda: weft.of("asks").exists())
    if not in_service:
        # Whoever runs services tidies their groups; nobody does that for sessions.
        stray = weft.groups()[0] / "stray"
        weft.stop(signal.SIGKILL)
        stray.mkdir()
        if weft.user:
            os.chown(stray, weft.user, weft.user)
        weft.start()
        until("it runs again", lambda: weft.of("asks").exists())
        assert not stray.exists()
        say(f"{who}: after kill -9 the next start removes what was left")
    weft.stop()
    assert weft.groups() == [], weft.groups()


def group(path, *, user=None):
    """A group whose children may be limited."""
    here = CGROUPS
    for part in ("", *path.split("/")):
        here = here / part
        here.mkdir(exist_ok=True)
        if part != path.split("/")[-1]:
            (here / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    if user:
        for file in (here, *(here / f for f in ("cgroup.procs", "cgroup.subtree_control",
                                                "cgroup.threads"))):
            os.chown(file, user, user)
    return here


def as_root():
    weft = Weft("root", group("system/session")).start()
    limits_hold(weft, "root")
    nothing_is_left(weft, "root")


def as_user_in_a_session():
    """As `systemd-run --user --scope` has it: the group above is the user's too."""
    above = group("users/u1000", user=USER)
    (above / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    scope = above / "scope"
    scope.mkdir()
    for file in (scope, scope / "cgroup.procs"):
        os.chown(file, USER, USER)
    weft = Weft("user", scope, user=USER).start()
    limits_hold(weft, "ordinary user, delegated above")
    nothing_is_left(weft, "ordinary user, delegated above")


def as_user_in_a_service():
    """As a unit with `User=` and `Delegate=yes` has it: its own group, and no other, is its own."""
    weft = Weft("service", group("services/weft.service", user=USER), user=USER).start()
    limits_hold(weft, "ordinary user, own group delegated")
    nothing_is_left(weft, "ordinary user, own group delegated", in_service=True)


def without_delegation():
    weft = Weft("none", group("plain/session"), user=USER).start()
    until("it is told", lambda: "LimitsNotEnforced" in
          weft.get("/api/v1/namespaces/default/events"))
    assert weft.groups() == []
    weft.stop()
    say("ordinary user, nothing delegated: told as LimitsNotEnforced")


def main():
    shutil.rmtree("/tmp/weft", ignore_errors=True)
    with open("/proc/self/mounts") as mounts:
        assert not [line for line in mounts if line.split()[2] == "cgroup"], "version 2 only"
    failed = 0
    chosen = sys.argv[1:]
    for case in (as_root, as_user_in_a_session, as_user_in_a_service, without_delegation):
        if chosen and case.__name__ not in chosen:
            continue
        try:
            case()
        except BaseException as error:
            failed += 1
            import traceback
            traceback.print_exc(file=sys.stdout)
            say(f"FAILED {case.__name__}: {error!r}")
            for process in Weft.running:
                process.kill()
            for log in pathlib.Path("/tmp").glob("*/log"):
                print(f"== {log}\n{log.read_text()[-2500:]}", flush=True)
    say(f"{'FAILED' if failed else 'all held'}")
    return 1 if failed else 0


sys.exit(main())
