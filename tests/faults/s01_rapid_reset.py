# SPDX-License-Identifier: Apache-2.0
"""A client that opens 20,000 HTTP/2 streams on one connection and resets each at once: few of them
reach the server, and the connection is closed within 1,000 frames."""

import contextlib
import select
import socket

from drill import Figure, Origin, gateway

BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HEAD = b"\x82\x86\x84\x41\x05drill"
COUNT, STEP = 20_000, 50


def pair(number):
    """HEADERS and RST_STREAM (CANCEL) of a stream."""
    stream = (2 * number + 1).to_bytes(4, "big")
    head = len(HEAD).to_bytes(3, "big") + b"\x01\x05" + stream + HEAD
    return head + b"\x00\x00\x04\x03\x00" + stream + b"\x00\x00\x00\x08"


def attack(port, pause):
    """Frames that were sent until the other end had enough, and what it said."""
    sent, data = 0, b""
    with socket.create_connection(("127.0.0.1", port), 60) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(BEGIN)
        with contextlib.suppress(ConnectionError):
            for number in range(0, COUNT, STEP):
                stream.sendall(b"".join(pair(n) for n in range(number, number + STEP)))
                sent += 2 * STEP
                if select.select([stream], [], [], pause)[0]:
                    some = stream.recv(65536)
                    data += some
                    if not some or said(data):
                        break
        with contextlib.suppress(OSError):
            while some := stream.recv(65536):
                data += some
    return sent, said(data) or "closed without a word"


def said(data):
    """What a GOAWAY among these frames says."""
    place = 0
    while place + 17 <= len(data):
        if data[place + 3] == 7:
            code = int.from_bytes(data[place + 13:place + 17], "big")
            return "GOAWAY, enhance your calm" if code == 11 else f"GOAWAY {code}"
        place += 9 + int.from_bytes(data[place:place + 3], "big")
    return None


def run(whole, folder):
    origin = Origin()
    with gateway(folder, [origin]) as (port, _):
        # All at once, and slowly enough to see when it ends.
        before = origin.hits()
        _, last = attack(port, 0)
        hits = origin.hits() - before
        # It is waited for only while the other end says nothing.
        sent, slow = attack(port, 0.02 if whole else 0.5)
        more = origin.hits() - before - hits
    text = (f"S1 rapid reset: {COUNT} streams, {hits} requests reached the server ({last}); with "
            f"pauses closed after {sent} frames ({slow}), {more} reached the server")
    assert hits <= 100 and more <= 100 and sent <= 1_000, text
    return Figure(text, f"{max(hits, more)}, closed within {sent} frames")
