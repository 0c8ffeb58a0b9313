# SPDX-License-Identifier: Apache-2.0
"""F20: the name server of an upstream's name says SERVFAIL, nothing, or that there is no address.
The addresses from before stay in use, no request fails, and a metric counts. Needs root: it runs
where it may say which name server the machine has. Ten minutes in full; `run.py --minutes 1` makes
it shorter."""

import collections
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time

from drill import Load, Origin, alone, free_port

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from mesh import until  # noqa: E402
from standalone import Proxy  # noqa: E402

SERVFAIL, NXDOMAIN = 2, 3


class NameServer:
    """Answers every question for A with `address`, or as `mode` says, each after `delay` seconds."""

    def __init__(self, address, delay=0, ttl=1):
        self.address, self.mode, self.delay, self.ttl = address, "well", delay, ttl
        self.asked, self.by_name = 0, collections.Counter()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            question, client = self.socket.recvfrom(4096)
            self.asked += 1
            end = question.index(b"\0", 12) + 5
            kind = struct.unpack("!H", question[end - 4:end - 2])[0]
            self.by_name[self.name(question), kind] += 1
            time.sleep(self.delay)
            well = self.mode == "well" and kind == 1
            code = {"servfail": SERVFAIL, "nxdomain": NXDOMAIN}.get(self.mode, 0)
            answer = question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, int(well), 0, 0)
            answer += question[12:end]
            if well:
                answer += b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, self.ttl, 4)
                answer += socket.inet_aton(self.address)
            if self.mode != "silent":
                self.socket.sendto(answer, client)

    @staticmethod
    def name(question):
        """The name that is asked for, as people write it."""
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1:at + 1 + length].decode().lower())
            at += 1 + length
        return ".".join(labels)

    def questions(self, name):
        """Questions for its IPv4 addresses."""
        return self.by_name[name, 1]


def run(whole, folder):
    return alone(__file__, whole, folder, 300 + 60 * minutes())


def minutes():
    return float(os.environ.get("FAULT_MINUTES", 10))


def config(path, port, admin, origin):
    import test_envoy_bootstrap as envoy
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "named"}}]
    named = envoy.cluster("named", origin.port, type="STRICT_DNS", dns_refresh_rate="0.5s",
                          dns_lookup_family="V4_ONLY")
    endpoints = named["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoints[0]["endpoint"]["address"] = envoy.address(origin.port, "origin.example")
    listener = envoy.listener("web", port, envoy.manager([envoy.host(routes)]))
    return envoy.bootstrap(path, [listener], [named], admin)


def unresolved(admin):
    import requests
    text = requests.get(f"http://127.0.0.1:{admin}/stats/prometheus", timeout=20).text
    lines = [line for line in text.splitlines() if line.startswith("weft_names_unresolved_total")]
    return int(float(lines[0].split()[1]))


def inside(whole, folder):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolv = folder / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", resolv, "/etc/resolv.conf"], check=True)
    origin, port, admin = Origin(), free_port(), free_port()
    names = NameServer(origin.address)
    config(folder / "envoy.json", port, admin, origin)
    seconds, each, counted = (15 * minutes() if whole else 3), [], {}
    with Proxy("--envoy", folder / "envoy.json", ready=port):
        until("the name is found", lambda: Load(port, 20, 0.1).run().count(200) == 2)
        for mode in ("servfail", "silent", "empty", "nxdomain"):
            names.mode = mode
            asked = names.asked
            # From the first question of this mode on: those before were answered otherwise.
            until(f"{mode}: it is asked", lambda: names.asked > asked)
            before = unresolved(admin)
            load = Load(port, 100, seconds).run()
            each.append(load)
            assert load.count(200) == len(load.done), f"{mode}: {load.others(200)}"
            until(f"{mode} is counted", lambda: unresolved(admin) > before)
            counted[mode] = unresolved(admin) - before
        # A new address is followed once there is one.
        moved = Origin(port=origin.port)
        names.address, names.mode = moved.address, "well"
        until("the new address is in use",
              lambda: Load(port, 20, 0.2).run() and moved.hits() > 0)
    total = sum(len(load.done) for load in each)
    for server in (origin, moved):
        server.kill()
    print(f"F20 name server out: 0 of {total} failed in {4 * seconds:.0f} s of SERVFAIL, silence, no "
          f"address and NXDOMAIN; {sum(counted.values())} lookups counted as failed; then a new "
          "address was followed")


if __name__ == "__main__":
    inside(sys.argv[1] == "whole", pathlib.Path(sys.argv[2]))
