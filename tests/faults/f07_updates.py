# SPDX-License-Identifier: Apache-2.0
"""F7: a route is written a hundred times a second while requests go through it. None fails, no
update is refused, each is in use within 250 ms (p99), and the proxy does not grow."""

import bisect
import http.client
import json
import time

from drill import Load, Origin, gateway
from proxy import metrics_of, of_gateway, pss_kb

ROUTE = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: drill}
spec:
  parentRefs: [{name: web}]
  rules:
    - backendRefs: [{name: origin, port: 80}]
      filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier: {set: [{name: x-gen, value: "0"}]}
"""
PATH = "/apis/gateway.networking.k8s.io/v1/namespaces/drill/httproutes/all"


class Watching(Load):
    """Notes which update each answer shows."""

    def seen(self, head):
        gen = int(head.split("x-gen: ", 1)[1].split("\r\n", 1)[0])
        self.gens = getattr(self, "gens", [])
        self.gens.append((gen, time.monotonic()))


def updates(api, seconds, written):
    """Writes a hundred updates a second; when each was acknowledged."""
    address = api.split("//", 1)[1]
    connection = http.client.HTTPConnection(address, timeout=10)
    began = time.monotonic()
    # Where the server is slower there are fewer of them.
    while (n := len(written) + 1) <= 100 * seconds and time.monotonic() < began + seconds:
        pause = began + n / 100 - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        rule = {"backendRefs": [{"name": "origin", "port": 80}], "filters": [{
            "type": "ResponseHeaderModifier",
            "responseHeaderModifier": {"set": [{"name": "x-gen", "value": str(n)}]}}]}
        connection.request("PATCH", PATH, json.dumps({"spec": {"rules": [rule]}}),
                           {"content-type": "application/merge-patch+json"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        written.append(time.monotonic())
    return began


def refused(mesh):
    text, _ = metrics_of(mesh)
    return [line for line in text.splitlines() if line.startswith("weft_config_rejected_total")]


def run(whole, folder):
    rate, seconds = (2_000, 10) if whole else (300, 2)
    written, figures = [], {}
    with gateway(folder, [Origin()], ROUTE) as (port, mesh):
        pid = of_gateway(mesh)
        Load(port, rate, 2).run()
        before, held = refused(mesh), pss_kb(pid)

        def during():
            figures["began"] = updates(mesh.api, seconds, written)

        load = Watching(port, rate, seconds * 1.2 + 1.5).run(during=during)
        # What an update takes to be in use is what is left of it when it is acknowledged.
        grown = 100 * (pss_kb(pid) - held) / held
        same = refused(mesh) == before
    total, good = len(load.done), load.count(200)
    load.gens.sort(key=lambda seen: seen[1])
    best, newest, times = 0, [], []
    for gen, at in load.gens:
        if gen > best:
            best = gen
            newest.append((gen, at))
    known = [gen for gen, _ in newest]
    for n, at in enumerate(written, 1):
        place = bisect.bisect_left(known, n)
        assert place < len(known), f"update {n} of {len(written)} was never in use"
        times.append(max(0.0, newest[place][1] - at) * 1000)
    times.sort()
    p99 = times[int(len(times) * 0.99) - 1]
    pace = len(written) / (written[-1] - figures["began"])
    text = (f"F7 updates: {len(written)} at {pace:.0f} a second, {total - good} of {total} requests"
            f" failed, in use {p99:.0f} ms after they were acknowledged (p99), "
            f"{grown:+.1f} % memory")
    assert good == total, f"{text}: {load.others(200)}"
    assert same, f"{text}: {before}, and later more were refused"
    assert p99 <= (250 if whole else 1_000), text
    assert pace >= 80 or not whole, text
    assert grown <= (10 if whole else 20), text
    return text
