# SPDX-License-Identifier: Apache-2.0
"""The drills of tests/faults/ at a tenth of their length; `./test faults` runs them in full."""

import importlib
import pathlib
import sys

import pytest

FAULTS = pathlib.Path(__file__).parent / "faults"
sys.path.insert(0, str(FAULTS))
DRILLS = sorted(p.stem for p in FAULTS.glob("[fs][0-9][0-9]_*.py"))
# S2's history is judged by a program that cargo builds. F12's clients wait for a second at most, five
# times as many as are served: without a processor at once nobody is answered in time.
ALONE = {"s02_locks", "f12_overload"}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.alone if name in ALONE else ()) for name in DRILLS])
def test_drill(name, tmp_path, monkeypatch):
    # A machine that stands still makes no answer a late one.
    monkeypatch.setenv("WEFT_DRILL_DEADLINE", "60")
    print(importlib.import_module(name).run(False, tmp_path))
