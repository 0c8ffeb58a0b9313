#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The registry's figures: DNS answers per second of one core beside unbound's, how soon watchers
hear of a check, CPU and memory per instance.

    bench.py [dns|watch|size|all] --weft PATH --peers DIR [--dir DIR] [--seconds N] [--out FILE]

The server has one core, who asks has the others. Prints a Markdown table of what was measured.
"""

import argparse
import asyncio
import http.client
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

CORES = sorted(os.sched_getaffinity(0))
SERVER, CLIENTS = {CORES[0]}, set(CORES[1:]) or {CORES[0]}
TICK = os.sysconf("SC_CLK_TCK")
# Instances that come and go before anything is counted.
WARM = 100


class Weft:
    """A `weft server` on free ports, pinned to one core."""

    def __init__(self, program, folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen(
            [program, "server", "--ports", "auto", "--data", str(folder / "data"), "--announce"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            preexec_fn=lambda: os.sched_setaffinity(0, SERVER))
        for raw in self.process.stdout:
            line = raw.decode(errors="replace")
            if line.startswith("{") and '"dns"' in line:
                doors = json.loads(line)
                break
        else:
            raise SystemExit(f"weft server did not start; see {folder / 'log'}")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        self.consul, self.dns = (
            int(str(doors[door]).rsplit(":", 1)[-1]) for door in ("consul", "dns"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.log.close()

    def put(self, path, body, link):
        link.request("PUT", path, json.dumps(body))
        reply = link.getresponse()
        text = reply.read()
        if reply.status != 200:
            raise SystemExit(f"{path}: {reply.status} {text[:200]}")

    def link(self):
        return http.client.HTTPConnection("127.0.0.1", self.consul)

    def register(self, numbers, services):
        """Instances of a hundred nodes with a check each, as who writes for others does."""
        def one(n, link):
            self.put("/v1/catalog/register", {
                "Node": f"n{n % 100}", "Address": f"10.9.0.{n % 100}",
                "Service": {"ID": f"i{n}", "Service": f"s{n % services}", "Port": 8080,
                            "Address": address(n)},
                "Check": {"CheckID": f"c{n}", "Name": "alive", "ServiceID": f"i{n}",
                          "Status": "passing"}}, link)

        self.over_eight(numbers, one)

    def register_own(self, numbers, services):
        """Instances with a TTL check each, as their own programs do: its time is counted."""
        def one(n, link):
            self.put("/v1/agent/service/register", {
                "ID": f"i{n}", "Name": f"s{n % services}", "Port": 8080, "Address": address(n),
                "Check": {"CheckID": f"c{n}", "Name": "alive", "TTL": "24h",
                          "Status": "passing"}}, link)

        self.over_eight(numbers, one)

    def deregister_own(self, numbers):
        self.over_eight(numbers, lambda n, link: self.put(
            f"/v1/agent/service/deregister/i{n}", None, link))

    def over_eight(self, numbers, one):
        """Does one thing for each number, over eight connections."""
        numbers, failed = list(numbers), []

        def some(part):
            link = self.link()
            try:
                for n in part:
                    one(n, link)
            except (OSError, SystemExit, http.client.HTTPException) as e:
                failed.append(e)
            link.close()

        threads = [threading.Thread(target=some, args=(numbers[k::8],)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise SystemExit(f"not all was registered: {failed[0]}")


def address(n):
    return f"10.{1 + (n >> 16)}.{(n >> 8) & 255}.{n & 255}"


def cpu(pid):
    """User and system seconds of a process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def pss(pid):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) * 1024


# -- DNS ---------------------------------------------------------------------------------------

