# SPDX-License-Identifier: Apache-2.0
"""What a proxy promises of retries, pauses, health, new instances, limits and greetings, seen from
outside: `weft proxy -c` with several workers, real servers, and counts that are theirs."""

import contextlib
import email.utils
import http.client
import socket
import ssl
import statistics
import subprocess
import threading
import time

import pytest
import requests
from mesh import free_port, until
from promises import Clients, Host, file
from standalone import Proxy, curl

# Nothing but what a test is about: no ejections, and no budget that a few retries use up.
PLAIN = "outlier: {consecutive_failures: 0}, retry_budget: {basis_points: 10000, min_per_second: 1000}"
BUSY = lambda request: (503, {})  # noqa: E731


@pytest.fixture
def ports():
    return free_port(), free_port()


def served(tmp_path, ports, hosts, policy="", rule=""):
    path = tmp_path / "proxy.yaml"
    path.write_text(file(*ports, hosts, f"{{{PLAIN}{policy}}}", rule))
    return Proxy("-c", path, ready=ports[0])


# -- retries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tried_too", [False, True], ids=["others-first", "anybody"])
def test_a_retry_goes_to_a_host_that_was_not_tried(tmp_path, ports, tried_too):
    """Two of three hosts refuse everything, and there are three attempts: a request fails only
    where one of them is asked twice. With hosts that may be asked twice, some do."""
    rule = f", retry: {{attempts: 2, statuses: [503], backoff_ms: 1, tried_too: {str(tried_too).lower()}}}"
    with Host("a", BUSY) as a, Host("b", BUSY) as b, Host("c") as c:
        with served(tmp_path, ports, [a, b, c], ", lb: random", rule), Clients(ports[0]) as clients:
            statuses = clients.statuses(120)
        twice = [h.name for h in (a, b) if len({came.id for came in h.came}) < h.hits()]
        if tried_too:
            assert set(statuses) == {200, 503} and twice == ["a", "b"], statuses
            return
        assert statuses == [200] * 120
        assert twice == [] and c.hits() == 120
        # Each is the first one, and the second one, of many.
        assert 20 < a.hits() < 110 and 20 < b.hits() < 110, (a.hits(), b.hits())


def seconds(pause):
    return lambda request: {"retry-after": pause}


def date(pause):
    """A date in the server's own time, which need not be ours: it says what it takes for now."""
    def headers(request):
        now = 1_000_000_000
        stamp = lambda at: email.utils.formatdate(at, usegmt=True)  # noqa: E731
        return {"date": stamp(now), "retry-after": stamp(now + pause)}
    return headers


FORMS = pytest.mark.parametrize("said", [seconds, date], ids=["seconds", "date"])


@FORMS
@pytest.mark.parametrize("status", [429, 503])
def test_who_asks_for_a_pause_is_left_alone_while_others_are_there(tmp_path, ports, said, status):
    with Host("busy", lambda request: (status, said(60)(request))) as busy, Host("free") as free:
        with served(tmp_path, ports, [busy, free]), Clients(ports[0]) as clients:
            statuses = clients.statuses(60)
        assert statuses.count(status) == busy.hits() == 1, statuses
        assert free.hits() == 59


@FORMS
def test_the_only_hosts_pause_is_waited_for(tmp_path, ports, said):
    """The second attempt comes when the host said, and not after the back-off of 1 ms."""
    host = Host("one", lambda r: (200, {}) if host.hits() > 1 else (503, said(2)(r)))
    rule = ", retry: {attempts: 1, statuses: [503], backoff_ms: 1}"
    with host, served(tmp_path, ports, [host], rule=rule), Clients(ports[0]) as clients:
        assert clients.ask() == (200, "one")
        first, second = host.came
        assert second.at - first.at > 1.9, "the pause was 2 s"


@FORMS
def test_a_long_pause_is_told_to_the_client_instead(tmp_path, ports, said):
    rule = ", retry: {attempts: 1, statuses: [503], backoff_ms: 1}"
    with Host("one", lambda r: (503, said(3600)(r))) as host:
        with served(tmp_path, ports, [host], rule=rule):
            status, headers, _ = curl(f"http://127.0.0.1:{ports[0]}/")
        assert (status, host.hits()) == (503, 1)
        assert headers["retry-after"] == str(said(3600)(None)["retry-after"])


