# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests against real peers. `./test peers` prepares what they need."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from mesh import BIN, WEFT, Mesh, copy_shop, free_port, until  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "root: needs root")
    missing = [str(p) for p in (WEFT, BIN / "kubectl", BIN / "dig") if not p.exists()]
    if missing:
        raise pytest.UsageError(f"missing: {', '.join(missing)}; run ./test peers")


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
