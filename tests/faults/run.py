# SPDX-License-Identifier: Apache-2.0
"""`./test faults`: every drill in full. Each module `fNN_name.py` here has `run(whole, folder)`,
which returns its figures or raises. Arguments choose drills: `run.py f01 f12`."""

import importlib
import pathlib
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def drills():
    return sorted(p.stem for p in HERE.glob("f[0-9][0-9]_*.py"))


def main(wanted):
    failed = []
    for name in drills():
        if wanted and not any(name.startswith(w) for w in wanted):
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(importlib.import_module(name).run(True, pathlib.Path(folder)), end="")
            except Exception as error:
                failed.append(name)
                traceback.print_exc()
                print(f"{name} FAILED: {error}", end="")
        print(f"  [{time.monotonic() - began:.0f} s]", flush=True)
    return f"failed: {', '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
