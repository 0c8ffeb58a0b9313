# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests against real peers. `./test peers` prepares what they need.

`./test` runs some at a time (pytest-xdist; the tests of a file one after another), and those
marked `alone` by themselves after that: they need a machine that does nothing else, or its network."""

import ctypes
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from mesh import BIN, WEFT, Mesh, copy_shop, free_port, until  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "root: needs root")
    config.addinivalue_line("markers", "alone: not beside other tests")
    missing = [str(p) for p in (WEFT, BIN / "kubectl", BIN / "dig") if not p.exists()]
    if missing:
        raise pytest.UsageError(f"missing: {', '.join(missing)}; run ./test peers")
    if hasattr(config, "workerinput"):
        own_place()


def own_place():
    """Moves this process to a network of its own: ports, loopback addresses of pods and ranges of
    Services are the same for every `weft up`, so that two of them are no neighbours. There is no way
    out of it; its one address beside loopback leads nowhere. And to mounts of its own: one test fills
    a disk that it mounts, another sees that weft leaves the machine's mounts as they were."""
    clone_newns, clone_newnet = 0x20000, 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(clone_newns | clone_newnet) != 0:
        why = os.strerror(ctypes.get_errno())
        raise pytest.UsageError(f"tests side by side need a network each, and this system allows none "
                                f"({why}); run them as root, or one at a time without -n")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for words in ("link set lo up", "link add outside type veth peer name nowhere",
                  "addr add 192.0.2.2/24 dev outside", "link set outside up", "link set nowhere up"):
        subprocess.run(["ip", *words.split()], check=True)


def start_shop(folder, edit=lambda name, text: text, **kw):
    port = free_port()
    copy_shop(folder / "shop", port, edit)
    mesh = Mesh(folder / "shop", folder / "data", gateway_port=port, **kw).start()
    return mesh


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The shop, shared by the tests of one file that leave it as they found it."""
    mesh = start_shop(tmp_path_factory.mktemp("shop"))
    yield mesh
    mesh.stop()
    assert "panicked" not in mesh.log_text()


@pytest.fixture
def empty(tmp_path):
    """A weft with one namespace and nothing in it."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m/ns.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n")
    mesh = Mesh(tmp_path / "m", tmp_path / "data").start()
    yield mesh
    mesh.stop()
    assert "panicked" not in mesh.log_text()
