# SPDX-License-Identifier: Apache-2.0
"""F2: an instance is taken out of its service under load. Nothing fails, and a second after the
change it gets no new request."""

import time

import requests

from drill import Load, Origin, gateway


def run(whole, folder):
    # A busy machine has longer to say it, and all of it lasts longer.
    rate, seconds, settled = (1000, 12, 1.0) if whole else (200, 9, 4.0)
    origins = [Origin() for _ in range(3)]
    late = {}
    with gateway(folder, origins) as (port, mesh):
        def leave():
            url = (f"{mesh.api}/apis/discovery.k8s.io/v1/namespaces/drill/endpointslices/origin-1")
            requests.delete(url, timeout=60).raise_for_status()
            time.sleep(settled)
            before = origins[1].hits()
            time.sleep(seconds / 3)
            late["picks"] = origins[1].hits() - before

        load = Load(port, rate, seconds).run(during=leave)
    total = len(load.done)
    assert load.count(200) == total, f"failed: {load.others(200)}"
    assert late["picks"] == 0, f"{late['picks']} requests {settled:.0f} s after it left"
    return f"F2 leave: 0 of {total} failed, {late['picks']} new requests {settled:.0f} s after"
