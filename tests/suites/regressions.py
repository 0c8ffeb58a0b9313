# SPDX-License-Identifier: Apache-2.0
"""The ledger of regressions by number (lines 1 to 45, 52 and 64): every case that the sources have,
and what shows that it can fail. `regressions.py` writes regressions.ledger anew."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
LEDGER = pathlib.Path(__file__).with_suffix(".ledger")
NUMBERS = {*range(1, 46), 52, 64}
# What ends these by itself, with weft's own check beside it.
LIBRARY = {
    "reg_19_29_rapid_reset_in_one_burst", "reg_20_made_you_reset_by_a_window_update_of_zero",
    "reg_20_made_you_reset_by_a_priority_of_wrong_length",
    "reg_20_made_you_reset_by_headers_on_a_stream_that_ended",
    "reg_20_made_you_reset_by_data_on_a_stream_that_ended", "reg_21_continuation_flood",
    "reg_21_22_empty_continuation_flood", "reg_22_empty_data_flood",
    "reg_24_header_bombs_are_measured_unpacked", "reg_28_a_client_cannot_enlarge_our_table",
}


def numbers(name):
    found = re.match(r"(?:test_)?reg_((?:\d+_)+)", name)[1]
    return {int(n) for n in found.strip("_").split("_")} & NUMBERS


def sources():
    yield from sorted((ROOT / "crates").rglob("*.rs"))
    yield from sorted((ROOT / "tests").glob("*.py"))


def cases():
    """Names of tests, each with the check without which it is run again and must fail, or None."""
    found, switched, known = {}, {}, set()
    for path in sources():
        text = path.read_text(errors="replace")
        for name in re.findall(r"(?:fn|def) +((?:test_)?reg_\d+\w*)", text):
            found[name] = None
        if "refused! {" in text:
            switched |= dict(re.findall(r'^    (reg_\d+\w*) "([a-z0-9-]+)"', text, re.M))
        switched |= dict(re.findall(r'"::(reg_\w+)"\),\s*"([a-z0-9-]+)"', text))
        known |= set(re.findall(r'checks::on\("([a-z0-9-]+)"\)', text))
        known |= set(re.findall(r'Self::\w+ => "(h2-[a-z]+)"', text))
    found |= switched
    return {name: check for name, check in found.items() if numbers(name)}, known


def shown(name, check):
    if check == "grammar":
        return "grammar"
    if check:
        return f"check {check}"
    return "library" if name in LIBRARY else "-"


def lines():
    all, _ = cases()
    rows = [(n, name, shown(name, check)) for name, check in all.items() for n in numbers(name)]
    return [f"{n:02} {how:24} {name}" for n, name, how in sorted(rows)]


if __name__ == "__main__":
    LEDGER.write_text("\n".join(lines()) + "\n")
