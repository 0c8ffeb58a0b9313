# SPDX-License-Identifier: Apache-2.0
"""A running `weft up` for the tests: started on free ports, asked through its own doors.

Nothing here sleeps for a fixed time: `until` waits for a condition and says what it last saw.
"""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import requests

# Agents of the tests open doors of their own only where a test asks for them.
for _door in ("WEFT_CONSUL_LISTEN", "WEFT_DNS_LISTEN"):
    os.environ.setdefault(_door, "none")

ROOT = pathlib.Path(__file__).resolve().parent.parent
WEFT = pathlib.Path(os.environ.get("WEFT", ROOT / "target/release/weft"))
LOAD = ROOT / "target/release/shop-load"
PEERS = ROOT / "target/peers"
BIN = PEERS / "bin"


# Not of the kernel's range for outgoing connections and "any port" (32768 and above), from which
# somebody else may be given a port between our asking and its use.
_ports = itertools.cycle(range(20_000, 32_000))
for _ in range(os.getpid() * 50 % 12_000):
    next(_ports)


def free_port():
    """A port on which nobody listens, over TCP or UDP at any address; each call gives another one."""
    for port in _ports:
        with (socket.socket(type=socket.SOCK_STREAM) as tcp,
              socket.socket(type=socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError)):
            tcp.bind(("", port))
            udp.bind(("", port))
            return port


def fixed_ports():
    """Flags of a server's doors at free ports. One that is started again finds them as they were:
    nobody is given them meanwhile, as those that the system gives out may be."""
    return ["--ports", "fixed", *(f"--{door}-port={free_port()}"
                                  for door in ("api", "consul", "dns", "xds"))]


def until(what, check, seconds=60.0, every=0.05):
    """Calls `check` until it returns something true; fails with the last exception or value. The
    usual deadline only keeps a test from waiting for ever: a busy machine may take its time. Where
    the time is what is tested, the test says it. A RuntimeError ends the waiting at once."""
    deadline = time.monotonic() + seconds
    last = None
    while True:
        try:
            last = check()
            if last:
                return last
        except (RuntimeError, NameError, AttributeError):
            raise
        except Exception as error:
            # Whatever clients say of servers that are not there yet: each library has its own.
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s; last: {last!r}")
        time.sleep(every)