def unbound(peers, folder, names, addresses):
    """unbound with the same names as local data, one thread, pinned to the same core."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [f'local-data: "{name}. 0 IN A {address}"'
            for name in names for address in addresses(name)]
    config = folder / "unbound.conf"
    config.write_text("\n".join([
        "server:", 'chroot: ""', 'username: ""', f'directory: "{folder}"', 'pidfile: ""',
        "interface: 127.0.0.1@5399", "num-threads: 1", "use-syslog: no", "do-daemonize: no",
        "minimal-responses: yes", "rrset-roundrobin: yes", 'module-config: "iterator"',
        'local-zone: "consul." static', *data, "remote-control:", "control-enable: no", ""]))
    return subprocess.Popen([str(peers / "bin/unbound"), "-c", str(config), "-d"],
                            stderr=open(folder / "log", "wb"),
                            preexec_fn=lambda: os.sched_setaffinity(0, SERVER))


def dnsperf(peers, port, questions, seconds):
    done = subprocess.run(
        [str(peers / "bin/dnsperf"), "-s", "127.0.0.1", "-p", str(port), "-d", str(questions),
         "-l", str(seconds), "-c", "8", "-T", "1", "-q", "256", "-O", "suppress=timeouts"],
        capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, CLIENTS))
    completed = int(re.search(r"Queries completed:\s+(\d+)", done.stdout)[1])
    rate = float(re.search(r"Queries per second:\s+([\d.]+)", done.stdout)[1])
    lost = int(re.search(r"Queries lost:\s+(\d+)", done.stdout)[1])
    codes = re.search(r"Response codes:\s+(.*)", done.stdout)[1]
    return completed, rate, lost, codes


def bench_dns(args):
    folder = args.dir / "dns"
    names = [f"s{n}.service.consul" for n in range(1000)]
    questions = folder / "questions"
    rows = []
    with Weft(args.weft, folder / "weft") as weft:
        weft.register(range(10_000), 1000)
        folder.mkdir(parents=True, exist_ok=True)
        questions.write_text("".join(f"{name} A\n" for name in names))
        srv = folder / "srv"
        srv.write_text("".join(f"{name} SRV\n" for name in names))
        number = {name: int(name[1:].split(".")[0]) for name in names}

        def addresses(name):
            for n in range(number[name], 10_000, 1000):
                yield f"10.{1 + (n >> 16)}.{(n >> 8) & 255}.{n & 255}"

        other = unbound(args.peers, folder / "unbound", names, addresses)
        time.sleep(2)
        try:
            plans = [("unbound, A", other.pid, 5399, questions),
                     ("weft, A", weft.process.pid, weft.dns, questions),
                     ("weft, SRV", weft.process.pid, weft.dns, srv)]
            got = {name: [] for name, *_ in plans}
            for _ in range(args.rounds):
                for name, pid, port, file in plans:
                    before = cpu(pid)
                    completed, rate, lost, codes = dnsperf(args.peers, port, file, args.seconds)
                    used = cpu(pid) - before
                    if "NOERROR" not in codes or "(100.00%)" not in codes:
                        raise SystemExit(f"{name}: {codes}")
                    got[name].append((rate, completed / max(used, 1e-9), lost))
        finally:
            other.terminate()
            other.wait()
    for name, rounds in got.items():
        rate, core, lost = (statistics.median(r[k] for r in rounds) for k in range(3))
        rows.append((f"DNS, {name}", f"{rate:,.0f} answers/s", f"{core:,.0f} per core second",
                     f"{1e6 / core:.2f} us each, {lost:.0f} lost"))
    ratio = statistics.median(r[1] for r in got["weft, A"]) / statistics.median(
        r[1] for r in got["unbound, A"])
    rows.append(("DNS, weft of unbound (A, per core second)", f"{ratio:.2f}", "bar 0.7", ""))
    return rows


# -- watchers ----------------------------------------------------------------------------------

class Watcher:
    """One blocking query, asked again and again over one connection."""

    def __init__(self, port, service):
        self.port, self.service, self.index, self.woken = port, service, 1, 0
        self.at = 0.0

    async def run(self, ready):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        first = True
        while True:
            wait = "" if first else f"?index={self.index}&wait=10m"
            writer.write(f"GET /v1/health/service/{self.service}{wait} HTTP/1.1\r\n"
                         "Host: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            self.at = time.perf_counter()
            low = head.lower()
            length = int(re.search(rb"content-length: (\d+)", low)[1])
            await reader.readexactly(length)
            self.index = int(re.search(rb"x-consul-index: (\d+)", low)[1])
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{self.service}: {head[:200]!r}")
            if first:
                first = False
                ready.release()
            else:
                self.woken += 1


async def flips(weft, own, others, times):
    ready = asyncio.Semaphore(0)
    watchers = [Watcher(weft.consul, "s0") for _ in range(own)]
    rest = [Watcher(weft.consul, f"s{1 + n % 999}") for n in range(others)]
    tasks = []
    for watcher in watchers + rest:
        tasks.append(asyncio.create_task(watcher.run(ready)))
        await ready.acquire()
    await asyncio.sleep(1)
    link = weft.link()
    took = []
    for n in range(times):
        status = "critical" if n % 2 == 0 else "passing"
        body = {"Node": "n0", "Address": "10.9.0.0", "SkipNodeUpdate": True,
                "Check": {"CheckID": "c0", "Name": "alive", "ServiceID": "i0", "Status": status}}
        began = time.perf_counter()
        await asyncio.get_running_loop().run_in_executor(
            None, weft.put, "/v1/catalog/register", body, link)
        while any(w.woken <= n for w in watchers):
            await asyncio.sleep(0.0005)
            if time.perf_counter() - began > 20:
                raise SystemExit(f"flip {n}: not all watchers were answered")
        took.append(max(w.at for w in watchers) - began)
        await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    return took, sum(w.woken for w in rest)


def bench_watch(args):
    with Weft(args.weft, args.dir / "watch") as weft:
        weft.register(range(10_000), 1000)
        os.sched_setaffinity(0, CLIENTS)
        before = cpu(weft.process.pid)
        took, others = asyncio.run(flips(weft, 100, 900, 200))
        used = (cpu(weft.process.pid) - before) / len(took)
    took.sort()
    p99, p50 = took[int(len(took) * 0.99) - 1], took[len(took) // 2]
    return [("check flips, 10,000 instances, 1,000 blocking queries, 100 of them its service's",
             f"p50 {p50 * 1e3:.1f} ms", f"p99 {p99 * 1e3:.1f} ms",
             f"bar 50 ms; {used * 1e3:.1f} ms of the server's CPU each, with what 1,000 queries cost "
             f"once; other services' watchers woken: {others}")]


# -- size --------------------------------------------------------------------------------------

def bench_size(args):
    rows, costs = [], []
    with Weft(args.weft, args.dir / "size") as weft:
        pid, done = weft.process.pid, 0
        # What the program takes once, whoever comes, is not an instance's: its code is read in, its
        # threads have their stacks, its log is begun.
        weft.register_own(range(WARM), 10)
        weft.deregister_own(range(WARM))
        time.sleep(65)
        empty = pss(pid)
        for count in args.sizes:
            before, first = cpu(pid), done
            weft.register_own(range(done, count), max(1, count // 10))
            used, done = cpu(pid) - before, count
            # Until the log of what just happened, which is kept whole for a minute for whoever lost
            # a watch, is as large as at rest.
            time.sleep(65)
            each = (pss(pid) - empty) / count
            costs.append((used / (count - first) * 1e6, each))
            rows.append((f"{count:,} instances with a TTL check", f"{costs[-1][0]:.0f} us CPU each",
                         f"{each / 1024:.2f} KiB each (Pss)", "bar 4 KiB"))
    spread = max(c for c, _ in costs) / min(c for c, _ in costs)
    rows.append(("CPU per registration, greatest of least", f"{spread:.2f}", "bar 1.5", ""))
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="all", choices=["all", "dns", "watch", "size"])
    parser.add_argument("--weft", required=True)
    parser.add_argument("--peers", type=pathlib.Path, required=True)
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("target/bench-registry"))
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=lambda t: [int(n) for n in t.split(",")],
                        default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    args.dir, args.peers = args.dir.resolve(), args.peers.resolve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    rows = []
    for name, bench in (("dns", bench_dns), ("watch", bench_watch), ("size", bench_size)):
        if args.what in ("all", name):
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            rows += bench(args)
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    lines = [f"{time.strftime('%Y-%m-%d')}, {model[1] if model else platform.machine()}, "
             f"{len(CORES)} cores, Linux {platform.release()}", "",
             "| what | | | |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
