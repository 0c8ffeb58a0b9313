# SPDX-License-Identifier: Apache-2.0
"""Public suites through a gateway, by the scripts of tests/suites/, with the bar that each has to
reach; and our own output read again by a parser that is none of ours."""

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import sys
import threading

import h11
import pytest

from edge import gateway
from mesh import BIN, PEERS, free_port, until
from standalone import Origin, Proxy, listens

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "suites"))
import autobahn  # noqa: E402
import http11probe as probe  # noqa: E402
import regressions  # noqa: E402


def server(serve):
    """A listener with a thread that serves it; its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    return listener, listener.getsockname()[1]


def test_http11probe(tmp_path):
    listener, origin = server(probe.echo)
    with listener, gateway(tmp_path, origin) as (port, _):
        results = probe.run(("127.0.0.1", port), f"127.0.0.1:{port}")
    ledger = "\n".join(f"{name:45} {verdict:5} {shown}" for name, verdict, shown in results) + "\n"
    count = probe.figure(results)
    print(ledger, count)
    assert len(results) >= 125
    assert count["smuggling"] == 0, ledger
    assert count["pass"] >= 150, ledger
    figure = "# {pass} pass, {warn} warn, {fail} fail, of these {smuggling} of smuggling\n"
    ledger = figure.format(**count) + ledger
    committed = HERE / "suites/http11probe.ledger"
    if os.environ.get("UPDATE_GOLDEN"):
        committed.write_text(ledger)
    # What is told may differ in how a connection ends, never in a verdict.
    verdicts = [line.split()[:2] for line in committed.read_text().splitlines()]
    assert [line.split()[:2] for line in ledger.splitlines()] == verdicts, "UPDATE_GOLDEN=1 writes it"


WORDS = ["a", "b/c", "d%20e", "caf%C3%A9", "x;y=1", "-_.~", "1", "q", "%2F", "("]
NAMES = ["accept", "x-a", "X-Long-Name", "cookie", "user-agent", "range", "If-None-Match", "x.y!z"]
VALUES = ["", "1", "a, b", "text/html;q=0.9", "\"quoted\"", "a\tb", "\xff\xe9", "  padded  ", "=" * 500]


def asked(rng):
    """A request as a client may write it: its bytes, and what a server must understand."""
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "M-SEARCH"])
    path = "/" + "/".join(rng.sample(WORDS, rng.randint(0, 4)))
    if rng.random() < 0.4:
        path += "?" + rng.choice(["a=b&c", "x=%0d%0a", "?/;=", "", "//..//"])
    headers = [(rng.choice(NAMES), rng.choice(VALUES)) for _ in range(rng.randint(0, 8))]
    body = bytes(rng.randbytes(rng.choice([0, 1, 5, 100, 5000])))
    lines = [f"{n}:{rng.choice(['', ' ', '  '])}{v}" for n, v in headers]
    framed = rng.choice(["none", "length", "chunked"]) if body else "none"
    data = body
    if framed == "length":
        lines.append(f"Content-Length: {len(body)}")
    elif framed == "chunked":
        lines.append("Transfer-Encoding: chunked")
        data, rest = b"", body
        while rest:
            n = rng.randint(1, len(rest))
            data += b"%x%s\r\n%s\r\n" % (n, rng.choice([b"", b";x=1", b";y"]), rest[:n])
            rest = rest[n:]
        data += b"0\r\n\r\n"
    else:
        data = body = b""
    rng.shuffle(lines)
    # Lines of Cookie are joined for servers of HTTP/1.1 (RFC 9113 §8.2.3).
    written = [line.partition(":") for line in lines]
    cookies = [v.strip() for n, _, v in written if n.lower() == "cookie"]
    if cookies:
        headers = [h for h in headers if h[0] != "cookie"] + [("cookie", "; ".join(cookies))]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a.example", *lines, "", ""])
    expected = [(n.lower(), v.strip()) for n, v in headers]
    return head.encode("latin-1") + data, (method, path, expected, body)


def recorder(seen):
    """An origin that reads with h11, and answers with what its request's number asks for."""

    def one(conn):
        with conn:
            h = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
            request, body = None, b""
            while True:
                event = h.next_event()
                if event is h11.NEED_DATA:
                    h.receive_data(conn.recv(65536))
                elif isinstance(event, h11.Request):
                    request, body = event, b""
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    seen.append((request, body))
                    reply = h11.Response(status_code=200, headers=[("x-n", str(len(seen)))])
                    conn.sendall(h.send(reply) + h.send(h11.Data(data=body)) + h.send(event))
                    if h.our_state is h11.MUST_CLOSE:
                        return
                    h.start_next_cycle()
                else:
                    return

    def safely(conn):
        try:
            one(conn)
        except (OSError, h11.RemoteProtocolError) as error:
            seen.append((repr(error), b""))

    def serve(listener):
        while True:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=safely, args=(conn,), daemon=True).start()

    return serve


ADDED = {"x-request-id", "traceparent", "x-forwarded-for", "x-forwarded-proto", "host",
         "content-length", "transfer-encoding"}


