# SPDX-License-Identifier: Apache-2.0
"""Drill F9 for all that is no plain HTTP/1 (that part is in test_standalone.py): ten upgrades under
HTTP/2 with streams in flight, calls of gRPC, WebSockets, raw TCP, datagrams and TLS. 0 failed.
`./test faults` makes ten of each, `./test` three."""

import contextlib
import os
import socket
import ssl
import time

import pytest
from mesh import free_port, until
from standalone import certificates, curl
from upgrades import Bytes, Calls, Client, Datagrams, Echo, Line, Named, WebSocket, \
    server_of_calls

TIMES = 10 if os.environ.get("FULL") else 3


def file(folder, listener, endpoints, more="", protocol="http1"):
    """A proxy's file of one listener that leads to these ports."""
    port, admin = free_port(), free_port()
    ends = ", ".join(f"127.0.0.1:{end}" for end in endpoints)
    (folder / "proxy.yaml").write_text(f"""
admin: 127.0.0.1:{admin}
access_log: failures
listeners:
  - {{name: one, bind: "127.0.0.1:{port}", {listener}}}
routes:
  - {{name: all, listeners: [one], rules: [{{to: up}}]}}
backends:
  - {{name: up, protocol: {protocol}, endpoints: [{ends}]{more}}}
""")
    return port, admin


def line(folder, port, **how):
    ready = None if how.pop("datagrams", False) else port
    return Line("-c", folder / "proxy.yaml", door=folder / "door", ready=ready, **how)


def upgraded(line, *clients, times=TIMES):
    """Upgrades under these clients; then all of them have ended well."""
    with contextlib.ExitStack() as running:
        for client in clients:
            running.enter_context(client)
        line.have_gone_on(*clients)
        line.upgrades(times, *clients)
    wrong = [f"{type(c).__name__}: {c.wrong}" for c in clients if c.wrong]
    assert not wrong, "\n".join(wrong) + "\n" + line.newest.text()
    return sum(client.done for client in clients)


def test_calls_and_streams_of_http2_go_on(tmp_path):
    """Calls begin before an upgrade and end after it; new ones find the newer process."""
    server, end = server_of_calls()
    port, _ = file(tmp_path, "protocol: http2", [end], protocol="grpc")
    with line(tmp_path, port) as processes:
        clients = [Calls(port, method) for method in ("Echo", "Echo", "Some", "Both", "Some", "Both")]
        done = upgraded(processes, *clients)
        processes.end()
    server.stop(0)
    print(f"F9: {TIMES} upgrades under HTTP/2: {done} calls of gRPC (short ones, streams of a server "
          "and both ways), 0 failed")


@pytest.mark.parametrize("what", [Bytes, WebSocket])
def test_what_is_open_stays_open_over_all_of_them(tmp_path, what):
    """A connection of before the first upgrade is still served by its process after the last."""
    with Echo() as echo:
        raw = what is Bytes
        listener = "protocol: tcp" if raw else "protocol: http"
        port, _ = file(tmp_path, listener, [echo.port], protocol="tcp" if raw else "http1")
        with line(tmp_path, port) as processes:
            kept, fresh = [what(port) for _ in range(3)], what(port, fresh=True)
            with kept[0], contextlib.ExitStack() as between:
                done = upgraded(processes, *kept[1:], fresh)
                # Only the process that has it is left for it.
                first = processes.all[0].process
                assert first.poll() is None and not kept[0].wrong, kept[0].wrong
                processes.have_gone_on(kept[0])
                between.close()
            assert not kept[0].wrong, kept[0].wrong
            processes.end()
    done += kept[0].done
    print(f"F9: {TIMES} upgrades under {'raw TCP' if raw else 'WebSockets'}: {done} exchanges of "
          f"{2 * kept[0].size // 1000} kB on connections that stayed and on {fresh.done} new ones, "
          "0 failed")


def test_what_stays_open_is_cut_when_the_time_for_it_is_over(tmp_path):
    with Echo() as echo:
        port, _ = file(tmp_path, "protocol: http", [echo.port])
        with line(tmp_path, port, drain=1) as processes, WebSocket(port) as kept:
            processes.have_gone_on(kept)
            processes.upgrade()
            assert processes.all[0].process.wait(60) == 0, processes.all[0].text()
            until("it is cut", lambda: kept.wrong)
            processes.end()


