#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plays the cases of http11probe.txt at HOST:PORT and prints a ledger and the figure.

    http11probe.py 127.0.0.1:8080 [--ledger FILE]

Behind a proxy under test should be `echo()` of this file (`--origin PORT` runs it).
"""

import argparse
import concurrent.futures
import pathlib
import re
import socket
import sys
import threading

TABLE = pathlib.Path(__file__).with_name("http11probe.txt")
# Seconds without an answer, after which there is none; a proxy that is patient gives up after ten.
FIRST = 6.0
# Seconds after which nothing more comes.
TIMEOUT = 2.0


def repeated(text):
    """`{a*9}` to nine times a; what is inside is escaped like the rest."""
    return re.sub(r"\{([^{}]*?)\*(\d+)\}", lambda m: m[1] * int(m[2]), text, flags=re.S)


def unescaped(text):
    table = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\"}

    def one(m):
        return chr(int(m[1][1:], 16)) if m[1][0] == "x" else table[m[1]]

    return re.sub(r"\\(x[0-9a-f]{2}|[rnt\\])", one, text)


def cases(host):
    for line in TABLE.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, passes, warns, text = line.split(" | ", 3) if line.count(" | ") > 2 else (
            *line.rstrip(" |").split(" | "), "")
        data = unescaped(repeated(text)).replace("$HOST", host).encode("latin-1")
        yield name, passes.split(" ") if "echo=" not in passes else [passes], warns.split(), data


class Answer:
    """The first answer on a connection, and what became of that."""

    def __init__(self, raw, closed):
        self.closed = closed
        self.count = len(re.findall(rb"(?:^|\n|\r\n|[^\n])HTTP/1\.[01] \d{3}", raw))
        finals = raw
        while finals.startswith(b"HTTP/1.1 1") and not finals.startswith(b"HTTP/1.1 101"):
            finals = finals.partition(b"\r\n\r\n")[2]
        head, _, self.rest = finals.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        first = re.match(rb"HTTP/1\.[01] (\d{3})", raw)
        self.status = int(found[1]) if found else None
        self.first = int(first[1]) if first else None
        lines = [l.split(b":", 1) for l in head.split(b"\r\n")[1:] if b":" in l]
        self.headers = {n.strip().lower().decode(): v.strip().decode("latin-1") for n, v in lines}

    def body(self):
        if "transfer-encoding" not in self.headers:
            length = int(self.headers.get("content-length", len(self.rest)))
            return self.rest[:length].decode("latin-1")
        rest, out = self.rest, b""
        while True:
            line, _, rest = rest.partition(b"\r\n")
            size = int(line.split(b";")[0] or b"0", 16)
            if size == 0:
                return out.decode("latin-1")
            out, rest = out + rest[:size], rest[size + 2:]


def play(at, data):
    with socket.create_connection(at, timeout=FIRST) as s:
        try:
            s.sendall(data)
        except OSError:
            pass  # refused before it was written
        raw, closed = b"", False
        try:
            while True:
                more = s.recv(65536)
                if not more:
                    closed = True
                    break
                raw += more
                s.settimeout(TIMEOUT)
                if len(raw) > 1 << 20:
                    break
        except ConnectionError:
            closed = True
        except TimeoutError:
            pass
        return Answer(raw, closed)


def fits(token, answer):
    status = answer.status
    if token == "close":
        return status is None and answer.closed
    if token == "silent":
        return status is None and not answer.closed
    if token == "-":
        return False
    code, *extras = token.split("+")
    if status is None:
        return False
    negated, code = code.startswith("!"), code.lstrip("!")
    seen = answer.first if code == "1xx" else status
    matches = str(seen) == code or (code.endswith("xx") and str(seen)[0] == code[0])
    if matches == negated:
        return False
    for extra in extras:
        what, _, value = extra.partition("=")
        ok = {
            "echo": lambda: answer.body() == value,
            "has": lambda: value in answer.headers,
            "lacks": lambda: value not in answer.headers,
            "closed": lambda: answer.closed,
            "one": lambda: answer.count == 1,
        }[what]()
        if not ok:
            return False
    return True


def judge(at, host, case):
    """On a busy machine two seconds may be too few: what does not pass because nothing more came is
    played again. An answer is a verdict, and so is an end."""
    name, passes, warns, data = case
    for _ in range(3):
        answer = play(at, data)
        passed = any(fits(t, answer) for t in passes)
        if passed or answer.closed or answer.count > 1:
            break
    if passed:
        verdict = "pass"
    elif any(fits(t, answer) for t in warns):
        verdict = "warn"
    else:
        verdict = "fail"
    shown = str(answer.status) if answer.status else ("closed" if answer.closed else "silent")
    return name, verdict, shown + (" closed" if answer.closed and answer.status else "")


def run(at, host):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda c: judge(at, host, c), cases(host)))


def figure(results):
    count = {v: sum(1 for _, x, _ in results if x == v) for v in ("pass", "warn", "fail")}
    count["smuggling"] = sum(1 for n, v, _ in results if v == "fail" and n.startswith("SMUG"))
    return count


def echo(listener):
    """An origin that answers every request with its body; HEAD and OPTIONS as a server does."""

    def serve(conn):
        with conn, conn.makefile("rb") as file:
            while line := file.readline():
                method = line.split(b" ")[0]
                fields = {}
                while (field := file.readline()) not in (b"\r\n", b""):
                    n, _, v = field.partition(b":")
                    fields[n.strip().lower()] = v.strip()
                body = b""
                if b"transfer-encoding" in fields:
                    while size := int(file.readline().split(b";")[0] or b"0", 16):
                        body += file.read(size)
                        file.readline()
                    while file.readline() not in (b"\r\n", b""):
                        pass
                else:
                    body = file.read(int(fields.get(b"content-length", 0)))
                body = body or b"OK"
                allow = b"allow: GET, HEAD, POST, OPTIONS\r\n" if method == b"OPTIONS" else b""
                head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n%scontent-length: %d\r\n\r\n"
                conn.sendall(head % (allow, len(body)) + (b"" if method == b"HEAD" else body))

    def safely(conn):
        try:
            serve(conn)
        except (OSError, ValueError):
            pass  # whoever sent that is gone, or sent nonsense

    while True:
        try:
            conn, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=safely, args=(conn,), daemon=True).start()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--ledger", type=pathlib.Path)
    parser.add_argument("--origin", action="store_true", help="be the origin at the address")
    given = parser.parse_args()
    host, _, port = given.address.rpartition(":")
    if given.origin:
        echo(socket.create_server((host, int(port)), backlog=512))
        return 0
    results = run((host, int(port)), given.address)
    lines = [f"{name:45} {verdict:5} {shown}" for name, verdict, shown in results]
    print("\n".join(lines))
    if given.ledger:
        given.ledger.write_text("\n".join(lines) + "\n")
    count = figure(results)
    print("{pass} pass, {warn} warn, {fail} fail, of these {smuggling} of smuggling".format(**count)
          + f" (of {len(results)})")
    return 0 if not count["smuggling"] else 1


if __name__ == "__main__":
    sys.exit(main())
