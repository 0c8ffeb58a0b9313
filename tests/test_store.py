# SPDX-License-Identifier: Apache-2.0
"""The store at rest and under faults, through the command line and a running server.

F6c on a full disk, and `weft store`. F6 is in tests/faults/f06_store.py.
"""

import json
import os
import signal
import subprocess
import threading
import time

import pytest
import requests

from mesh import WEFT, fixed_ports, until


class Server:
    """One `weft server` on free ports, and on the same ones when it is started again."""

    def __init__(self, data, extra=(), env=None, log=None):
        self.data = data
        self.log_path = log or data.with_suffix(".log")
        self.extra = list(extra)
        self.env = {**os.environ, "WEFT_LOG": "info", **(env or {})}
        self.ports = fixed_ports()
        self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def start(self, seconds=180):
        self.log = open(self.log_path, "ab")
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [str(WEFT), "server", "--data", str(self.data), *self.ports, "--announce",
             *self.extra], stdout=subprocess.PIPE, stderr=self.log, env=self.env)
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        self.doors = None
        for line in self.process.stdout:
            if line.startswith(b"{") and b'"weft"' in line:
                self.doors = json.loads(line)
                break
        timer.cancel()
        if self.doors is None:
            raise AssertionError(f"no server:\n{self.log_text()[-4000:]}")
        self.ready_after = time.monotonic() - self.began
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        self.api = self.doors["api"]
        self.consul_port = int(self.doors["consul"].rsplit(":", 1)[1])
        self.consul = f"http://127.0.0.1:{self.consul_port}"
        return self

    def stop(self, how=signal.SIGINT):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(60)
        self.log.close()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def log_text(self):
        return self.log_path.read_text(errors="replace")


