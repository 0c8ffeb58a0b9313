# SPDX-License-Identifier: Apache-2.0
"""The suite that py-consul 1.8 ships in its source package, against `weft server` and against a
machine's own `weft agent`. The ledgers name every test of it: `pass`; `skip` with the reason, which is always something that weft says
it does not offer; or `open` for what is still to be done. (python-consul 1.1 ships no tests in its
source package.)

`UPDATE_LEDGER=1` writes what was found; a reason has to be added by hand."""

import os
import subprocess
import xml.etree.ElementTree as xml

import pytest

from mesh import PEERS, ROOT, WEFT

SUITE = PEERS / "consul" / "py-consul-suite"
LEDGERS = {"server": ROOT / "tests" / "consul" / "ledger.txt",
           "agent": ROOT / "tests" / "consul" / "ledger-agent.txt"}
# The suite runs everything once per version of Consul; weft speaks like one.
VERSION = "1.21.5"


# `FULL=1` asks an agent, too, which takes minutes.
ROLES = [*LEDGERS] if os.environ.get("FULL") else ["server"]


def ledger(role):
    out = {}
    for line in LEDGERS[role].read_text().splitlines():
        if line and not line.startswith("#"):
            verdict, name, *reason = line.split(None, 2)
            out[name] = (verdict, " ".join(reason))
    return out


def run_suite(role, tmp_path):
    report = tmp_path / "report.xml"
    env = dict(os.environ, WEFT_BINARY=str(WEFT), PYTHONDONTWRITEBYTECODE="1")
    if role == "agent":
        env["WEFT_SUITE_AGENT"] = "1"
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests" / "consul"), str(SUITE)])
    command = [str(PEERS / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider",
               "-o", "addopts=", "-o", "asyncio_mode=auto",
               "-o", "asyncio_default_fixture_loop_scope=function",
               "-k", f"not {' and not '.join(v for v in ('1.20.6', '1.22.0'))}",
               f"--junitxml={report}", "tests"]
    done = subprocess.run(command, cwd=SUITE, env=env, capture_output=True, text=True,
                          timeout=900)
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in xml.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}".replace(f"[{VERSION}]", "")
        kinds = {child.tag for child in case}
        passed = not kinds & {"failure", "error", "skipped"}
        found[name.replace(" ", "_")] = "pass" if passed else "fail"
    return found, done.stdout


@pytest.mark.parametrize("role", ROLES)
def test_the_suite_of_py_consul_passes_as_the_ledger_says(role, tmp_path):
    if not SUITE.exists():
        pytest.fail("the suite is missing; run ./test peers")
    found, output = run_suite(role, tmp_path)
    known = ledger(role) if LEDGERS[role].exists() else {}
    # Many of its tests sleep for a twentieth of a second where they wait for something. On a busy
    # machine that is short: those that should pass and did not have to pass in another run.
    for _ in range(3):
        again = [n for n, v in found.items() if v != "pass" and known.get(n, ("",))[0] == "pass"]
        if not again:
            break
        print(f"played again: {' '.join(again)}")
        played, output = run_suite(role, tmp_path)
        found.update({name: played.get(name, "fail") for name in again})
    if os.environ.get("UPDATE_LEDGER"):
        lines = [f"{'pass' if v == 'pass' else known.get(n, ('open',))[0]} {n} "
                 f"{'' if v == 'pass' else known.get(n, ('', 'NO REASON'))[1]}".rstrip()
                 for n, v in sorted(found.items())]
        head = f"# py-consul 1.8.0's own tests against `weft {role}`; see test_consul_suites.py.\n"
        LEDGERS[role].write_text(head + "\n".join(lines) + "\n")
    known = ledger(role)
    assert set(found) == set(known), "the ledger names other tests than the suite has"
    failed = {n for n, v in found.items() if v != "pass" and known[n][0] == "pass"}
    assert not failed, f"{sorted(failed)}\n{output[-20000:]}"
    passed = {n for n, v in found.items() if v == "pass" and known[n][0] != "pass"}
    assert not passed, f"these pass now, say so in the ledger: {sorted(passed)}"
    assert all(reason for verdict, reason in known.values() if verdict != "pass")
