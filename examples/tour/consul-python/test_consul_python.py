# SPDX-License-Identifier: Apache-2.0
"""The service registers, is found through Consul's API and DNS, and goes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import consul
import pytest

from conftest import need, wait_until

HERE = pathlib.Path(__file__).parent


class Running:
    def __init__(self, weft, name):
        env = {**os.environ, "WEFT_CONSUL_PORT": str(weft.consul_port), "SERVICE_NAME": name}
        self.child = subprocess.Popen([sys.executable, HERE / "service.py"], env=env, text=True,
                                      stdout=subprocess.PIPE)

    def line(self):
        return json.loads(self.child.stdout.readline())


@pytest.fixture
def start(weft):
    running = []

    def start(name):
        running.append(Running(weft, name))
        return running[-1]

    yield start
    for one in running:
        one.child.kill()
        one.child.wait()


def dig(weft, name, kind, *more):
    command = [need("dig"), "@127.0.0.1", "-p", str(weft.dns_port), "+tries=3", "+time=10", *more]
    done = subprocess.run([*command, name, kind], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def srv(weft, name):
    """Ports in the SRV answer for NAME.service.consul."""
    lines = dig(weft, f"{name}.service.consul", "SRV", "+short").splitlines()
    return [int(line.split()[2]) for line in lines]


def test_register_find_deregister(weft, start):
    service = start("greeter-one")
    found = service.line()["service"]
    assert found["Service"] == "greeter-one"
    assert found["Address"] == "127.0.0.1"
    assert set(found["Tags"]) == {"tour", "v1"}
    registry = consul.Consul(port=weft.consul_port)
    _, services = registry.catalog.services()
    assert set(services["greeter-one"]) == {"tour", "v1"}
    _, checks = registry.health.checks("greeter-one")
    assert [c["Status"] for c in checks] == ["passing"]
    assert srv(weft, "greeter-one") == [found["Port"]]

    service.child.send_signal(signal.SIGTERM)
    assert service.line()["event"] == "deregistered"
    assert service.child.wait(60) == 0
    assert registry.health.service("greeter-one")[1] == []
    assert "greeter-one" not in registry.catalog.services()[1]
    wait_until("DNS has forgotten it", lambda: srv(weft, "greeter-one") == [])


def test_a_blocked_reader_wakes_when_the_check_turns_critical(weft, start):
    service = start("greeter-two")
    found = service.line()["service"]
    registry = consul.Consul(port=weft.consul_port)
    index, nodes = registry.health.service("greeter-two", passing=True)
    assert len(nodes) == 1
    service.child.kill()
    began = time.monotonic()
    # Waits on the index; without the change it would return after 2 min, with the instance.
    while nodes and time.monotonic() - began < 120:
        index, nodes = registry.health.service("greeter-two", passing=True, index=index,
                                               wait="2m")
    assert nodes == []
    # A check runs once a second at most, and a change wakes its readers at once.
    assert time.monotonic() - began < 60
    # Registered still, but not healthy.
    _, everything = registry.health.service("greeter-two")
    assert [n["Service"]["Port"] for n in everything] == [found["Port"]]
    wait_until("DNS leaves it out", lambda: srv(weft, "greeter-two") == [])
    registry.agent.service.deregister(found["ID"])


def test_an_unknown_name_does_not_exist(weft):
    assert "status: NXDOMAIN" in dig(weft, "nobody-knows.service.consul", "A")
