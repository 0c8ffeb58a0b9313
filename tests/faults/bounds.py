# SPDX-License-Identifier: Apache-2.0
"""A process that may have so much memory: by a control group of its own where this machine lets us
make one (version 1 or 2; the kernel ends who exceeds it), else by weft's own word for it."""

import contextlib
import os
import pathlib

from drill import until

ROOT = pathlib.Path("/sys/fs/cgroup")


class Group:
    """A control group."""

    def __init__(self, folder, limit, peak, current):
        self.folder, self.limit, self._peak, self._current = folder, limit, peak, current
        self.word, self.kind = "", f"control group, version {1 if peak.startswith('memory.m') else 2}"

    def command(self, words):
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs; exec "$@"', "sh", *words]

    def peak(self, _pid):
        """Bytes, file pages among them."""
        for name in (self._peak, self._current):
            with contextlib.suppress(OSError):
                return int((self.folder / name).read_text())
        return 0

    def killed(self):
        """How many the kernel ended."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                lines = (self.folder / name).read_text().splitlines()
                return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
        return 0


class Word:
    """No group can be made here: the configuration says the limit, and the process is looked at."""

    folder = None

    def __init__(self, limit):
        self.limit, self.word, self.kind = limit, f"memory: {limit}\n", "said in the configuration"

    def command(self, words):
        return list(words)

    def peak(self, pid):
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def killed(self):
        return 0


def made(limit):
    """A new group with this limit, or None."""
    if os.geteuid() != 0:
        return None
    name = f"weft-drill-{os.getpid()}"
    kinds = [
        (ROOT / "memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes",
         "memory.usage_in_bytes"),
        (ROOT, "memory.max", "memory.peak", "memory.current"),
    ]
    for base, bound, peak, current in kinds:
        folder = base / name
        try:
            if bound == "memory.max":
                (base / "cgroup.subtree_control").write_text("+memory")
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / bound).write_text(str(limit))
            with contextlib.suppress(OSError):
                # Pages that are swapped out would count for nobody.
                (folder / "memory.swap.max").write_text("0")
            return Group(folder, limit, peak, current)
        except OSError:
            folder.rmdir()
    return None


@contextlib.contextmanager
def memory(mib):
    bound = made(mib << 20) or Word(mib << 20)
    try:
        yield bound
    finally:
        if bound.folder:
            until("the group is empty",
                  lambda: not (bound.folder / "cgroup.procs").read_text().strip())
            bound.folder.rmdir()