@pytest.mark.parametrize("hashed", [False, True], ids=["in turn", "hashed"])
def test_no_datagram_is_lost(tmp_path, hashed):
    """Where the policy hashes, a client's datagrams stay with their server, too."""
    with Named(b"a") as a, Named(b"b") as b, Named(b"c") as c:
        ends = [a.port, b.port, c.port]
        policy = ", policy: {lb: {hash: {by: source_ip, table: {maglev: {size: 1021}}}}}"
        port, _ = file(tmp_path, "protocol: udp", ends, policy if hashed else "", protocol="tcp")
        with line(tmp_path, port, datagrams=True) as processes:
            # The workers' own sockets are told apart by the client's port.
            flows = [Datagrams(port, f"127.0.0.{n + 1}") for n in range(18)]
            done = upgraded(processes, *flows)
            processes.end()
    lost = sum(flow.lost for flow in flows)
    moved = sum(len(flow.by) - 1 for flow in flows)
    said = f"{TIMES} upgrades under {len(flows)} flows: {lost} of {done} datagrams lost"
    by = {flow.by[0] for flow in flows if flow.by}
    # By hash it is chance who has none of so few.
    assert by == {b"a", b"b", b"c"} or hashed and len(by) > 1, by
    assert lost == 0 and (moved == 0 or not hashed), f"{said}, {moved} moved"
    print(f"F9: {said}, {moved} went to another server ({'by hash' if hashed else 'in turn'}), "
          "0 failed")


class Sessions(Client):
    """TLS connections, each of which shows the ticket that the one before was given."""

    enough = 15

    def __init__(self, port, authority, version):
        super().__init__()
        self.port, self.session, self.resumed = port, None, []
        self.context = ssl.create_default_context(cafile=str(authority))
        self.context.minimum_version = self.context.maximum_version = version

    def once(self):
        raw = socket.create_connection(("127.0.0.1", self.port), 30)
        with self.context.wrap_socket(raw, server_hostname="localhost",
                                      session=self.session) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            said = b""
            while part := stream.recv(4096):
                said += part
            assert said.startswith(b"HTTP/1.1 200") and said.endswith(b"ok"), said
            self.resumed.append(stream.session_reused)
            self.session = stream.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_goes_on_with_the_older_ones_tickets(tmp_path, version):
    certificates(tmp_path)
    port = free_port()
    (tmp_path / "proxy.yaml").write_text(f"""
access_log: failures
listeners:
  - {{name: one, bind: "127.0.0.1:{port}", tls: [{{certificate: server.pem, key: server.key}}]}}
routes:
  - rules: [{{answer: {{status: 200, body: "ok"}}}}]
""")
    with line(tmp_path, port) as processes:
        clients = [Sessions(port, tmp_path / "ca.pem", version) for _ in range(3)]
        done = upgraded(processes, *clients)
        processes.end()
    resumed = sum(sum(client.resumed) for client in clients)
    full = done - resumed
    print(f"F9: {TIMES} upgrades under {version.name}: {done} connections, {full} full handshakes, "
          "0 failed")
    # Nobody has a ticket at first, nor one of the newer process, and while both accept a client may
    # meet them in turn; otherwise tickets hold.
    assert full < resumed, [client.resumed for client in clients]


def test_a_listener_that_comes_while_an_older_one_finishes_is_the_newer_ones(tmp_path):
    """The older process still reads the file: it must not open what is new there."""
    with Echo() as echo:
        port, _ = file(tmp_path, "protocol: http", [echo.port])
        path, added = tmp_path / "proxy.yaml", free_port()
        with line(tmp_path, port) as processes:
            with WebSocket(port) as kept:
                processes.have_gone_on(kept)
                processes.upgrade()
                text = path.read_text().replace("routes:\n", f"""\
  - {{name: two, bind: "127.0.0.1:{added}"}}
routes:
  - {{name: two, listeners: [two], rules: [{{answer: {{status: 200, body: "two"}}}}]}}
""")
                path.write_text(text)
                url = f"http://127.0.0.1:{added}/"
                until("it is served", lambda: curl(url)[2] == "two")
                # Every process looks at its file once a second.
                said, enough = [], time.monotonic() + 3
                while time.monotonic() < enough or len(said) <= 10:
                    said.append(curl(url)[2])
                assert set(said) == {"two"}, said
                processes.have_gone_on(kept)
            assert not kept.wrong, kept.wrong
            processes.end()
