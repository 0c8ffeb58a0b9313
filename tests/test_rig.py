# SPDX-License-Identifier: Apache-2.0
"""The rig that the project was given (`../shared/bench`) runs as it stands with weft beside a peer.
Figures are not looked at: a machine that tests is busy. `benches/proxy` is the project's own rig."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from mesh import BIN, ROOT, WEFT

RIG = pathlib.Path(os.environ.get("WEFT_RIG", ROOT.parent / "shared/bench"))
KIT = ROOT / "benches/proxy/kit"
MADE = ROOT / "target/rig-kit"


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A copy of the rig, as its own setup makes one, with the programs of our kit: the rig's
    sources of them are not published with it."""
    if not (RIG / "bench.py").exists():
        if os.environ.get("CI_WITHOUT_RIG"):
            pytest.skip("CI_WITHOUT_RIG is set")
        pytest.fail(f"{RIG}/bench.py is not there: put the rig beside the project, name its folder "
                    "in WEFT_RIG, or set CI_WITHOUT_RIG=1")
    folder = tmp_path_factory.mktemp("rig") / "bench"
    shutil.copytree(RIG, folder)
    # Without TLS: neither scenario needs it, and it takes most of the time to build.
    # Other tests run beside it.
    build = ["nice", "cargo", "build", "--release", "--quiet", "--manifest-path",
             KIT / "Cargo.toml", "--target-dir", MADE, "--no-default-features", "--bin", "lg",
             "--bin", "up", "--bin", "uph2"]
    subprocess.run(build, check=True, timeout=1800)
    (folder / "bin").mkdir()
    for program in ("lg", "up", "uph2"):
        shutil.copy(MADE / "release" / program, folder / "bin")
    return folder


@pytest.mark.parametrize("scenario, bootstrap, port", [("h1", "mesh", 10001), ("h2", "min", 10002)])
def test_a_round_beside_haproxy(rig, tmp_path, scenario, bootstrap, port):
    out = tmp_path / "rows.jsonl"
    weft = f"weft={WEFT} proxy --workers 1 --envoy {{c}}/gen/envoy-{bootstrap}.json;{scenario}={port}"
    command = [sys.executable, rig / "bench.py", scenario, "--proxies", "haproxy,weft",
               "--rounds", "1", "--dur", "1", "--retries", "0", "--out", out, "--add", weft]
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "BENCH_RUN": str(tmp_path / "run")}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in map(json.loads, out.read_text().splitlines())}
    print(done.stdout)
    assert set(rows) == {"haproxy", "weft"}, done.stdout + done.stderr
    for row in rows.values():
        assert row["total"] > 100, row
        assert row["errs"] == 0 and row.get("bad", 0) == 0, row
        assert row["cpu_us"] > 0, row