def test_reg_18_a_second_parser_reads_what_was_asked(tmp_path):
    """Ours between a writer and a reader that share nothing with it: both directions."""
    seen = []
    rng = random.Random(18)
    listener, origin = server(recorder(seen))
    with listener, gateway(tmp_path, origin) as (port, _):
        seen.clear()
        with socket.create_connection(("127.0.0.1", port), 60) as s:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = h11.Connection(h11.CLIENT)
            for n in range(2000):
                data, (method, path, expected, body) = asked(rng)
                # h11 reads the answer; what is asked is written by hand.
                client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
                client.send(h11.EndOfMessage())
                cut = rng.randint(1, len(data))
                s.sendall(data[:cut])
                s.sendall(data[cut:])
                status, echoed, events = None, b"", []
                while True:
                    event = client.next_event()
                    if event is h11.NEED_DATA:
                        client.receive_data(s.recv(65536))
                        continue
                    events.append(type(event).__name__)
                    if isinstance(event, h11.Response):
                        status, fields = event.status_code, dict(event.headers)
                    elif isinstance(event, h11.Data):
                        echoed += bytes(event.data)
                    elif isinstance(event, h11.EndOfMessage):
                        break
                assert status == 200, (n, data[:300], status, echoed)
                request, got = seen[-1]
                assert fields[b"x-n"] == str(len(seen)).encode()
                assert (got, echoed) == (body, body), (n, data[:300])
                assert request.method.decode() == method
                assert request.target.decode() == path, (n, data[:300])
                told = [(k.decode(), v.decode("latin-1")) for k, v in request.headers]
                kept = sorted(p for p in told if p[0] not in ADDED)
                assert kept == sorted(expected), (n, data[:300])
                assert dict(told)["host"] == "a.example"
                client.start_next_cycle()
    assert len(seen) == 2000


@contextlib.contextmanager
def websocket_echo():
    """A server of Autobahn's own library, which passes all of its cases."""
    port = free_port()
    command = [PEERS / "autobahn/wstest", "-m", "testeeserver", "-w", f"ws://127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        until("the echo server listens", lambda: listens(port))
        yield port
    finally:
        process.kill()
        process.wait()


# Two dozen clients take all there is of the processors, and a connection must end within a second.
@pytest.mark.alone
def test_autobahn_through_a_gateway_and_over_http2_between_two(tmp_path):
    """`h1` is an HTTP/1.1 upgrade on both sides; what comes by `h2` crosses a second gateway as an
    extended CONNECT (RFC 8441). What the server does without weft is what counts."""
    one, two, inner = free_port(), free_port(), free_port()
    with websocket_echo() as echo:
        (tmp_path / "proxy.yaml").write_text(f"""
access_log: "off"
listeners:
  - {{name: one, bind: "127.0.0.1:{one}"}}
  - {{name: two, bind: "127.0.0.1:{two}"}}
  - {{name: inner, bind: "127.0.0.1:{inner}", protocol: http2}}
routes:
  - name: echo
    listeners: [one, inner]
    # The server wants its own port in Host.
    rules: [{{to: echo, rewrite: {{host: "127.0.0.1:{echo}"}}}}]
  - {{name: across, listeners: [two], rules: [{{to: inner}}]}}
backends:
  - {{name: echo, endpoints: ["127.0.0.1:{echo}"]}}
  - {{name: inner, protocol: http2, endpoints: ["127.0.0.1:{inner}"]}}
""")
        with Proxy("-c", tmp_path / "proxy.yaml", ready=one):
            servers = {"direct": echo, "h1": one, "h2": two}
            servers = {name: f"ws://127.0.0.1:{port}/" for name, port in servers.items()}
            cases = autobahn.cases(PEERS / "autobahn")
            verdicts = autobahn.run(PEERS / "autobahn", servers, cases)
            for name, url in servers.items():
                # Among so many, on a busy machine, a second is short for an end: once more, in turn.
                again = [c for c, v in verdicts[name].items() if not autobahn.passes(v)]
                if again:
                    print(f"{name}: played again: {' '.join(again)}")
                    one_by_one = autobahn.run(PEERS / "autobahn", {name: url}, again, jobs=1)
                    verdicts[name].update(one_by_one[name])
    assert len(cases) == 247
    ledger = autobahn.ledger(verdicts)
    figure = {name: sum(map(autobahn.passes, v.values())) for name, v in verdicts.items()}
    print(ledger, figure)
    assert figure == {"direct": 247, "h1": 247, "h2": 247}, ledger
    for name in ("h1", "h2"):
        differ = {case: v for case, v in verdicts[name].items()
                  if v["behavior"] != verdicts["direct"][case]["behavior"]}
        assert not differ, differ


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name, value):
    """Without indexing and Huffman's code."""
    return b"\0" + bytes([len(name)]) + name + b"\x7f" + leb(len(value) - 127) + value


