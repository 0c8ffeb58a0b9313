# SPDX-License-Identifier: Apache-2.0
"""F12: five times what a server can do (20 at a time, 100 ms each, a line without end), clients
that wait for one second. First with nothing configured: nothing is refused, and the newest requests
go first. Then with `adaptiveConcurrency: {}`, and with a limit. In the short form the bars are lower:
the first half second, in which overload is noticed, weighs more, and other tests may share the
machine.
"""

from drill import ROUTE, Figure, Load, Origin, gateway, undisturbed

POLICY = """
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: origin, namespace: drill}
spec:
  targetRefs: [{name: origin}]
  %s
"""


def run(whole, folder):
    # Without a gate only those of the first moment are answered: a tenth of all.
    seconds = 12
    # Half as many of both in the short form: the clients must keep up on a busy machine themselves.
    places = 20 if whole else 10
    figures, cells = [], []
    for name, policy, least in [
        ("untuned", "", 80 if whole else 40),
        ("adaptiveConcurrency: {}", "adaptiveConcurrency: {}", 80 if whole else 50),
        ("connections.requests: 40", f"connections: {{requests: {2 * places}}}", 98 if whole else 80),
    ]:
        origin = Origin(places=places, ms=100)
        objects = ROUTE + (POLICY % policy if policy else "")
        with gateway(folder / name[:3], [origin], objects) as (port, _):
            def goodput_of(load):
                return 100 * load.count(200) / (10 * places * seconds)

            load = undisturbed(whole, lambda: Load(port, 50 * places, seconds, deadline=1.0).run(),
                               lambda load: goodput_of(load) >= least)
            hits = origin.hits()
        goodput = goodput_of(load)
        cells.append(f"{goodput:.0f} %")
        rejected = load.percentile(50, 503)
        figures.append(f"{name}: goodput {goodput:.0f} %, p99 of answers "
                       f"{load.percentile(99, 200):.0f} ms, refusals take {rejected:.1f} ms, "
                       f"{hits} of {len(load.done)} reached the server")
        assert goodput >= least, f"{figures[-1]}; wanted {least} %; {load.others(200)}"
        # What is worked on takes 100 ms, what waits longer.
        assert rejected <= (5 if whole else 50) or not load.count(503), figures[-1]
        if whole and "requests" in policy:
            # Twice as many as it works on at a time, 100 ms each, and half as much again.
            assert load.percentile(99, 200) <= 300, figures[-1]
    cell = f"{cells[0]}, {cells[2]} with a limit"
    return Figure("F12 overload 5x: " + "; ".join(figures), cell)
