# SPDX-License-Identifier: Apache-2.0
"""TrafficPolicy through its whole life: what kubectl may say, what the status answers, and what a
gateway then does: limits, health checks, bodies. kubectl, curl's kin and a real server are the
peers."""

import json
import pathlib
import sys
import threading

import pytest
import requests

from mesh import until

sys.path.insert(0, str(pathlib.Path(__file__).parent / "faults"))
from drill import Origin, gateway  # noqa: E402


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """A gateway before two servers."""
    origins = [Origin(), Origin()]
    with gateway(tmp_path_factory.mktemp("edge"), origins) as (port, mesh):
        yield port, mesh, origins


def policy(name, **spec):
    return json.dumps({"apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
                       "metadata": {"name": name, "namespace": "drill"}, "spec": spec})


def apply(mesh, text, check=True):
    return mesh.kubectl("apply", "-f", "-", stdin=text, check=check)


def conditions(mesh, name):
    """By target's name: status, reason and message of Accepted."""
    text = mesh.kubectl("get", "tp", name, "-n", "drill", "-o", "json").stdout
    found = {}
    for ancestor in json.loads(text).get("status", {}).get("ancestors", []):
        assert ancestor["controllerName"] == "weft.dev/gateway"
        accepted = next(c for c in ancestor["conditions"] if c["type"] == "Accepted")
        found[ancestor["ancestorRef"]["name"]] = (accepted["status"], accepted["reason"],
                                                  accepted["message"])
    return found


def remove(mesh, *names):
    mesh.kubectl("delete", "tp", "-n", "drill", *names)


ROUTE = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "all"}


def test_the_schema_is_strict_and_kubectl_explains_it(edge):
    _, mesh, _ = edge
    told = mesh.kubectl("explain", "trafficpolicies.spec.rateLimits.by").stdout
    assert "What tells clients apart" in told and "Header: its name." in told, told
    for spec, why in [
        ({}, "targetRefs"),
        ({"targetRefs": []}, "targetRefs"),
        ({"targetRefs": [{"name": "origin"}], "rateLimit": []}, "rateLimit"),
        ({"targetRefs": [{"name": "a", "kind": "Pod"}]}, "Service"),
        ({"targetRefs": [ROUTE], "adaptiveConcurrency": {}}, "are about Services"),
        ({"targetRefs": [ROUTE], "overloadGate": "Disabled"}, "are about Services"),
        ({"targetRefs": [{"name": "origin"}],
          "rateLimits": [{"requests": 1, "by": [{"type": "Header"}]}]}, "header is set"),
        ({"targetRefs": [{"name": "origin"}],
          "healthCheck": {"type": "TCP", "path": "/"}}, "belong to type HTTP"),
        ({"targetRefs": [{"name": "origin"}],
          "healthCheck": {"interval": "1s", "timeout": "2s"}}, "must not be longer"),
        ({"targetRefs": [{"name": "origin"}], "timeouts": {"request": "soon"}}, "request"),
    ]:
        done = apply(mesh, policy("bad", **spec), check=False)
        assert done.returncode != 0 and why in done.stderr, (spec, done.stderr)


def test_the_status_says_what_counts_and_what_does_not(edge):
    _, mesh, _ = edge
    apply(mesh, policy("first", targetRefs=[{"name": "origin"}, {"name": "nobody"}],
                       outlier={"consecutiveErrors": 9}))
    until("it counts", lambda: conditions(mesh, "first").get("origin", [""])[0] == "True")
    assert conditions(mesh, "first")["nobody"][1] == "TargetNotFound"
    # Creation times have whole seconds; of equal ones the name decides.
    apply(mesh, policy("second", targetRefs=[{"name": "origin"}], outlier={}))
    until("it conflicts", lambda: conditions(mesh, "second").get("origin", ["", ""])[1]
          == "Conflicted")
    assert "TrafficPolicy drill/first" in conditions(mesh, "second")["origin"][2]
    remove(mesh, "first")
    until("it counts now", lambda: conditions(mesh, "second")["origin"][0] == "True")
    remove(mesh, "second")


def test_a_rate_limit_of_a_route_counts_each_client_by_header(edge):
    port, mesh, origins = edge
    url = f"http://127.0.0.1:{port}/"
    apply(mesh, policy("limit", targetRefs=[ROUTE], rateLimits=[
        {"requests": 5, "per": "1h", "by": [{"type": "Header", "header": "X-User"}]}]))

    def refused():
        got = requests.get(url, headers={"x-user": "probe"}, timeout=20)
        return [got] if got.status_code == 429 else None

    [got] = until("the limit is in effect", refused)
    assert got.headers["x-weft-flags"] == "RL" and got.text.startswith("RL ")
    assert int(got.headers["retry-after"]) > 600
    assert got.headers["ratelimit-policy"] == '"weft";q=5;w=3600'
    before = sum(o.hits() for o in origins)
    for user in ("ann", "bob"):
        codes = [requests.get(url, headers={"x-user": user}, timeout=20).status_code
                 for _ in range(7)]
        assert codes == [200] * 5 + [429] * 2, codes
    assert sum(o.hits() for o in origins) - before == 10
    told = mesh.weft("explain", url).stdout
    assert "5 per 3600 s by header x-user" in told and "TrafficPolicy drill/limit" in told, told
    remove(mesh, "limit")
    until("the limit is gone", lambda: requests.get(
        url, headers={"x-user": "ann"}, timeout=20).status_code == 200)


def test_a_gateways_body_limit(edge):
    port, mesh, _ = edge
    url = f"http://127.0.0.1:{port}/"
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "web"}
    apply(mesh, policy("small", targetRefs=[target], requestLimits={"bodyBytes": 1000}))
    until("it counts", lambda: requests.post(url, data=b"x" * 1001, timeout=20).status_code == 413)
    assert requests.post(url, data=b"x" * 1000, timeout=20).status_code == 200
    remove(mesh, "small")
    until("it is gone", lambda: requests.post(url, data=b"x" * 1001, timeout=20).status_code == 200)


def test_an_instance_that_fails_its_check_gets_nothing(tmp_path):
    """One server answers `/` and fails its check: only the check can know."""
    well, ill = Origin(), Origin(status=503)
    with gateway(tmp_path, [well, ill]) as (port, mesh):
        apply(mesh, policy("check", targetRefs=[{"name": "origin"}],
                           outlier={"consecutiveErrors": 0},
                           # What answers is well, also on a busy machine.
                           healthCheck={"path": "/check", "interval": "5s", "timeout": "5s"}))
        url = f"http://127.0.0.1:{port}/"

        def all_well():
            return all(requests.get(url, timeout=20).status_code == 200 for _ in range(20))

        until("only the well one is asked", all_well)
        # It stays so under many clients.
        codes = []

        def ask():
            with requests.Session() as session:
                codes.extend(session.get(url, timeout=20).status_code for _ in range(50))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert codes == [200] * 400, set(codes)