def leb(n):
    return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + leb(n // 128)


HELLO = "stream 0 {\ntxsettings\nrxsettings\ntxsettings -ack\nrxframe\nrxframe\n} -run"
GET, POST = (bytes([method, 0x84, 0x86, 0x01, 4]) + b"test" for method in (0x82, 0x83))


def harm():
    """Frames of each kind of abuse, by the names that h2_abuse.vtc uses."""
    def get(n):
        return frame(1, 5, n, GET)

    def post(n):
        return frame(1, 4, n, POST)

    def bomb(name):
        entry = b"\x40" + literal(name, b"v" * 3900)[1:]
        return frame(1, 5, 1, GET + entry + b"\xbe" * 2000)

    def streams(of, times=400):
        return b"".join(of(2 * n + 1) for n in range(times))

    return {
        "rapid_reset": streams(lambda n: get(n) + frame(3, 0, n, b"\0\0\0\x08")),
        "made_by_window_of_zero": streams(lambda n: post(n) + frame(8, 0, n, bytes(4))),
        "made_by_window_overflow": streams(lambda n: post(n) + frame(8, 0, n, b"\x7f" + b"\xff" * 3)),
        "made_by_priority_length": streams(lambda n: post(n) + frame(2, 0, n, bytes(4))),
        "made_by_self_dependency": streams(
            lambda n: post(n) + frame(2, 0, n, n.to_bytes(4, "big") + b"\x10")),
        "made_by_headers_after_end": streams(lambda n: get(n) + get(n)),
        "made_by_data_after_end": streams(lambda n: get(n) + frame(0, 0, n, b"x")),
        "continuations": frame(1, 1, 1, GET) + frame(9, 0, 1, literal(b"x", b"y" * 1000)) * 20,
        "empty_continuations": frame(1, 1, 1, GET) + frame(9, 0, 1) * 200,
        "empty_data": post(1) + frame(0, 0, 1) * 200,
        "empty_headers": streams(lambda n: frame(1, 5, n)),
        "pings": frame(6, 1, 0, bytes(8)) * 300,
        "priorities": frame(2, 0, 5, b"\0\0\0\3\1") * 300,
        "unknown": frame(0xfa, 0, 0, b"grease") * 300,
        "windows": frame(8, 0, 0, b"\0\0\0\1") * 900,
        "header_bomb": bomb(b"x-bomb"),
        "cookie_bomb": bomb(b"cookie"),
        "table_size": frame(1, 5, 1, b"\x3f" + leb(1024 * 1024 - 31) + GET),
    }


@pytest.mark.parametrize("script", sorted(p.stem for p in (HERE / "suites/vtc").glob("*.vtc")))
def test_varnishtest(tmp_path, script):
    """Scripts of frames and lines, played by Varnish's own test program."""
    port, served, refused = free_port(), free_port(), free_port()
    with Origin("up") as origin:
        (tmp_path / "proxy.yaml").write_text(f"""
access_log: "off"
listeners: [{{name: web, bind: "127.0.0.1:{port}"}}]
routes:
  - {{name: all, rules: [{{path: /vtc/, to: vtc}}, {{path: /refused/, to: refused}}, {{to: up}}]}}
backends:
  - {{name: up, endpoints: ["127.0.0.1:{origin.port}"]}}
  - {{name: vtc, endpoints: ["127.0.0.1:{served}"]}}
  - {{name: refused, endpoints: ["127.0.0.1:{refused}"]}}
""")
        macros = {"weft": f"127.0.0.1:{port}", "origin": served, "refused": refused, "hello": HELLO}
        # Too long for the program's own macros.
        text = (HERE / f"suites/vtc/{script}.vtc").read_text()
        made = {name: frames.hex() for name, frames in harm().items()}
        made["streams"] = "\n".join(f"stream {n} {{\ndelay 0\n}} -run" for n in range(1, 801, 2))
        for name, value in made.items() if script == "h2_abuse" else ():
            assert f"${{{name}}}" in text
            text = text.replace(f"${{{name}}}", value)
        (tmp_path / "script.vtc").write_text(text)
        words = [word for name, value in macros.items() for word in ("-D", f"{name}={value}")]
        with Proxy("-c", tmp_path / "proxy.yaml", ready=port):
            command = [BIN / "varnishtest", "-b", "30M", "-t", "30", *words,
                       tmp_path / "script.vtc"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=90,
                                  env={**os.environ, "TMPDIR": str(tmp_path)})
    wrong = [line for line in done.stdout.splitlines() if line.startswith("----")]
    assert done.returncode == 0, (wrong, done.stdout[-3000:] + done.stderr)


def test_the_ledger_of_regressions_is_true():
    """Each case of the sources has its rows, each row its case, its guard is asked for somewhere,
    and every line and what the list names on it has a case that is shown to fail."""
    assert not regressions.faults()
    # A twin of what is not shown shows nothing.
    assert any("memory" in fault for fault in regressions.unplayed(set()))
    assert {number for number, _ in regressions.named()} <= regressions.NUMBERS
    how = [how for _, how, *_ in regressions.rows()]
    assert how.count("guard") >= 330 and how.count("library") <= 6, len(how)
    vague = ("timed out", "nothing came", "Elapsed", "called `")
    says = [row[4] for row in regressions.rows() if row[1] == "guard"]
    assert not [text for text in says if any(word in text for word in vague)]
