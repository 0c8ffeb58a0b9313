# SPDX-License-Identifier: Apache-2.0
"""Stands in for the Docker client in py-consul's own test suite: what it starts as a container of
Consul is `weft server`, with the doors that the suite's configuration asks for. With
`WEFT_SUITE_AGENT` set, the suite speaks to a `weft agent` beside it, as programs of a machine do."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request


def from_env():
    return DockerClient()


class DockerClient:
    def __init__(self):
        self.containers = Containers()


class Containers:
    def run(self, image, command, ports, environment, detach, name):
        assert image.startswith("hashicorp/consul:") and "agent -dev" in command and detach, image
        return Container(name, json.loads(environment["CONSUL_LOCAL_CONFIG"]))

    def get(self, name):
        from docker.errors import NotFound

        raise NotFound(name)


class Container:
    """One server with a data directory of its own."""

    def __init__(self, name, config):
        self.data = pathlib.Path(tempfile.mkdtemp(prefix=name))
        env = {k: v for k, v in os.environ.items() if not k.startswith("WEFT_")}
        flags = ["--data", str(self.data / "data"), "--announce", "--consul-leave"]
        # Checks of the suite ask their agent's own port, which in its container is 8500.
        flags += ["--api-port", "0", "--dns-port", "0", "--xds-port", "0"]
        usual = "8500" if is_free(8500) else "0"
        agent = bool(os.environ.get("WEFT_SUITE_AGENT"))
        flags += ["--consul-port", "0" if agent else usual]
        acl = config.get("acl", {})
        if acl.get("enabled"):
            secret = self.data / "token"
            secret.write_text(acl["tokens"]["initial_management"])
            flags += ["--consul-acl", "allow", "--consul-management-token-file", str(secret)]
        self.log = open(self.data / "log", "wb")
        self.processes = []
        doors = self.start(["server", *flags], env)
        if agent:
            doors = self.start_agent(doors, usual, env)
        port = doors["consul"].rsplit(":", 1)[1].strip("/")
        self.attrs = {"NetworkSettings": {"Ports": {"8500/tcp": [{"HostPort": port}]}}}

    def start(self, words, env):
        """A weft, and where its doors are."""
        process = subprocess.Popen([os.environ["WEFT_BINARY"], *words], env=env,
                                   stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.processes.insert(0, process)
        line = process.stdout.readline()
        while line and not line.startswith("{"):
            line = process.stdout.readline()
        assert line, (self.data / "log").read_text()
        return json.loads(line)

    def start_agent(self, server, port, env):
        """The machine's own agent, once its node is in the catalog."""
        ask = urllib.request.Request(f"{server['api']}/v1/weft/tokens", b"{}", method="POST",
                                     headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(ask, timeout=60) as answer:
            token = json.load(answer)["token"]
        doors = self.start(["agent", "--server", server["xds"], "--name", "machine", "--data",
                            str(self.data / "agent"), "--token", token, "--announce",
                            "--consul-listen", f"127.0.0.1:{port}", "--dns-listen", "none"], env)
        nodes, end = f"http://{doors['consul']}/v1/status/leader", time.monotonic() + 60
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(nodes, timeout=5) as answer:
                    if len(json.load(answer)) > 0:
                        return doors
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.data / "log").read_text())

    def reload(self):
        pass

    def logs(self):
        return (self.data / "log").read_bytes()

    def stop(self):
        for process in self.processes:
            process.terminate()
            process.wait(90)
        assert b"panicked" not in self.logs()

    def remove(self):
        self.log.close()
        for process in self.processes:
            process.stdout.close()
        shutil.rmtree(self.data, ignore_errors=True)


def is_free(port, patience=2.0):
    """The last server's connections may linger for a moment."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return True
            except OSError:
                time.sleep(0.1)
    return False
