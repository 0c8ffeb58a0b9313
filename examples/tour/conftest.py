# SPDX-License-Identifier: Apache-2.0
"""What the tour's tests share: a weft with one example's manifests in it.

With WEFT_API set, that weft is used. Otherwise one is started on free ports, with its own data
directory, and ended afterwards.
"""

import dataclasses
import json
import os
import pathlib
import queue
import random
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: Starting may include building the example's programs.
START_SECONDS = 300


@dataclasses.dataclass
class Weft:
    """Where a running weft is reached."""

    program: str
    api: str
    consul_port: int
    dns_port: int
    #: As WEFT_GATEWAY says; None where the manifest's own address holds.
    gateway: str | None

    def run(self, *args: str) -> str:
        """Runs `weft ...` as a client of this server and returns what it prints."""
        env = {**os.environ, "WEFT_SERVER": self.api}
        done = subprocess.run([self.program, *args], env=env, capture_output=True, text=True,
                              timeout=180)
        assert done.returncode == 0, f"weft {' '.join(args)}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def gateway_or(self, default: str) -> str:
        return (self.gateway or default).rstrip("/")


def wait_until(what: str, condition, seconds: float = 120):
    """Waits until condition() returns something true, and returns it."""
    deadline = time.monotonic() + seconds
    last = None
    while time.monotonic() < deadline:
        try:
            value = condition()
            if value:
                return value
        except (requests.RequestException, OSError, AssertionError) as error:
            last = error
        time.sleep(0.05)
    pytest.fail(f"{what}: not within {seconds} s" + (f"; last: {last!r}" if last else ""))


def need(program: str) -> str:
    """The path of a peer, or a skip that says what is missing."""
    path = shutil.which(program)
    if path is None:
        text = f"{program} is not installed"
        if os.environ.get("TOUR_REQUIRE_PEERS"):
            pytest.fail(text)
        pytest.skip(text)
    return path


def free_port() -> int:
    """A port on which nobody listens, below those that the system gives out by itself."""
    for _ in range(100):
        with socket.socket() as held:
            try:
                held.bind(("127.0.0.1", random.randrange(16_000, 20_000)))
                return held.getsockname()[1]
            except OSError:
                continue
    pytest.fail("no port is free")


def program() -> str:
    path = os.environ.get("WEFT", str(ROOT / "target/release/weft"))
    if not pathlib.Path(path).exists():
        pytest.fail(f"{path} does not exist; build it with cargo build --release, or set WEFT")
    return str(pathlib.Path(path).resolve())


def port(address: str) -> int:
    return int(address.rsplit(":", 1)[1].strip("/"))


def announced(line: str, weft: str) -> Weft | None:
    """Reads the line that `--announce` prints once all is ready."""
    try:
        doors = json.loads(line)
    except ValueError:
        return None
    if not isinstance(doors, dict) or "api" not in doors:
        return None
    if doors.get("not_ready"):
        pytest.fail(f"weft up: not ready: {doors['not_ready']}")
    api = doors["api"] if "://" in doors["api"] else f"http://{doors['api']}"
    return Weft(weft, api, port(doors["consul"]), port(doors["dns"]), None)


@pytest.fixture(scope="module")
def weft(request, tmp_path_factory):
    if "WEFT_API" in os.environ:
        env = os.environ
        yield Weft(program(), env["WEFT_API"].rstrip("/"), int(env.get("WEFT_CONSUL_PORT", 8500)),
                   int(env.get("WEFT_DNS_PORT", 8600)), env.get("WEFT_GATEWAY"))
        return
    folder = request.path.parent
    path = program()
    data = tmp_path_factory.mktemp("weft")
    doors = ["--announce", "--ports", "auto", "--data", str(data / "data")]
    manifests = sorted(folder.glob("*.yaml"))
    what = ["up", "--plain", str(folder)] if manifests else ["server"]
    log = open(data / "weft.log", "w+")
    child = subprocess.Popen([path, *what, *doors], stdout=subprocess.PIPE, stderr=log, text=True)
    lines = queue.Queue()

    def pump():
        for line in child.stdout:
            log.write(line)
            lines.put(line)
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    try:
        yield first_doors(lines, path, log)
    finally:
        child.send_signal(signal.SIGINT)
        try:
            code = child.wait(120)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            code = "killed after 120 s"
    log.seek(0)
    text = log.read()
    assert "panicked" not in text, text[-4000:]
    assert code == 0, f"weft {what[0]} ended with {code}\n{text[-4000:]}"


def first_doors(lines, path, log) -> Weft:
    deadline = time.monotonic() + START_SECONDS
    why = f"weft was not ready within {START_SECONDS} s"
    while time.monotonic() < deadline:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            continue
        if line is None:
            why = "weft ended before it was ready"
            break
        doors = announced(line, path)
        if doors:
            return doors
    log.flush()
    log.seek(0)
    pytest.fail(f"{why}\n{log.read()[-4000:]}")
