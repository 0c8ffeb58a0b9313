# SPDX-License-Identifier: Apache-2.0
"""F15: one packet in a hundred is lost on the way to the proxy, from it, and on its way to the
server (400 requests a second). None fails, and the 99th percentile is that of a client that asks
the server directly over the same wire. Needs root: it runs in a network namespace of its own."""

import pathlib
import subprocess
import sys

from drill import HERE, Load, Origin, alone, gateway

NFT = HERE.parent.parent / "target/peers/bin/nft"


class Direct(Load):
    """The same requests to the server itself."""

    def __init__(self, origin, *args, **kw):
        super().__init__(origin.port, *args, **kw)
        self.address = origin.address


def run(whole, folder):
    return alone(__file__, whole, folder, 180)


def inside(whole, folder):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    origin = Origin()
    with gateway(folder, [origin]) as (port, _):
        ports = f"{{ {port}, {origin.port} }}"
        rules = f"""table inet loss {{
            chain c {{
                type filter hook output priority 0;
                tcp dport {ports} numgen random mod 100 < 1 counter drop;
                tcp sport {ports} numgen random mod 100 < 1 counter drop;
            }}
        }}
"""
        # As many connections in both cases, made before: the handshake has longer pauses.
        seconds, kept = (30 if whole else 3), 60
        def measured():
            lanes = [Direct(origin, 400, seconds, connections=kept),
                     Load(port, 400, seconds, connections=kept)]
            return [lane.run() for lane in lanes]

        def is_good(direct, through):
            # A packet sent again is late by 200 ms; in the short form two of them may meet by
            # chance, and the machine may be busy with something else in one of the two.
            [bare, by] = [lane.percentile(99, 200) for lane in (direct, through)]
            return by <= (bare * 1.1 + 3 if whole else bare * 3 + 400)

        Load.run(Load(port, 100, 1))
        subprocess.run([NFT, "-f", "-"], input=rules, text=True, check=True)
        # A machine that stands still in one of the two shows nothing of weft: in the short form it
        # is measured anew. None may fail in any of them.
        for _ in range(1 if whole else 4):
            direct, through = measured()
            if is_good(direct, through) or through.count(200) < len(through.done):
                break
        listed = subprocess.run([NFT, "list", "table", "inet", "loss"], capture_output=True,
                                text=True, check=True).stdout
    lost = sum(int(part.split()[0]) for part in listed.split("packets ")[1:])
    total = len(through.done)
    [bare, by] = [lane.percentile(99, 200) for lane in (direct, through)]
    text = (f"F15 1 % loss: {total - through.count(200)} of {total} failed, p99 {by:.0f} ms, "
            f"direct {bare:.0f} ms; {lost} packets lost")
    assert lost > 10, text
    assert through.count(200) == total, f"{text}: {through.others(200)}"
    assert is_good(direct, through), text
    print(text)


if __name__ == "__main__":
    inside(sys.argv[1] == "whole", pathlib.Path(sys.argv[2]))
