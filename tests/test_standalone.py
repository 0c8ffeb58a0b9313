# SPDX-License-Identifier: Apache-2.0
"""`weft proxy -c`: a file is served, read again, refused whole; processes replace each other."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest
from mesh import WEFT, free_port, until
from standalone import Origin, Proxy, certificates, curl, listens
from upgrades import Echo, Named, WebSocket
from upgrades import owner as door_owner

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/faults"))
import drill  # noqa: E402
from drill import Load  # noqa: E402


def text(port, admin, *origins, extra=""):
    endpoints = ", ".join(f"127.0.0.1:{o.port}" for o in origins)
    return f"""
admin: 127.0.0.1:{admin}
access_log: failures
listeners:
  - {{name: web, bind: "127.0.0.1:{port}"}}
routes:
  - name: all
    rules:
      - {{path: /hello, answer: {{status: 200, body: "hello"}}}}
      - to: up
{extra}backends:
  - name: up
    endpoints: [{endpoints}]
"""


@pytest.fixture
def ports():
    return free_port(), free_port()


def put(path, text):
    """A file that is all there when it is: one that is read while it is written would be told of
    twice."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def test_a_file_is_served_and_read_again_when_it_changes_and_on_sighup(tmp_path, ports):
    port, admin = ports
    path = tmp_path / "proxy.yaml"
    with Origin("one") as one, Origin("two") as two:
        path.write_text(text(port, admin, one))
        with Proxy("-c", path, ready=port) as proxy:
            url = f"http://127.0.0.1:{port}"
            assert curl(f"{url}/hello")[::2] == (200, "hello")
            assert curl(f"{url}/x")[2] == "one GET /x"
            path.write_text(text(port, admin, two))
            until("the change is in use", lambda: curl(f"{url}/x")[2] == "two GET /x")
            # The same size and a time long ago: only the signal tells.
            path.write_text(text(port, admin, one))
            proxy.process.send_signal(signal.SIGHUP)
            until("SIGHUP is obeyed", lambda: curl(f"{url}/x")[2] == "one GET /x")


def test_a_backend_may_be_a_name_and_datagrams_are_served(tmp_path, ports):
    port, admin = ports
    path, datagrams = tmp_path / "proxy.yaml", free_port()
    with Origin("one") as one, Named(b"echo") as echo:
        path.write_text(f"""
admin: 127.0.0.1:{admin}
listeners:
  - {{name: web, bind: "127.0.0.1:{port}"}}
  - {{name: low, bind: "127.0.0.1:{datagrams}", protocol: udp}}
routes:
  - rules: [{{to: named}}]
  - {{name: low, listeners: [low], rules: [{{to: echo}}]}}
backends:
  - {{name: named, endpoints: ["localhost:{one.port}"]}}
  - {{name: echo, protocol: tcp, endpoints: ["127.0.0.1:{echo.port}"]}}
""")
        with Proxy("-c", path, ready=port), socket.socket(type=socket.SOCK_DGRAM) as client:
            url = f"http://127.0.0.1:{port}/x"
            until("the name is found", lambda: curl(url)[2] == "one GET /x")
            client.connect(("127.0.0.1", datagrams))
            client.settimeout(10)

            def echoed():
                client.send(b":1")
                return client.recv(64) == b"echo:1"

            until("a datagram comes back", echoed)


def test_copies_of_requests_go_to_several_backends_by_percentage(tmp_path, ports):
    port, admin = ports
    path = tmp_path / "proxy.yaml"
    with drill.Origin() as up, drill.Origin() as all_, drill.Origin() as some:
        at = [f"{o.address}:{o.port}" for o in (up, all_, some)]
        path.write_text(f"""
admin: 127.0.0.1:{admin}
access_log: failures
listeners: [{{name: web, bind: "127.0.0.1:{port}"}}]
routes:
  - rules: [{{to: up, mirror: [{{to: all}}, {{to: some, percent: 30}}]}}]
backends:
  - {{name: up, endpoints: "{at[0]}"}}
  - {{name: all, endpoints: "{at[1]}"}}
  - {{name: some, endpoints: "{at[2]}"}}
""")
        with Proxy("-c", path, ready=port):
            load = Load(port, 200, 2, connections=4, deadline=60).run()
            assert load.count(200) == 400, load.others(200)
            assert up.hits() == 400
            until("the copies have come", lambda: all_.hits() == 400)
        # 400 draws of 3 in 10: more than six deviations of the mean.
        assert 60 <= some.hits() <= 180, some.hits()