# -- who gets requests -----------------------------------------------------------------------


def test_below_the_panic_threshold_everybody_is_asked_whatever_the_checks_say(tmp_path, ports):
    ill = set()

    def answer(name):
        return lambda r: (500 if r.path == "/health" and name in ill else 200, {})

    hosts = [Host(name, answer(name)) for name in "abcd"]
    policy = """, panic_basis_points: 5000, protection: {health_check: {interval_ms: 100,
        timeout_ms: 10000, kind: {http: {path: /health}}}}"""
    with served(tmp_path, ports, hosts, policy), Clients(ports[0]) as clients:
        def asked():
            """Who answers 40 requests, none of which fails."""
            answers = [clients.ask() for _ in range(40)]
            assert {status for status, _ in answers} == {200}, answers
            return "".join(sorted({name for _, name in answers}))

        until("all are well", lambda: asked() == "abcd")
        ill.update("ab")
        until("two are left, which is not below a half", lambda: asked() == "cd")
        ill.add("c")
        until("one is left: all are asked", lambda: asked() == "abcd")
        ill.clear()
        ill.update("a")
        until("three are well", lambda: asked() == "bcd")
    for host in hosts:
        host.__exit__()


WARM = 8.0


def test_a_new_hosts_share_grows_to_its_weight(tmp_path, ports):
    port, admin = ports
    policy = f"""{{{PLAIN}, warmup: {{duration_ms: {int(WARM * 1000)}, min_basis_points: 1000,
        aggression_permille: 1000}}}}"""
    url = f"http://127.0.0.1:{admin}/explain?url=http://127.0.0.1:{port}/"
    path = tmp_path / "proxy.yaml"

    def warming():
        """Of its weight, in percent, by address."""
        rows = requests.get(url, timeout=20).json()["candidates"]
        return {row["address"]: row["live"].get("warm_percent", 100.0) for row in rows}

    with Host("old") as old, Host("new") as new:
        path.write_text(file(port, admin, [old], policy))
        with Proxy("-c", path, ready=port), Clients(port) as clients:
            until("the first one is warm", lambda: warming() == {old.address: 100.0})
            path.write_text(file(port, admin, [old, new], policy))
            # Below that it has its least share; beyond, how far it is says when it began.
            def grows():
                at = time.monotonic()
                far = warming().get(new.address, 0)
                # Where an answer takes long nobody can say of when it is.
                soon = time.monotonic() - at < WARM / 50
                return 10 < far < 90 and soon and at - WARM * far / 100

            began = until("the second one is there and grows", grows)
            seen, late = [], 0
            # As long as it grows, and some requests more when it has grown.
            while late < 200:
                at = time.monotonic() - began
                status, who = clients.ask()
                assert status == 200
                seen.append((at, who == "new"))
                late += at >= WARM + 0.5
    parts = [(WARM * n / 4, WARM * (n + 1) / 4) for n in range(4)] + [(WARM + 0.5, 1e9)]
    shares = [share for share in (grown(seen, *part) for part in parts) if share is not None]
    assert len(shares) >= 3 and shares == sorted(shares), shares


def grown(seen, begin, end):
    """The new one's share of the requests of a time, which is what its weight then is worth; nothing
    where a busy machine let too few of them through."""
    part = [(at, mine) for at, mine in seen if begin <= at < end]
    if len(part) < 50:
        return None
    weights = [max(0.1, min(1.0, at / WARM)) for at, _ in part]
    due = sum(weight / (1 + weight) for weight in weights) / len(part)
    share = sum(mine for _, mine in part) / len(part)
    assert abs(share - due) < 0.08, f"{share:.2f} instead of {due:.2f} from {begin} s to {end} s"
    return share


# -- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["[]", "[{header: x-user}]", "[client]"],
                         ids=["route", "header", "client"])
