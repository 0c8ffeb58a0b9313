#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plays Autobahn's cases for servers at WebSockets and prints a ledger and the figure.

    autobahn.py FOLDER NAME=ws://127.0.0.1:8080/ ... [--cases 1.*,2.*] [--jobs 8]

FOLDER is what autobahn.sh unpacked. A case passes when what was received is as it should be and the
connection was closed as it should be, by the suite's own verdicts.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

# Cases 1 to 7 and 10: framing, pings, reserved bits, opcodes, fragments, UTF-8, closing.
GROUPS = ["1", "2", "3", "4", "5", "6", "7", "10"]
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
LIST = "from autobahntestsuite import caseset, case; print(' '.join(" \
    "caseset.CaseSet(case.CaseSetname, case.CaseBasename, case.Cases, case.CaseCategories, " \
    "case.CaseSubCategories).parseSpecCases({'cases': ['*']})))"


def cases(folder):
    run = subprocess.run([folder / "python2", "-c", LIST], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [c for c in run.stdout.split() if c.split(".")[0] in GROUPS]


def run(folder, servers, ids, jobs=8, timeout=300):
    """Verdicts by server and case. Most cases only wait: many are played at a time."""
    folder = pathlib.Path(folder)
    with tempfile.TemporaryDirectory() as work:
        started = []
        for name, url in servers.items():
            for n in range(jobs):
                place = pathlib.Path(work) / f"{name}-{n}"
                place.mkdir()
                spec = {"outdir": str(place / "out"), "servers": [{"agent": name, "url": url}],
                        "cases": ids[n::jobs], "exclude-cases": [], "exclude-agent-cases": {}}
                (place / "spec.json").write_text(json.dumps(spec))
                command = [folder / "wstest", "-m", "fuzzingclient", "-s", place / "spec.json"]
                log = open(place / "log", "wb")
                started.append((name, place, subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, cwd=place)))
        verdicts = {name: {} for name in servers}
        try:
            for name, place, process in started:
                process.wait(timeout)
                index = place / "out/index.json"
                assert index.exists(), (place / "log").read_text()[-2000:]
                verdicts[name].update(json.loads(index.read_text())[name])
        finally:
            for _, _, process in started:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    return verdicts


def passes(verdict):
    return verdict["behavior"] in GOOD and verdict["behaviorClose"] in GOOD


def ledger(verdicts):
    """A line of each case: its number, and its two verdicts by server."""
    ids = sorted({c for v in verdicts.values() for c in v},
                 key=lambda c: [int(part) for part in c.split(".")])
    lines = []
    for case in ids:
        shown = [f"{name}: {v[case]['behavior']}, closed {v[case]['behaviorClose']}"
                 for name, v in verdicts.items()]
        lines.append(f"{case:8} " + "   ".join(shown))
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("server", nargs="+")
    parser.add_argument("--jobs", type=int, default=8)
    options = parser.parse_args()
    servers = dict(s.split("=", 1) for s in options.server)
    verdicts = run(options.folder.absolute(), servers, cases(options.folder.absolute()),
                   options.jobs)
    print(ledger(verdicts))
    for name, all in verdicts.items():
        print(f"{name}: {sum(map(passes, all.values()))} of {len(all)}")


if __name__ == "__main__":
    main()
