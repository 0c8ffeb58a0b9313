# SPDX-License-Identifier: Apache-2.0
"""`./test faults`: every drill in full. Each module `fNN_name.py` or `sNN_name.py` here has
`run(whole, folder)`, which returns its figures or raises; some drills are tests elsewhere and are
run there. `--only F12,F14` chooses drills (`suites` the public suites), `--not F7` leaves some out;
with `--out FILE` the page of figures is written, too. `--minutes 2` is for how long the name server
of F20 is out, in the place of ten.
"""

import argparse
import datetime
import importlib
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

# Drills that are tests of their own, and what of their output is the figure.
ELSEWHERE = {
    "f09": ("tests/test_standalone.py::test_f9_hot_upgrades_lose_no_request_kept_or_fresh "
            "tests/test_upgrades.py", "F9:"),
    "f16": ("tests/test_l4.py::test_f16_a_peer_that_is_gone_without_a_word_is_given_up", "F16:"),
    "f17": ("tests/test_l4.py::test_f17_a_herd_of_connections_is_served", "F17:"),
    "f19": ("tests/test_l4.py::test_f19_reg_64_descriptors_run_out_and_the_proxy_stays_manageable",
            "F19:"),
    "f24": ("tests/test_dns.py -k f24", "F24:"),
}
# Of no build that serves anybody: these panic on purpose.
RUST = {"f26": (["cargo", "test", "-q", "-p", "weft-proxy", "--lib", "f26_a", "--", "--nocapture"],
                "F26:")}

# Suite, then what Envoy 1.40, HAProxy 2.6 and nginx 1.22 score, the bar, and whose figure is ours.
PEERS = [
    ("`kill -9` 1 of 3 at 2,000 requests/s, default settings: failed of 24,000",
     "3,481", "0", "0", "0", "f01"),
    ("hot reload ×10: stale keep-alive resets", "0 (×2)", "24", "39", "0", "f09"),
    ("2,000 slow-header connections", "all kept without a header time-out", "all closed",
     "all closed", "all closed ≤ 15 s by default", "f10"),
    ("idle bytes per connection, plain / TLS", "16,032 / 21,465", "1,151 / 12,751",
     "492 / 15,278", "≤ 4,096 / ≤ 16,384", "f11"),
    ("overload 5×, goodput with default settings", "10 %", "100 % (with a limit)", "–",
     "≥ 80 %, ≥ 98 % with a limit", "f12"),
    ("retry storm, upstream load", "1.32× (4.00× unlimited)", "–", "–", "≤ 1.20×", "f13"),
    ("black hole, 1 of 3: late answers of 3,600", "2", "1", "813", "≤ 3", "f14"),
    ("HTTP/2 rapid reset ×20,000 on one connection: requests that reach the upstream", "73",
     "771, never closed", "0", "≤ 100, closed within 1,000 frames", "s01"),
    ("h2spec, generic + http2 + hpack (145, strict 146)", "133 pass, 12 fail", "145, 0",
     "120, 25", "0 fail, strict too", "h2spec"),
    ("Http11Probe's published payloads", "87 of 125, 5 smuggling fails", "83, 12", "84, 6",
     "≥ 110, 0 smuggling fails", "probe"),
    ("Autobahn cases 1–7, 10 (247), clean close", "42", "243", "243", "243+", "autobahn"),
    ("gRPC interop (14)", "14", "13", "14", "14", "interop"),
]
# Suites that are tests: what to run, and where the cell is in the output.
SUITES = {
    "h2spec": (["tests/test_http2.py", "-k", "h2spec"], r"h2spec: (.+)"),
    "probe": (["tests/test_public_suites.py", "-k", "http11probe"], r"\{'pass': (\d+).*"),
    "autobahn": (["tests", "-k", "autobahn"], r"Autobahn: (.+)"),
    "interop": (["tests", "-k", "interop"], r"gRPC interop: (.+)"),
}


class Absent(Exception):
    """There is no such test."""


def drills():
    own = {p.stem[:3]: p.stem for p in HERE.glob("[fs][0-9][0-9]_*.py")}
    return sorted({*own, *ELSEWHERE, *RUST}), own


def pytest(*words):
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:asyncio", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900,
                          env={**os.environ, "FULL": "1"})
    if done.returncode == 5:
        raise Absent(" ".join(words))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def line_of(text, mark):
    """The line of an output that says the figures, as the others are."""
    told = [line.partition(mark)[2].strip() for line in text.splitlines() if mark in line]
    assert told, f"no figures of {mark}"
    return f"{mark[:-1]} {'; '.join(told)}"


def drill(name, own, folder):
    """A drill's line, and what the table shows of it."""
    if name in ELSEWHERE:
        node, mark = ELSEWHERE[name]
        line = line_of(pytest(*node.split()), mark)
        if name in own:
            # A drill of two parts.
            part = str(importlib.import_module(own[name]).run(True, folder))
            line += f"; {part.partition(' ')[2]}"
        return line, f"{m[1]}" if (m := re.search(r"(\d+) failed", line)) else None
    if name in RUST:
        command, mark = RUST[name]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900,
                              env={**os.environ, "FULL": "1"})
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return line_of(done.stdout, mark), None
    line = importlib.import_module(own[name]).run(True, folder)
    return str(line), getattr(line, "cell", None)