def test_a_session_by_header_stays_with_its_instance(tmp_path, ports):
    port, admin = ports
    path = tmp_path / "proxy.yaml"
    with Origin("one") as one, Origin("two") as two, Origin("three") as three:
        ends = ", ".join(f'"127.0.0.1:{o.port}"' for o in (one, two, three))
        path.write_text(f"""
admin: 127.0.0.1:{admin}
access_log: failures
listeners: [{{name: web, bind: "127.0.0.1:{port}"}}]
routes:
  - rules: [{{to: up, session: {{name: x-session, by: header}}}}]
backends:
  - {{name: up, endpoints: [{ends}]}}
""")
        with Proxy("-c", path, ready=port):
            url = f"http://127.0.0.1:{port}/"
            firsts = [curl(url) for _ in range(6)]
            assert len({body for _, _, body in firsts}) == 3, "others go in turn"
            for _, headers, body in firsts:
                session = headers["x-session"]
                for _ in range(4):
                    assert curl(url, "-H", f"x-session: {session}")[2] == body
            # What nobody gave is no session.
            assert curl(url, "-H", "x-session: 127.0.0.1:1")[0] == 200


def test_a_bad_file_is_refused_whole_with_places_and_the_old_one_stays(tmp_path, ports):
    port, admin = ports
    path = tmp_path / "proxy.yaml"
    info = f"http://127.0.0.1:{admin}/server_info"
    with Origin("one") as one:
        path.write_text(text(port, admin, one))
        with Proxy("-c", path, ready=port) as proxy:
            url = f"http://127.0.0.1:{port}"
            bad = text(port, admin, one).replace("to: up", "to: nobody").replace("hello", "bye")
            path.write_text(bad + "    polcy: {}\n")

            def refused():
                """All of it: a file may be read while it is written."""
                said = json.loads(curl(info)[2])["weft"]["refused"]
                assert 'line 10: routes[0].rules[1].to: no backend has the name "nobody"' in said
                return "backends[0].polcy: weft has no such field" in said
            until("it is refused", refused)
            proxy.says("the configuration before stays in use")
            assert curl(f"{url}/hello")[2] == "hello", "nothing of it is in use"
            path.write_text(text(port, admin, one).replace("hello", "mended"))
            until("the mended file is in use", lambda: curl(f"{url}/mended")[2] == "mended")
            until("nothing is refused", lambda: json.loads(
                curl(info)[2])["weft"]["refused"] is None)


def test_a_listener_that_cannot_be_opened_refuses_the_whole_file(tmp_path, ports):
    port, admin = ports
    path = tmp_path / "proxy.yaml"
    info, url = f"http://127.0.0.1:{admin}/server_info", f"http://127.0.0.1:{port}"
    refused = lambda: json.loads(curl(info)[2])["weft"]["refused"]
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        old = text(port, admin)
        busy = taken.getsockname()[1]
        new = old.replace("hello", "bye")
        new = new.replace("routes:", f'  - {{name: x, bind: "127.0.0.1:{busy}"}}\nroutes:')
        path.write_text(old)
        with Proxy("-c", path, ready=port) as proxy:
            path.write_text(new)
            until("it is refused", lambda: "bind[0]: cannot listen on 127.0.0.1:" in refused()
                  and "in use" in refused())
            proxy.says("the configuration before stays in use")
            assert curl(f"{url}/hello")[2] == "hello" and curl(f"{url}/bye")[2] != "bye"
            # What is in use is in the file again.
            path.write_text(old)
            until("it is not refused", lambda: refused() is None)
            taken.close()
            path.write_text(new)
            until("all of it is in use", lambda: curl(f"{url}/bye")[2] == "bye")
            until("nothing is refused", lambda: listens(busy) and refused() is None)


def test_a_file_that_is_wrong_from_the_beginning_starts_nothing(tmp_path, ports):
    port, admin = ports
    path = tmp_path / "proxy.yaml"
    path.write_text("listeners:\n  - {name: a, bind: nowhere}\n  - {bind: '127.0.0.1:1'}\nx: 1\n")
    for words in ((), ("--check",)):
        words = [WEFT, "proxy", "-c", path, *words]
        run = subprocess.run(words, capture_output=True, text=True)
        assert run.returncode == 1
        for said in ["line 2: listeners[0].bind", "line 3: listeners[1].name", "line 4: x"]:
            assert said in run.stderr, run.stderr
    # A port that somebody has is said, too, and nothing goes on.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        path.write_text(text(port, admin))
        run = subprocess.run([WEFT, "proxy", "-c", path], capture_output=True, text=True, timeout=60)
        assert run.returncode == 1
        assert "stop the process that has it" in run.stderr


