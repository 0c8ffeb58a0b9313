# SPDX-License-Identifier: Apache-2.0
"""F28: bodies that are small on the wire and large, or deep, once read: gzip of 1,000 to 1 and JSON of
32 to 100,000 levels, at every door that reads bodies. They are refused or taken as bytes; the server
lives and has not grown by what they would have been."""

import gzip
import io

import requests

from drill import Origin, gateway
from proxy import anonymous_kb, of_gateway


def bomb(mib):
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as file:
        for _ in range(mib):
            file.write(bytes(1 << 20))
    return out.getvalue()


def run(whole, folder):
    mib = 1024 if whole else 128
    packed = bomb(mib)
    with gateway(folder, [Origin()]) as (port, mesh):
        server = mesh.process.pid
        before = {pid: anonymous_kb(pid) for pid in (server, of_gateway(mesh))}
        consul = f"http://127.0.0.1:{mesh.consul_port}"
        objects = f"{mesh.api}/api/v1/namespaces/drill/configmaps"
        statuses = []
        for depth in (32, 1_000, 100_000):
            deep = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":' + b'{"a":' * depth + b"1" \
                + b"}" * depth + b"}"
            for method, url in [("POST", objects), ("PUT", f"{consul}/v1/agent/service/register"),
                                ("PUT", f"{consul}/v1/txn"),
                                ("POST", f"http://127.0.0.1:{port}/deep")]:
                got = requests.request(method, url, data=deep, timeout=60,
                                       headers={"content-type": "application/json"})
                statuses.append(got.status_code)
                through = str(port) in url
                assert (got.status_code == 200) == through, (url, depth, got.status_code, got.text[:99])
        for method, url in [("POST", objects), ("PUT", f"{consul}/v1/kv/bomb"),
                            ("PUT", f"{consul}/v1/snapshot"), ("POST", f"http://127.0.0.1:{port}/")]:
            try:
                got = requests.request(method, url, data=packed, timeout=60, headers={
                    "content-type": "application/json", "content-encoding": "gzip"})
                statuses.append(got.status_code)
            except requests.ConnectionError:
                statuses.append(0)  # closed in the middle of a body that is too large
        assert mesh.process.poll() is None
        grown = max(anonymous_kb(pid) - kb for pid, kb in before.items())
        assert requests.get(f"{mesh.api}/livez", timeout=60).status_code == 200
    assert not any(s >= 500 and s != 507 for s in statuses), statuses
    assert grown < 48 * 1024, f"{grown} kB more"
    return (f"F28 bombs: {len(packed) // 1024} kB of gzip for {mib} MiB, JSON of up to 100,000 levels:"
            f" answers {sorted(set(statuses))}, {grown} kB more")
