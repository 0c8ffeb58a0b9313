# SPDX-License-Identifier: Apache-2.0
"""S3: two machines' agents for ten minutes without a server. What was true last is answered all
the time, over HTTP and DNS, and nothing else; what needs the server says so; what is registered
with a machine meanwhile is kept, checked and answered there, and is everybody's once the server is
back."""

import sys
import time

import dns.rcode
import requests

from drill import HERE

sys.path.insert(0, str(HERE.parent))
from mesh import until  # noqa: E402
from test_agents_consul import Agent, Server, consul  # noqa: E402

SERVICES = 5
EVERY = 0.25


class Asked:
    """Everything that may be asked of a machine, compared with what was true last."""

    def __init__(self, agent, truth):
        self.agent, self.truth, self.count, self.wrong = agent, truth, 0, []
        self.session = requests.Session()

    def get(self, path):
        return self.session.get(self.agent.url(path), timeout=60)

    def see(self, what, found, expected):
        self.count += 1
        if found != expected:
            self.wrong.append(f"{self.agent.name} {what}: {found}, not {expected}")

    def names(self, service):
        """Addresses, or what the answer's code is: over UDP and TCP the same."""
        udp, tcp = (self.told(service, tcp) for tcp in (False, True))
        return udp if udp == tcp else (udp, tcp)

    def told(self, service, tcp):
        answer = self.agent.resolve(f"{service}.service.consul", tcp=tcp)
        if answer.rcode() != dns.rcode.NOERROR:
            return dns.rcode.to_text(answer.rcode())
        return {r.address for rrset in answer.answer for r in rrset}

    def health(self, service):
        answer = self.get(f"/v1/health/service/{service}?passing=1")
        if answer.status_code != 200:
            return answer.text
        return {entry["Service"]["Address"] for entry in answer.json()}

    def round(self):
        services = self.get("/v1/catalog/services")
        names = set(services.json()) if services.status_code == 200 else services.text
        self.see("the list of services", names, {*self.truth, "consul"})
        for service, addresses in self.truth.items():
            self.see(f"the health of {service}", self.health(service), addresses)
            self.see(f"the name of {service}", self.names(service), addresses)

    def misses_it(self):
        self.round()
        answer = self.get("/v1/health/service/s0?passing=1")
        return answer.headers["X-Consul-KnownLeader"] == "false"

    def alone(self):
        """The same without a server, and what is not answered then."""
        self.round()
        leader = self.get("/v1/health/service/s0?passing=1").headers["X-Consul-KnownLeader"]
        self.see("whether a leader is known", leader, "false")
        refused = self.get("/v1/kv/key")
        self.see("KV", (refused.status_code, refused.text.split("(")[0].strip()[:17]),
                 (500, "No cluster leader"))
        self.see("the name of a stranger", self.names("stranger"), "SERVFAIL")


def begin(agents):
    """Services on both machines, held up by heartbeats of an hour."""
    truth = {}
    for n in range(SERVICES):
        for number, agent in enumerate(agents):
            address = f"10.{number}.0.{n}"
            agent.client.agent.service.register(f"s{n}", port=80, address=address)
            beat = consul.Check.ttl("2h")
            agent.client.agent.check.register(f"beat{n}", beat, service_id=f"s{n}")
            agent.client.agent.check.ttl_pass(f"beat{n}")
            truth.setdefault(f"s{n}", set()).add(address)
    return truth


def run(whole, folder):
    seconds = 600 if whole else 8
    folder.mkdir(parents=True, exist_ok=True)
    with Server([], folder / "data") as server, Agent(server, folder, "m1") as one, \
            Agent(server, folder, "m2") as other:
        truth = begin([one, other])
        asked = [Asked(one, truth), Asked(other, truth)]

        def known():
            for side in asked:
                side.wrong.clear()
                side.round()
            return not any(side.wrong for side in asked)
        until("everybody knows everything", known, every=0.5)
        for side in asked:
            side.count = 0
        server.kill()
        began = time.monotonic()
        # Of the machine itself, in the middle of it: kept, checked, answered there.
        assert one.client.agent.service.register("late", port=81, address="10.0.1.1",
                                                 check=consul.Check.ttl("2h"))
        one.client.agent.check.ttl_pass("service:late")
        one.client.agent.check.register("short", consul.Check.ttl("2s"), service_id="late")
        one.client.agent.check.ttl_pass("short")
        # What was true is answered from the first moment; who is away is known a little later.
        for side in asked:
            until("it knows that there is no server", lambda: side.misses_it())
        while time.monotonic() - began < seconds:
            for side in asked:
                side.alone()
            assert not any(side.wrong for side in asked), [side.wrong[:5] for side in asked]
            time.sleep(EVERY)
        own = one.client.agent.checks()
        assert own["service:late"]["Status"] == "passing", own["service:late"]
        assert own["short"]["Status"] == "critical", "a heartbeat was missed, and nobody said so"
        gone = time.monotonic() - began
        server.start()
        began = time.monotonic()

        def told():
            entries = asked[1].get("/v1/health/service/late").json()
            return {check["CheckID"]: check["Status"] for check in entries[0]["Checks"]}
        until("what was registered meanwhile is everybody's",
              lambda: told().get("short") == "critical")
        back = time.monotonic() - began
        one.client.agent.service.deregister("late")
        until("everybody knows everything again", known, every=0.5)
        text = (f"S3 agents {gone:.0f} s without a server: {sum(s.count for s in asked):,} answers, "
                f"none wrong; what was registered meanwhile was everybody's {back:.1f} s after the "
                "server was there again")
        for agent in (one, other):
            assert "panicked" not in agent.log_file.read_text(), text
    return text