def copy_shop(folder, gateway_port, edit=lambda name, text: text):
    """The shop's manifests in a folder of their own, on a free gateway port."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted((ROOT / "examples/shop").glob("*.yaml")):
        text = source.read_text()
        text = text.replace("../../target/", f"{ROOT}/target/")
        text = re.sub(r"port: 8000\b", f"port: {gateway_port}", text)
        text = re.sub(r"\n\s*weft.dev/build:.*", "", text)
        (folder / source.name).write_text(edit(source.name, text))
    shutil.copytree(ROOT / "examples/shop/changes", folder / "changes", dirs_exist_ok=True)
    return folder


class Mesh:
    """One `weft up`."""

    def __init__(self, paths, data, gateway_port=None, extra=(), env=None, user=None,
                 program=WEFT, prefix=()):
        self.paths = [str(p) for p in (paths if isinstance(paths, (list, tuple)) else [paths])]
        self.data = pathlib.Path(data)
        self.gateway = f"http://127.0.0.1:{gateway_port}" if gateway_port else None
        self.extra = list(extra)
        self.env = {**os.environ, "WEFT_LOG": os.environ.get("WEFT_LOG", "info"), **(env or {})}
        # Started as this ordinary user (a number) instead of the tests' own.
        self.user = user
        self.program = program
        self.prefix = list(prefix)
        if user:
            self.env.update(HOME=str(self.data.parent), USER=str(user))
        self.process = None
        self.lines = []
        self.kubeconfigs, self.writing = {}, threading.Lock()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def command(self):
        return [str(self.program), "up", *self.paths, "--data", str(self.data), "--ports", "auto",
                "--announce", "--plain", "--no-build", *self.extra]

    def start(self, seconds=180):
        command = self.prefix + self.command()
        if self.user:
            command = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups",
                       *command]
        self.log = open(self.data.with_suffix(".log"), "ab")
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log,
                                        env=self.env, cwd=ROOT)
        self.ready = threading.Event()
        self.doors = None
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        deadline = time.monotonic() + seconds
        while not self.ready.wait(0.05):
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = "".join(self.lines[-20:]) + self.log_text()[-4000:]
                self.stop()
                raise AssertionError(f"weft up did not become ready:\n{tail}")
        self.ready_after = time.monotonic() - self.started
        self.api = self.doors["api"]
        self.consul_port = int(self.doors["consul"].rsplit(":", 1)[1])
        self.dns_port = int(self.doors["dns"].rsplit(":", 1)[1])
        return self

    def _read(self):
        for raw in self.process.stdout:
            line = raw.decode(errors="replace")
            self.lines.append(line)
            if line.startswith("{") and '"weft"' in line:
                self.doors = json.loads(line)
                self.ready.set()

    def log_text(self):
        return self.data.with_suffix(".log").read_text(errors="replace")

    def stop(self, how=signal.SIGINT, seconds=60):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"weft up did not end within {seconds} s of {how!r}")
        self.reader.join(60)
        self.log.close()

    # -- doors -------------------------------------------------------------------------------

    def get(self, path, **kw):
        return requests.get(self.api + path, timeout=60, **kw)

    def consul(self, path, **kw):
        return requests.get(f"http://127.0.0.1:{self.consul_port}{path}", timeout=60, **kw)

    def kubeconfig(self):
        """Written once for each door: several kubectl at a time read it."""
        with self.writing:
            if self.api not in self.kubeconfigs:
                path = self.data.with_suffix(f".{len(self.kubeconfigs)}.kubeconfig")
                self.weft("kubeconfig", "--server", self.api, "--out", str(path))
                self.kubeconfigs[self.api] = path
            return self.kubeconfigs[self.api]

    def weft(self, *args, check=True):
        env = {**os.environ, "WEFT_SERVER": self.api}
        done = subprocess.run([str(WEFT), *args], capture_output=True, text=True, env=env,
                              timeout=180, cwd=ROOT)
        if check and done.returncode != 0:
            raise AssertionError(f"weft {' '.join(args)} -> {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def kubectl(self, *args, check=True, stdin=None, timeout=180):
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig()), "HOME": str(self.data.parent)}
        done = subprocess.run([str(BIN / "kubectl"), *args], capture_output=True, text=True,
                              env=env, timeout=timeout, input=stdin)
        if check and done.returncode != 0:
            raise AssertionError(
                f"kubectl {' '.join(args)} -> {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def dig(self, *args):
        done = subprocess.run([str(BIN / "dig"), "@127.0.0.1", "-p", str(self.dns_port), "+tries=1",
                               "+time=10", *args], capture_output=True, text=True, timeout=60)
        return done.stdout

    def pods(self, namespace, **labels):
        items = self.get(f"/api/v1/namespaces/{namespace}/pods").json()["items"]
        return [p for p in items
                if labels.items() <= (p["metadata"].get("labels") or {}).items()
                and "deletionTimestamp" not in p["metadata"]]

    def ready_pods(self, namespace, **labels):
        def ready(pod):
            conditions = pod.get("status", {}).get("conditions", [])
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        return [p for p in self.pods(namespace, **labels) if ready(p)]

    def roots(self):
        return [self.process.pid]

    def tree(self):
        """Process ids of everything below this weft."""
        children = {}
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text()
                except OSError:
                    continue
                parent = int(stat.rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
        found, queue = [], self.roots()
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue.extend(children.get(pid, []))
        return found

    def app_pid(self, pod_name, program):
        """The app process of a pod: the one whose environment names it."""
        for pid in self.tree():
            try:
                environ = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                exe = os.readlink(f"/proc/{pid}/exe")
            except OSError:
                continue
            if f"POD_NAME={pod_name}".encode() in environ and program in exe:
                return pid
        raise AssertionError(f"no process of {pod_name}")


class Elsewhere(Mesh):
    """A server that runs no pods, and one `weft agent` that runs them all, as on another machine:
    nothing but the mTLS link is between them."""

    def command(self):
        return [str(self.program), "server", "--data", str(self.data), "--ports", "auto",
                "--announce", *self.extra]

    def start(self, seconds=180):
        super().start(seconds)
        agent = [str(self.program), "agent", "--server", self.doors["xds"], "--name", "elsewhere",
                 "--data", str(self.data.with_suffix(".agent")), "--workdir", self.paths[0],
                 "--token", json.loads(self.weft("token", "create", "-o", "json").stdout)["token"]]
        if self.data.with_suffix(".agent").exists():
            agent = agent[:-2]
        self.agent = subprocess.Popen(agent, stdout=self.log, stderr=self.log, env=self.env,
                                      cwd=ROOT)
        self.weft("apply", *(arg for path in self.paths for arg in ("-f", path)))
        return self

    def stop(self, how=signal.SIGINT, seconds=60):
        # First, while it can tell the server how its pods ended.
        if getattr(self, "agent", None) and self.agent.poll() is None:
            self.agent.send_signal(signal.SIGINT)
            self.agent.wait(seconds)
        super().stop(how, seconds)

    def roots(self):
        return [self.process.pid, self.agent.pid]


def sidecar_of(pod):
    """Where a pod's sidecar answers the machine: its own loopback address, in both ways to run."""
    annotations = pod["metadata"].get("annotations", {})
    return annotations.get("weft.dev/host-address", pod["status"]["podIP"])


def pss_kb(pid):
    """What it takes of the machine's memory. It grows when another weft ends, with which it shared
    the program's pages: for what a load takes, there is `anonymous_kb`."""
    return _of_rollup(pid, "Pss:")


def anonymous_kb(pid):
    """What of its memory is no file's."""
    return _of_rollup(pid, "Pss_Anon:")


def _of_rollup(pid, name):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state not in "ZX"
    except OSError:
        return False