def test_a_local_limit_counts_for_all_workers_together(tmp_path, ports, by):
    """Ten in an hour, of all or of each; the others are refused and reach nobody."""
    rule = f", filters: [{{rate_limit: {{name: it, requests: 10, per_ms: 3600000, by: {by}}}}}]"
    with Host("one") as host, served(tmp_path, ports, [host], rule=rule):
        def ask(user, source):
            stream = socket.create_connection(("127.0.0.1", ports[0]), 30, (source, 0))
            connection = http.client.HTTPConnection("127.0.0.1", ports[0])
            connection.sock = stream
            connection.request("GET", "/", headers={"x-user": user})
            answer = connection.getresponse()
            answer.read()
            connection.close()
            if answer.status == 429:
                assert answer.headers["x-weft-flags"] == "RL"
                assert 0 < int(answer.headers["retry-after"]) <= 3600
            return answer.status

        # A connection each, so that both workers are asked.
        who = [("ann", "127.0.0.1"), ("ann", "127.0.0.2"), ("bob", "127.0.0.1")]
        said = {w: [] for w in who}
        for _ in range(16):
            for user, source in who:
                said[user, source].append(ask(user, source))
        passed = {w: statuses.count(200) for w, statuses in said.items()}
        assert all(set(statuses) == {200, 429} for statuses in said.values()), said
        if by == "[]":
            assert sum(passed.values()) == 10, passed
        elif by == "[client]":
            assert passed[who[0]] + passed[who[2]] == 10 == passed[who[1]], passed
        else:
            assert passed[who[0]] + passed[who[1]] == 10 == passed[who[2]], passed
        assert host.hits() == sum(passed.values())


def test_connect_opens_nothing_unless_a_rule_names_it(tmp_path, ports):
    with Host("one") as host, served(tmp_path, ports, [host]):
        for target in (host.address, "one:80", "127.0.0.1:22"):
            with socket.create_connection(("127.0.0.1", ports[0]), 30) as stream:
                stream.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
                               "GET /inside HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                said = b"".join(iter(lambda: stream.recv(65536), b""))
            assert said.startswith(b"HTTP/1.1 405 ") and said.count(b"HTTP/1.1 ") == 1, said
        assert host.hits() == 0


# -- connections -----------------------------------------------------------------------------


class Greeter:
    """A server that speaks first, as those of SMTP and MySQL do."""

    line = b"220 mail.example ESMTP\r\n"

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                stream, _ = self.socket.accept()
            except OSError:
                return
            # Who only looked whether somebody listens may be gone.
            with contextlib.suppress(OSError), stream:
                stream.sendall(self.line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def greeted(port):
    """Milliseconds until the greeting is there."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), 30) as stream:
        got = stream.recv(64, socket.MSG_WAITALL)
    assert got == Greeter.line, got
    return (time.perf_counter() - began) * 1000


def test_a_greeting_is_at_most_5_ms_later_than_without_a_proxy(tmp_path, ports):
    """The median of many, turn by turn. A machine that does something else gets several rounds:
    who waits for its client first is late in all of them."""
    with Greeter() as server:
        (tmp_path / "proxy.yaml").write_text(f"""
admin: 127.0.0.1:{ports[1]}
access_log: "off"
listeners: [{{name: mail, bind: "127.0.0.1:{ports[0]}", protocol: tcp}}]
routes: [{{listeners: [mail], rules: [{{to: mail}}]}}]
backends: [{{name: mail, protocol: tcp, endpoints: "127.0.0.1:{server.port}"}}]
""")
        with Proxy("-c", tmp_path / "proxy.yaml", ready=ports[0]):
            def later():
                pairs = [(greeted(server.port), greeted(ports[0])) for _ in range(40)]
                direct, through = (statistics.median(column) for column in zip(*pairs))
                print(f"greeted after {direct:.2f} ms, through the proxy after {through:.2f} ms")
                return through - direct <= 5

            until("it is no more than 5 ms later", later)


class Asking:
    """One client that asks again and again by its server's name, over a connection that it keeps
    or over a new one each time, and what it saw go wrong."""

    def __init__(self, port, name, context, kept):
        self.port, self.name, self.context, self.kept = port, name, context, kept
        self.done, self.wrong, self.over = 0, [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def connect(self):
        raw = socket.create_connection(("127.0.0.1", self.port), 30)
        connection = http.client.HTTPConnection(self.name)
        connection.sock = self.context.wrap_socket(raw, server_hostname=self.name)
        return connection

    def run(self):
        try:
            connection = self.connect()
            while not self.over.is_set():
                if not self.kept:
                    connection.close()
                    connection = self.connect()
                connection.request("GET", "/")
                answer = connection.getresponse()
                assert answer.read() == self.name.encode(), answer.status
                self.done += 1
            connection.close()
        except (OSError, AssertionError, http.client.HTTPException) as error:
            self.wrong.append(f"{self.name}, kept {self.kept}: {error!r}")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(60)


NAMES = ("one.example", "two.example")


def pair(folder, name):
    """A certificate of its own authority for a name."""
    folder.mkdir()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                    "-addext", f"subjectAltName=DNS:{name}", "-keyout", f"{folder}/key",
                    "-out", f"{folder}/pem"], check=True, capture_output=True)
    return folder


def shown(port, name):
    """The certificate that a new client of this name is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 30) as raw:
        with context.wrap_socket(raw, server_hostname=name) as stream:
            return ssl.DER_cert_to_PEM_cert(stream.getpeercert(True))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3],
                         ids=["1.2", "1.3"])