def suites(cells, failed):
    """Public suites that are tests of their own."""
    for name, (words, pattern) in SUITES.items():
        began = time.monotonic()
        try:
            found = re.findall(pattern, pytest(*words))
            cells[name] = "; ".join(dict.fromkeys(found)) or "passed"
            print(f"{name}: {cells[name]}", end="")
        except Absent:
            cells[name] = "no script yet"
            print(f"{name}: no script", end="")
        except Exception as error:
            failed.append(name)
            cells[name] = "failed"
            print(f"{name} FAILED: {error}", end="")
        print(f"  [{time.monotonic() - began:.0f} s]", flush=True)


def script(name):
    """What produces a row of the table."""
    if name in SUITES:
        return " ".join(SUITES[name][0])
    return ELSEWHERE[name][0] if name in ELSEWHERE else f"tests/faults/{drills()[1][name]}.py"


def words_of(name):
    """How a drill's line begins."""
    short = f"{name[0].upper()}{int(name[1:])} "
    return short, f"{name.upper()} FAILED"


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


PAGE = """# Faults: the drills in full

Written by `./test faults --out docs/faults.md` on {when}, at {commit}: {cores} processors
({cpu}), Linux {kernel}, {build}, {load}. `./test` runs the same drills at a tenth of
their length; what each does is said at the head of its file in `tests/faults/`.

```
{lines}
```

{failures}

## What peers score, and weft

Figures of Envoy 1.40, HAProxy 2.6 and nginx 1.22 were taken once each on another machine of 2
processors; counts are sound, times indicative. The last column is from the run above.

| suite | Envoy | HAProxy | nginx | bar | weft | by |
|---|---|---|---|---|---|---|
{table}
"""


def page(lines, cells, failed, before):
    load = f"load average {before:.1f} when it began, {os.getloadavg()[0]:.1f} at its end"
    debug = "debug" in pathlib.Path(os.environ.get("WEFT", "")).parts
    build = "a build without optimisation" if debug else "a release build"
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True,
                            text=True, cwd=ROOT).stdout.strip()
    rows = [[*row[:5], cells.get(row[5], "not run"), f"`{script(row[5])}`"] for row in PEERS]
    failures = f"Did not meet their bar in this run: {', '.join(failed)}." if failed else \
        "All met their bars."
    left = [n for n in drills()[0] if not any(line.startswith(words_of(n)) for line in lines)]
    if left:
        failures += f" Not in this run: {', '.join(left).upper()}."
    return PAGE.format(
        when=datetime.date.today(), commit=commit or "a copy without history",
        build=build, cores=os.cpu_count(), cpu=processor(), kernel=platform.release(), load=load,
        lines="\n".join(lines), failures=failures,
        table="\n".join(f"| {' | '.join(row)} |" for row in rows))


def named(words):
    """Drills as their files begin: F7 is f07."""
    words = words.lower().replace(",", " ").split()
    return [re.sub(r"^([fs])(\d)$", r"\g<1>0\2", w) for w in words]


def main(words):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--not", dest="left_out", default="")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("drills", nargs="*")
    args = parser.parse_args(words)
    if args.minutes:
        os.environ["FAULT_MINUTES"] = str(args.minutes)
    out, only = args.out, " ".join([args.only, *args.drills]).strip()
    failed, lines, cells = [], [], {}
    before = os.getloadavg()[0]
    names, own = drills()
    unknown = {*named(only), *named(args.left_out)} - {*names, "suites"}
    if unknown:
        parser.error(f"no such drill: {', '.join(sorted(unknown)).upper()}; there are "
                     f"{', '.join(names).upper()}")
    chosen = [name for name in names
              if not (only and name not in named(only)) and name not in named(args.left_out)]
    for number, name in enumerate(chosen, 1):
        began = time.monotonic()
        # Whoever waits sees which one runs; some take minutes.
        print(f"{number} of {len(chosen)}: {name.upper()} since {time.strftime('%H:%M:%S')}",
              file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                line, cell = drill(name, own, pathlib.Path(folder))
                if cell is not None:
                    cells[name] = cell
            except Exception as error:
                failed.append(name)
                traceback.print_exc()
                text = str(error).strip().splitlines() or [repr(error)]
                line = f"{name.upper()} FAILED: {text[-1][:300]}"
                cells[name] = "below its bar, see above"
        lines.append(f"{line}  [{time.monotonic() - began:.0f} s]")
        print(lines[-1], flush=True)
        if out:
            # So that what was measured is kept when the rest is interrupted.
            out.write_text(page(lines, cells, failed, before))
    if (not only or "suites" in named(only)) and "suites" not in named(args.left_out):
        suites(cells, failed)
    if out:
        out.write_text(page(lines, cells, failed, before))
    return f"failed: {', '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
