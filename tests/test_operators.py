# SPDX-License-Identifier: Apache-2.0
"""What an operator of `weft proxy` asks of it while it runs: signals, the log's level, a reload."""

import json
import os
import signal
import subprocess

import pytest
from mesh import WEFT, free_port, until
from standalone import Origin, Proxy, curl
from test_standalone import text


@pytest.fixture
def served(tmp_path):
    port, admin = free_port(), free_port()
    path, log = tmp_path / "proxy.yaml", tmp_path / "access.log"
    with Origin("up") as up:
        said = text(port, admin, up).replace(
            "access_log: failures", f"access_log: {{path: {log}}}"
        )
        path.write_text(said)
        with Proxy("-c", path, ready=port) as proxy:
            yield proxy, path, log, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"


@pytest.mark.parametrize("sign", ["SIGUSR1", "SIGHUP"])
def test_a_rotated_log_is_opened_again(served, sign):
    proxy, _, log, url, _ = served
    curl(f"{url}/first")
    until("its line", lambda: log.exists() and "/first" in log.read_text())
    old = log.with_suffix(".1")
    os.rename(log, old)
    proxy.process.send_signal(getattr(signal, sign))
    until("the file is there again", log.exists)
    curl(f"{url}/second")
    until("its line", lambda: "/second" in log.read_text())
    assert "/second" not in old.read_text()
    assert proxy.process.poll() is None


def test_levels_are_set_while_it_runs(served):
    proxy, _, _, _, admin = served
    status, _, said = curl("-XPOST", f"{admin}/logging")
    assert (status, "warn" in said) == (200, True), said
    status, _, said = curl("-XPOST", f"{admin}/logging?weft=info")
    assert (status, "weft=info" in said) == (200, True), said
    proxy.process.send_signal(signal.SIGHUP)
    # It was not said before.
    proxy.says("was read again")
    assert curl("-XPOST", f"{admin}/logging?level=loud")[0] == 400
    assert curl(f"{admin}/logging")[0] == 405


def test_another_admin_address_is_said_to_need_a_start(served):
    proxy, path, _, url, admin = served
    said = path.read_text().replace(admin.removeprefix("http://"), f"127.0.0.1:{free_port()}")
    path.write_text(said.replace("hello", "changed"))
    until("the rest is in use", lambda: curl(f"{url}/changed")[2] == "changed")
    proxy.says("the admin door moves with the next start")
    assert json.loads(curl(f"{admin}/server_info")[2])["state"] == "LIVE"


def test_headers_that_no_rule_may_edit_are_refused_by_name(served):
    _, path, _, _, _ = served
    rule = "- to: up\n        request_headers: {set: {Host: a, x: b}, remove: [Connection]}"
    path.write_text(path.read_text().replace("- to: up", rule))
    run = subprocess.run([WEFT, "proxy", "-c", path, "--check"], capture_output=True, text=True)
    assert run.returncode != 0
    assert 'routes[0].rules[1].request_headers.set: "host" is the upstream' in run.stderr
    assert '.request_headers.remove: "connection" belongs to the connection' in run.stderr


def test_a_check_looks_at_what_is_said_beside_the_file(served):
    _, path, _, _, _ = served
    check = [WEFT, "proxy", "-c", path, "--check", "--access-log", "text", "--access-log-format"]
    wrong = subprocess.run([*check, "%WEFT_X%"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "WEFT_X" in wrong.stderr, wrong
    assert "can be served" not in wrong.stdout
    right = subprocess.run([*check, "%PATH(NQ)%"], capture_output=True, text=True)
    assert right.returncode == 0 and "can be served" in right.stdout, right


def test_operators_without_a_value_are_said_at_the_start(tmp_path):
    port, admin = free_port(), free_port()
    path = tmp_path / "proxy.yaml"
    line = "LINE %DYNAMIC_METADATA(a:b)% %PATH(NQ)% %UPSTREAM_PROTOCOL%"
    with Origin("up") as up:
        path.write_text(text(port, admin, up))
        words = ["-c", path, "--access-log", "text", "--access-log-format", line]
        with Proxy(*words, ready=port) as proxy:
            curl(f"http://127.0.0.1:{port}/a?b=c")
            proxy.says("LINE - /a HTTP/1.1")
            assert "warning: access log: %DYNAMIC_METADATA(a:b)% has no value" in proxy.text()
            assert proxy.text().count("warning: access log") == 1
