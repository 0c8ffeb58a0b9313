# SPDX-License-Identifier: Apache-2.0
"""The ledger of regressions by number (lines 1 to 45, 52, 56 to 62 and 64): every case that the
sources have, and what shows that it can fail. Rust reads it too (`switched.rs`) and plays each case
without its guard. `regressions.py` prints what the ledger lacks and what it has too much."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
LEDGER = pathlib.Path(__file__).with_suffix(".ledger")
NUMBERS = {*range(1, 46), 52, *range(56, 63), 64}
# `# 07 CVE-2023-25725; bare CR`: what the project's list of regressions names on a line.
NAMED = re.compile(r"# (\d\d) (.+)")
# `07 plays reg_07_bare_cr_in_value | bare CR`
PLAYS = re.compile(r"(\d\d) plays (\w+) \| (\S.*)")
# `07 guard bare-lf            reg_07_a | not refused`
ROW = re.compile(r"(\d\d) (guard|twin|library) +(\S+) +(\w+) \| (\S.*)")


def numbers(name):
    found = re.match(r"(?:test_)?reg_((?:\d+_)+)", name)[1]
    return {int(n) for n in found.strip("_").split("_")} & NUMBERS


def cases():
    """The tests of the sources that have a number of the list."""
    found = set()
    for path in [*sorted((ROOT / "crates").rglob("*.rs")), *sorted((ROOT / "tests").glob("*.py"))]:
        text = path.read_text(errors="replace")
        found.update(re.findall(r"(?:fn|def) +((?:test_)?reg_\d+\w*)", text))
        # Cases that a macro makes stand at the beginning of a line: `reg_07_a 400 "…"`.
        found.update(re.findall(r"^    (reg_\d+\w*)(?: |$)", text, re.M))
    return {name for name in found if numbers(name)}


def guards():
    """The guards that code asks for, or that a test's reader leaves out."""
    known = set()
    for path in sorted((ROOT / "crates").rglob("*.rs")):
        text = path.read_text(errors="replace")
        known.update(re.findall(r'(?<![a-z_])on\("([a-z0-9-]+)"\)', text))
        known.update(re.findall(r'"((?:h2|grammar|host)-[a-z0-9-]+)"', text))
        known.update(re.findall(r'"((?:header)-[a-z0-9-]+)" =>', text))
    return known


def lines():
    return [line for line in LEDGER.read_text().splitlines() if not line.startswith("#")]


def rows():
    return [ROW.fullmatch(line).groups() for line in lines() if not PLAYS.fullmatch(line)]


def plays():
    """What the list names, and the case for it: number, case, name."""
    return [m.groups() for m in map(PLAYS.fullmatch, lines()) if m]


def named():
    """Numbers and what the list of regressions names there: identifiers and variants."""
    found = map(NAMED.fullmatch, LEDGER.read_text().splitlines())
    return [(int(m[1]), name) for m in found if m for name in m[2].split("; ")]


def faults():
    """What is not true of the ledger."""
    listed = {(int(number), name) for number, _, _, name, _ in rows()}
    there = {(number, name) for name in cases() for number in numbers(name)}
    out = [f"{name} of line {number} has no row" for number, name in sorted(there - listed)]
    out += [f"{name} of line {number} is no test" for number, name in sorted(listed - there)]
    known = guards()
    shown = {name for _, how, _, name, _ in rows() if how == "guard"}
    for _, how, what, name, _ in rows():
        if how == "guard" and what not in known:
            out.append(f"{name}: no code asks whether {what} is on")
        if how == "twin" and what not in shown:
            out.append(f"{name}: {what} is not shown to fail")
    covered = {int(number) for number, how, *_ in rows() if how == "guard"}
    out += [f"line {number} has no case that is shown to fail" for number in NUMBERS - covered]
    return out + unplayed(shown)


def unplayed(shown):
    """What the list names and no case plays that can fail."""
    proofs = {(number, name) for number, how, what, name, _ in rows()
              if how == "guard" or (how == "twin" and what in shown)}
    out = [f"line {number}, {name}: {case} is not shown to fail there"
           for number, case, name in plays() if (number, case) not in proofs]
    wanted, played = set(named()), {(int(number), name) for number, _, name in plays()}
    out += [f"line {number}, {name}: no case plays it" for number, name in sorted(wanted - played)]
    out += [f"line {number}, {name}: nobody names it" for number, name in sorted(played - wanted)]
    return out


if __name__ == "__main__":
    print("\n".join(faults()))