def test_certificates_are_read_again_without_dropping_a_connection(tmp_path, ports):
    port, admin = ports
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        certificates(folder)
    path = tmp_path / "proxy.yaml"
    for name in ("server.pem", "server.key"):
        (tmp_path / name).write_bytes((first / name).read_bytes())
    path.write_text(
        f"""
admin: 127.0.0.1:{admin}
listeners:
  - name: secure
    bind: 127.0.0.1:{port}
    tls: [{{certificate: server.pem, key: server.key}}]
routes:
  - rules: [{{answer: {{status: 200, body: "ok"}}}}]
"""
    )
    with Proxy("-c", path, ready=port):
        import ssl

        url = f"https://localhost:{port}/"
        assert curl(url, "--cacert", str(first / "ca.pem"))[2] == "ok"
        context = ssl.create_default_context(cafile=str(first / "ca.pem"))
        kept = http.client.HTTPSConnection("localhost", port, context=context)
        kept.request("GET", "/")
        assert kept.getresponse().read() == b"ok"
        for name in ("server.pem", "server.key"):
            (tmp_path / name).write_bytes((second / name).read_bytes())
        check = lambda: curl(url, "--cacert", str(second / "ca.pem"))[2] == "ok"  # noqa: E731
        until("the new certificate is shown", check)
        kept.request("GET", "/")
        assert kept.getresponse().read() == b"ok", "the connection of before goes on"


class Fresh(Load):
    """A connection of its own for each request."""

    async def _send(self, n):
        try:
            return await super()._send(n)
        finally:
            while self.idle:
                self.idle.pop()[1].close()


def test_f9_hot_upgrades_lose_no_request_kept_or_fresh(tmp_path, ports):
    """Drill F9: ten upgrades, one a second, under 400 requests a second, half of them on fresh
    connections; a quarter of that where the machine does something else, too."""
    port, admin = ports
    path, door = tmp_path / "proxy.yaml", tmp_path / "door"
    rate = 400 if os.environ.get("FULL") else 100
    with drill.Origin() as up:
        here = text(port, admin, up).replace(f"127.0.0.1:{up.port}", f"{up.address}:{up.port}")
        path.write_text(here)
        words = ("-c", path, "--handover", door)
        proxies = [Proxy(*words, ready=port)]
        until("it can be replaced", door.exists)
        patience = 10 if os.environ.get("FULL") else 60
        loads = [Load(port, rate / 2, 600, patience, connections=8),
                 Fresh(port, rate / 2, 600, patience)]
        with concurrent.futures.ThreadPoolExecutor(len(loads)) as pool:
            running = [pool.submit(load.run) for load in loads]
            try:
                until("requests flow", lambda: all(len(load.done) > 10 for load in loads))
                began = [(time.monotonic(), load.sent) for load in loads]
                for _ in range(10):
                    at = time.monotonic()
                    older = proxies[-1]
                    proxies.append(Proxy(*words))
                    pid = proxies[-1].process.pid
                    whose = lambda: door_owner(door) == pid  # noqa: E731
                    until("the newer one has the door", whose)
                    time.sleep(max(0.0, 1 - (time.monotonic() - at)))
                    assert older.process.poll() in (None, 0), older.text()
                pace = sum((load.sent - sent) / (time.monotonic() - at)
                           for load, (at, sent) in zip(loads, began))
            except BaseException:
                for proxy in proxies:
                    proxy.process.kill()
                raise
            finally:
                for load in loads:
                    load.over = True
        for one in running:
            one.result()
        newest = proxies.pop()
        for proxy in proxies:
            assert proxy.process.wait(60) == 0, proxy.text()
        assert newest.stop() == 0
    done = sum(len(load.done) for load in loads)
    failed = done - sum(load.count(200) for load in loads)
    others = [load.others(200) for load in loads]
    said = (f"{done} requests over 10 upgrades ({pace:.0f} a second, half on fresh connections), "
            f"{failed} failed")
    assert failed == 0, f"{said}: kept {others[0]}, fresh {others[1]}"
    # An open loop: what the proxy does not answer in time is sent all the same.
    assert done >= 10 * rate * (0.95 if os.environ.get("FULL") else 0.5), said
    print(f"F9: {said}")


