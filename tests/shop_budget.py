# SPDX-License-Identifier: Apache-2.0
"""Rows of `cargo xtask budgets` that need the shop running: python3 tests/shop_budget.py WEFT"""

import os
import pathlib
import sys
import tempfile

os.environ["WEFT"] = sys.argv[1]
sys.path.insert(0, str(pathlib.Path(__file__).parent))
from mesh import Mesh, copy_shop, free_port, pss_kb  # noqa: E402


def row(name, limit, measured):
    print(f"| {name} | ≤ {limit} | {measured} |", flush=True)


def main():
    ready = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            port = free_port()
            copy_shop(folder / "shop", port)
            with Mesh(folder / "shop", folder / "data", gateway_port=port) as mesh:
                ready.append(mesh.ready_after)
                sidecars, gateways = [], []
                for pid in mesh.tree():
                    command = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    if command[1:2] == ["proxy"]:
                        kind = sidecars if "sidecar~" in " ".join(command) else gateways
                        kind.append(pss_kb(pid) / 1024)
                server = pss_kb(mesh.process.pid) / 1024
    row("shop ready (median of 3)", "3 s", f"{sorted(ready)[1]:.2f} s")
    row("server Pss", "40 MB", f"{server:.1f} MB")
    row("largest sidecar Pss", "12 MB", f"{max(sidecars):.1f} MB")
    row("gateway Pss", "-", f"{max(gateways):.1f} MB")


if __name__ == "__main__":
    main()
