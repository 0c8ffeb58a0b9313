# SPDX-License-Identifier: Apache-2.0
"""F13: a service that answers 503 to everything, and a route that asks for three retries: the
server gets at most 1.20 times what clients send."""

from drill import Figure, Load, Origin, gateway, undisturbed

ROUTE = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: drill}
spec:
  parentRefs: [{name: web}]
  rules:
    - retry: {attempts: 3, codes: [503]}
      backendRefs: [{name: origin, port: 80}]
"""


def times_of(load):
    return load.hits / len(load.done)


def run(whole, folder):
    rate, seconds = 300, (12 if whole else 5)
    origins = [Origin(status=503) for _ in range(2)]
    with gateway(folder, origins, ROUTE) as (port, _):
        def hits():
            return sum(o.hits() for o in origins)

        def storm():
            before = hits()
            load = Load(port, rate, seconds, connections=40).run()
            load.hits = hits() - before
            return load

        # A budget is of seconds: a storm that is held up for long has more of them.
        load = undisturbed(whole, storm, lambda load: 1.02 <= times_of(load) <= 1.20)
    times = times_of(load)
    assert load.count(503) == len(load.done), load.others(503)
    assert 1.02 <= times <= 1.20, f"{times:.3f} times"
    text = f"F13 retry storm: the server got {times:.3f} times {len(load.done)} requests"
    return Figure(text, f"{times:.2f}×")