class Systemd:
    """The socket that a unit's processes tell systemd at, which sees who says what."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(str(path))
        self.socket.settimeout(60)
        self.env = {**os.environ, "NOTIFY_SOCKET": str(path)}

    def hear(self):
        """The next message's fields, and the process that sent it."""
        text, [(_, _, raw)], _, _ = self.socket.recvmsg(4096, 128)
        fields = dict(line.split("=", 1) for line in text.decode().splitlines())
        return fields, struct.unpack("3i", raw)[0]

    def hears(self, pid, *names):
        fields, said_by = self.hear()
        assert said_by == pid and all(name in fields for name in names), (fields, said_by, pid)
        return fields

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def test_sigusr2_starts_the_successor_and_systemd_is_told(tmp_path, ports):
    """As sd_notify(3) wants it: a reload begins and ends, and a process that was replaced says
    nothing more, though it goes on with what is open there."""
    port, admin = ports
    path, door = tmp_path / "proxy.yaml", tmp_path / "door"
    with Echo() as up, Systemd(tmp_path / "notify") as systemd:
        path.write_text(text(port, admin, up))
        first = Proxy("-c", path, "--handover", door, ready=port, env=systemd.env)
        pid = first.process.pid
        systemd.hears(pid, "READY")
        first.process.send_signal(signal.SIGHUP)
        systemd.hears(pid, "RELOADING", "MONOTONIC_USEC")
        systemd.hears(pid, "READY")
        with WebSocket(port) as kept:
            until("something is open", lambda: kept.done or kept.wrong)
            first.process.send_signal(signal.SIGUSR2)
            began = int(systemd.hears(pid, "RELOADING")["MONOTONIC_USEC"]) / 1e6
            assert 0 <= time.clock_gettime(time.CLOCK_MONOTONIC) - began < 60
            successor = int(systemd.hears(pid, "MAINPID", "READY")["MAINPID"])
            try:
                systemd.hears(successor, "READY")
                assert door_owner(door) == successor
                # Both read the file.
                put(path, text(port, admin, up).replace("hello", "hallo"))
                systemd.hears(successor, "RELOADING")
                systemd.hears(successor, "READY")
                url = f"http://127.0.0.1:{port}/hallo"
                until("the successor has it", lambda: curl(url)[2] == "hallo")
                until("what is open goes on", lambda before=kept.done: kept.done > before)
                assert first.process.poll() is None and not kept.wrong
                kept.over.set()
                assert first.process.wait(60) == 0, "the older one ends by itself"
            finally:
                os.kill(successor, signal.SIGTERM)
            # There is nothing of the older one's between.
            systemd.hears(successor, "STOPPING")
        until("it has ended", lambda: not listens(port))


def test_a_successor_that_cannot_serve_changes_nothing(tmp_path, ports):
    port, admin = ports
    path, door = tmp_path / "proxy.yaml", tmp_path / "door"
    with Origin("up") as up, Systemd(tmp_path / "notify") as systemd:
        path.write_text(text(port, admin, up))
        first = Proxy("-c", path, "--handover", door, ready=port, env=systemd.env)
        until("it can be replaced", door.exists)
        systemd.hears(first.process.pid, "READY")
        put(path, "listeners: []\n")
        first.process.send_signal(signal.SIGUSR2)
        told = [systemd.hears(first.process.pid) for _ in range(4)]
        # Two reloads, one of the file and one of the process; both come to an end.
        assert sum("RELOADING" in fields for fields in told) == 2, told
        assert sum("READY" in fields for fields in told) == 2, told
        first.says("was started has ended")
        assert door_owner(door) == first.process.pid
        assert curl(f"http://127.0.0.1:{port}/x")[2] == "up GET /x"
        put(path, text(port, admin, up))
        first.process.send_signal(signal.SIGUSR2)
        assert first.process.wait(60) == 0, first.text()
        until("its successor is ready", lambda: door_owner(door))
        os.kill(door_owner(door), signal.SIGTERM)
        until("it has ended", lambda: not listens(port))


def test_the_example_is_valid_and_explained():
    path = ROOT / "examples/edge.yaml"
    run = subprocess.run([WEFT, "proxy", "-c", path, "--check"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    for url, words, said in [
        ("https://shop.localhost:8443/api/users", (), "90"),
        ("https://shop.localhost:8443/api/users", ("-H", "x-tester: yes"), "api:9001/v2"),
        ("http://shop.localhost:8080/a?b=1", (), "https://shop.localhost:8443/a?b=1"),
        ("https://shop.localhost:8443/shop/shoes", (), "/api/shoes"),
        ("https://docs.localhost:8443/x", (), "/docs/x"),
    ]:
        words = [WEFT, "explain", "-f", path, url, *words]
        run = subprocess.run(words, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert said in run.stdout, run.stdout