def test_a_client_that_comes_back_resumes_whichever_worker_it_meets(tmp_path, ports, version):
    name = NAMES[0]
    folder = pair(tmp_path / name, name)
    (tmp_path / "proxy.yaml").write_text(f"""
admin: 127.0.0.1:{ports[1]}
access_log: "off"
listeners:
  - {{name: one, bind: "127.0.0.1:{ports[0]}", tls: [{{certificate: {name}/pem, key: {name}/key}}]}}
routes: [{{rules: [{{answer: {{body: hello}}}}]}}]
""")
    context = ssl.create_default_context(cafile=folder / "pem")
    context.minimum_version = context.maximum_version = version

    def asked(session):
        with socket.create_connection(("127.0.0.1", ports[0]), 30) as raw:
            with context.wrap_socket(raw, server_hostname=name, session=session) as stream:
                stream.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                said = b""
                while not said.endswith(b"hello"):
                    more = stream.recv(4096)
                    assert more, said
                    said += more
                assert stream.version() == f"TLSv{version.name[4:].replace('_', '.')}"
                return stream.session, stream.session_reused

    with Proxy("-c", tmp_path / "proxy.yaml", ready=ports[0]):
        session, reused = asked(None)
        assert not reused
        for _ in range(20):
            session, reused = asked(session)
            assert reused


def test_a_names_new_certificate_disturbs_no_request_of_its_name_or_another(tmp_path, ports):
    """Requests flow by both names, on kept and on new connections, while one name's certificate is
    replaced again and again."""
    first = {name: pair(tmp_path / name, name) for name in NAMES}
    context = ssl.create_default_context()
    for folder in first.values():
        context.load_verify_locations(folder / "pem")
    tls = ", ".join(f'{{host: "{n}", certificate: {n}/pem, key: {n}/key}}' for n in NAMES)
    rules = "\n".join(f"  - {{name: {n}, hosts: [{n}], rules: [{{answer: {{body: {n}}}}}]}}"
                      for n in NAMES)
    (tmp_path / "proxy.yaml").write_text(f"""
admin: 127.0.0.1:{ports[1]}
access_log: "off"
listeners: [{{name: one, bind: "127.0.0.1:{ports[0]}", tls: [{tls}]}}]
routes:
{rules}
""")
    other = (first[NAMES[1]] / "pem").read_text()
    with Proxy("-c", tmp_path / "proxy.yaml", ready=ports[0]):
        clients = [Asking(ports[0], name, context, kept) for name in NAMES for kept in (True, False)]
        for client in clients:
            client.__enter__()
        for turn in range(3):
            new = pair(tmp_path / f"new-{turn}", NAMES[0])
            # Whoever comes may be shown it from now on.
            context.load_verify_locations(new / "pem")
            for part in ("key", "pem"):
                (first[NAMES[0]] / part).write_bytes((new / part).read_bytes())
            pem = (new / "pem").read_text()
            until("it is shown", lambda: shown(ports[0], NAMES[0]).strip() == pem.strip())
            assert shown(ports[0], NAMES[1]).strip() == other.strip()
            before = [client.done for client in clients]
            until("all go on", lambda: all(
                c.wrong or c.done > b + 5 for c, b in zip(clients, before)))
        for client in clients:
            client.__exit__()
        assert not [wrong for client in clients for wrong in client.wrong]
        assert all(client.done > 20 for client in clients)