def weft(*args, code=0):
    done = subprocess.run([str(WEFT), *map(str, args)], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"weft {args} -> {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def put(server, key, value, **kw):
    return requests.put(f"{server.consul}/v1/kv/{key}", data=value, timeout=20, **kw)


def raw(server, key):
    return requests.get(f"{server.consul}/v1/kv/{key}?raw", timeout=20)


def test_a_store_is_checked_backed_up_lost_and_restored(tmp_path):
    def roots(server):
        said = requests.get(f"{server.consul}/v1/connect/ca/roots", timeout=20).json()
        return said["TrustDomain"], [root["RootCert"] for root in said["Roots"]]
    data = tmp_path / "data"
    with Server(data) as server:
        authority = roots(server)
        for i in range(50):
            assert put(server, f"k/{i}", f"value {i}").text.strip() == "true"
        index = requests.get(f"{server.consul}/v1/kv/k/7", timeout=20).json()[0]["ModifyIndex"]
        # While it runs, nobody else may touch its directory, but it can be asked itself.
        assert "in use by another weft" in weft("store", "check", "--data", data, code=1)
        live = tmp_path / "live.backup"
        assert "keys" in weft("store", "backup", "--server", server.api, live)
        assert live.stat().st_mode & 0o777 == 0o600
        put(server, "k/late", "not in the first backup")
    said = weft("store", "check", "--data", data)
    assert "it is sound" in said and "format 1" in said
    saved = tmp_path / "saved.backup"
    assert "authority's key" in weft("store", "backup", "--data", data, saved)
    assert "is there already" in weft("store", "backup", "--data", data, saved, code=2)
    root = (data / "ca/root.pem").read_bytes()
    assert "is there already" in weft("store", "restore", "--data", data, saved, code=2)

    fresh = tmp_path / "fresh"
    weft("store", "restore", "--data", fresh, saved)
    assert (fresh / "ca/root.pem").read_bytes() == root
    assert (fresh / "ca/root.pem").stat().st_mode & 0o777 == 0o600
    with Server(fresh) as server:
        assert roots(server) == authority, "leaves that Consul's clients have are of no use any more"
        assert raw(server, "k/late").text == "not in the first backup"
        pair = requests.get(f"{server.consul}/v1/kv/k/7", timeout=20)
        assert pair.json()[0]["ModifyIndex"] == index
        put(server, "k/new", "1")
        new = requests.get(f"{server.consul}/v1/kv/k/new", timeout=20).json()[0]
        assert new["ModifyIndex"] > 1 << 30, "none is given out twice"
    # What a running server gave has everything up to then, and no authority.
    weft("store", "restore", "--data", fresh, "--force", live)
    assert (fresh / "store/log.redb.replaced").exists()
    with Server(fresh) as server:
        assert raw(server, "k/49").text == "value 49"
        assert raw(server, "k/late").status_code == 404


def test_a_damaged_log_is_told_and_a_damaged_backup_refused(tmp_path):
    data = tmp_path / "data"
    with Server(data) as server:
        put(server, "a", "1")
    saved = tmp_path / "saved"
    weft("store", "backup", "--data", data, saved)
    torn = bytearray(saved.read_bytes())
    torn[len(torn) // 2] ^= 1
    (tmp_path / "torn").write_bytes(torn)
    said = weft("store", "restore", "--data", tmp_path / "new", tmp_path / "torn", code=1)
    assert "cannot be restored from" in said
    assert not (tmp_path / "new/store/log.redb").exists()

    log = data / "store/log.redb"
    log.write_bytes(b"")
    refused = subprocess.run([str(WEFT), "server", "--data", str(data), "--ports", "auto"],
                             capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1, refused
    assert "is empty, but a log was there" in refused.stderr
    assert log.stat().st_size == 0, "no new log is begun over it"
    weft("store", "restore", "--data", data, "--force", saved)
    with Server(data) as server:
        assert raw(server, "a").text == "1"
    (data / "VERSION").write_text("2\n")
    assert "newer weft" in weft("store", "check", "--data", data, code=1)


def test_a_log_with_damaged_pages_is_told_and_beyond_repair(tmp_path):
    data = tmp_path / "data"
    with Server(data) as server:
        assert put(server, "k/spoil-me", "1").status_code == 200
    log = data / "store/log.redb"
    whole = log.read_bytes()
    key, page = b"k/spoil-me", 4096
    places = [at for at in range(len(whole)) if whole.startswith(key, at)]
    assert places, "the key stands in the log as it is written"
    letter, pages = bytearray(whole), bytearray(whole)
    for at in places:
        letter[at + 2] ^= 1
        first = at // page * page
        pages[first:first + 4000] = b"\xa5" * 4000
    names = sorted(path.name for path in log.parent.iterdir())
    for spoilt in (bytes(letter), bytes(pages), whole[:len(whole) // 2], b""):
        log.write_bytes(spoilt)
        for verb in ("check", "repair"):
            said = weft("store", verb, "--data", data, code=3)
            assert "panicked" not in said, said
            assert "restore" in said, said
            assert ("try `weft store repair`" in said) == (verb == "check" and spoilt != b""), said
        assert log.read_bytes() == spoilt, "what cannot be mended is left as it was"
        assert sorted(path.name for path in log.parent.iterdir()) == names
    log.write_bytes(whole)
    weft("store", "check", "--data", data)


@pytest.mark.root
def test_f6c_a_full_disk_is_told_and_left_behind(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "weft-test", str(small)], check=True)
    try:
        with Server(small / "data", log=tmp_path / "log") as server:
            assert put(server, "before", "1").status_code == 200
            refused, written = None, 0
            for i in range(200):
                answer = put(server, f"fill/{i}", os.urandom(100_000))
                if answer.status_code != 200:
                    refused = answer
                    break
                written += 1
            assert refused is not None and written > 3
            assert refused.status_code == 507, refused.text
            assert "acknowledged nothing" in refused.text, refused.text
            metrics = requests.get(f"{server.api}/metrics", timeout=20).text
            failures = [line for line in metrics.splitlines()
                        if line.startswith("weft_store_commit_failures_total")]
            assert int(failures[0].split()[1]) > 0
            # Reads go on, and what was acknowledged is there.
            assert raw(server, "before").text == "1"
            assert len(raw(server, f"fill/{written - 1}").content) == 100_000
            subprocess.run(["mount", "-o", "remount,size=32m", str(small)], check=True)
            until("it writes again", lambda: put(server, "after", "2").status_code == 200)
            assert raw(server, "after").text == "2"
            kept = [raw(server, f"fill/{i}").status_code for i in range(written)]
            assert kept == [200] * written
        assert "panicked" not in server.log_text()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
