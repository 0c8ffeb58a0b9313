# SPDX-License-Identifier: Apache-2.0
"""`weft explain` against the running shop and offline: what it says is what then happens."""

import json
import os
import re
import shlex
import subprocess

import requests

from mesh import ROOT, WEFT, until

FAULTY = """apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: user, namespace: shop}
spec:
  hosts: [user.shop.svc.cluster.local]
  http:
    - match: [{headers: {x-broken: {exact: "yes"}}}]
      fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
      route: [{destination: {host: user.shop.svc.cluster.local}}]
    - match: [{uri: {prefix: /old/}}]
      redirect: {uri: /new, redirectCode: 308}
    - route: [{destination: {host: user.shop.svc.cluster.local}}]
"""

POLICIES = """apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: user, namespace: shop}
spec:
  host: user
  trafficPolicy:
    loadBalancer: {simple: LEAST_REQUEST}
    connectionPool: {tcp: {connectTimeout: 1s}}
    outlierDetection: {consecutive5xxErrors: 7}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: user, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: user}]
  loadBalancer: {type: Random}
  timeouts: {request: 3s}
"""


def explain(mesh, *args):
    return json.loads(mesh.weft("explain", *args, "-o", "json").stdout)


def offline(*args):
    return subprocess.run([str(WEFT), "explain", *args], capture_output=True, text=True,
                          timeout=60, cwd=ROOT)


def test_a_request_to_the_gateway_is_explained_and_then_made(shop):
    url = shop.gateway + "/orders/1"
    said = explain(shop, url)
    assert said["proxy"] == "gateway~shop~shop"
    assert (said["route"]["object"], said["route"]["field"]) == (
        "HTTPRoute shop/orders", "spec.rules[1]"), said
    lost = {(row["object"], row["field"]): row["why"] for row in said["lost"]}
    assert lost[("HTTPRoute shop/orders", "spec.rules[0]")] == 'method is "GET", not = "POST"'
    assert lost[("HTTPRoute shop/users", "spec.rules[0]")] == (
        'path is "/orders/1", not prefix /users')
    steps = {(s["what"], s["object"], s["field"]): s["value"] for s in said["steps"]}
    key = ("request timeout", "HTTPRoute shop/orders", "spec.rules[1].timeouts.request")
    assert steps[key] == "10000 ms", steps
    def all_ready():
        rows = explain(shop, url)["candidates"]
        return len(rows) == 2 and all(r["why"] == "takes requests" for r in rows)
    until("both orders take requests", all_ready)
    assert explain(shop, url)["answer"]["kind"] == "forwarded"
    assert requests.get(url, timeout=20).status_code in (200, 404)
    said = explain(shop, "-X", "POST", url)
    assert said["route"]["field"] == "spec.rules[0]", said


def test_no_route_and_no_gateway_are_said(shop):
    said = explain(shop, shop.gateway + "/nothing")
    assert said["route"] is None and said["answer"]["status"] == 404, said
    assert said["answer"]["flag"] == "NR"
    assert requests.get(shop.gateway + "/nothing", timeout=20).status_code == 404
    done = shop.weft("explain", "http://localhost:1/", check=False)
    assert done.returncode == 1 and "no gateway listens on port 1" in done.stderr
    assert "--from shop/" in done.stderr
    done = shop.weft("explain", "http://user/", "--from", "nobody", check=False)
    assert done.returncode == 1 and "shop/order" in done.stderr, done.stderr


def test_a_call_inside_of_the_mesh_is_explained_by_its_clients_sidecar(shop):
    said = explain(shop, "http://product/shop.product.v1.Products/Reserve", "--from", "order",
                   "-X", "POST")
    assert said["proxy"].startswith("sidecar~shop~order-"), said
    assert said["route"]["object"] == "VirtualService shop/product", said
    assert [(s["weight"], s["percent"]) for s in said["shares"]] == [(90, 90.0), (10, 10.0)]
    assert said["shares"][0]["backend"].endswith("/v1"), said
    retries = [s for s in said["steps"] if s["what"] == "retries"]
    assert retries[0]["field"] == "spec.http[0].retries" and "every call" in retries[0]["value"]
    people = shop.weft("explain", "http://user/users/1", "--from", "shop/order").stdout
    assert "VirtualService shop/user spec.http[0]" in people and "Instances" in people, people


def test_the_running_proxy_is_asked_for_what_it_knows(shop):
    for words in [("http://user/users/1", "--from", "order"), (shop.gateway + "/users/1",)]:
        said = explain(shop, *words)
        assert said["live"] == {"asked": True, "held": True}, said
        assert said["generation"] > 0 and said["candidates"], said
        for row in said["candidates"]:
            assert row["live"]["in_flight"] >= 0 and "in flight" in row["state"], row
        people = shop.weft("explain", *words).stdout
        assert "state   as this proxy knows it now (generation " in people, people
        assert "By default" in people and "retry budget" in people, people


def test_a_value_names_the_field_that_set_it_and_no_other(tmp_path):
    (tmp_path / "rule.yaml").write_text(POLICIES)
    where = ("-f", str(ROOT / "examples/explain"), "-f", str(tmp_path))
    said = json.loads(offline(*where, "http://user/", "--from", "order", "-o", "json").stdout)
    by = {s["what"]: (s["object"], s["field"], s["value"]) for s in said["steps"]}
    rule, policy = "DestinationRule shop/user", "TrafficPolicy shop/user"
    assert by["connect timeout"] == (
        rule, "spec.trafficPolicy.connectionPool.tcp.connectTimeout", "1000 ms"), by
    assert by["ejection"][:2] == (rule, "spec.trafficPolicy.outlierDetection.consecutive5xxErrors")
    assert by["ejected at most"] == (
        rule, "spec.trafficPolicy.outlierDetection", "10 % of the instances"), by
    assert by["balancing"] == (policy, "spec.loadBalancer.type", "random"), by
    assert by["request timeout"] == (policy, "spec.timeouts.request", "3000 ms"), by
    for what in ["idle connections", "retry budget", "locality", "panic", "TLS", "idle timeout"]:
        assert by[what][:2] == ("weft's default", ""), (what, by)


def test_a_fault_that_is_applied_is_explained_and_happens(empty, tmp_path):
    # Offline the same objects are judged before anybody applies them.
    shop = ROOT / "examples/shop"
    files = [shop / "00-namespace.yaml", shop / "user.yaml", shop / "order.yaml"]
    (tmp_path / "faulty.yaml").write_text(FAULTY)
    where = [arg for f in [*files, tmp_path / "faulty.yaml"] for arg in ("-f", str(f))]
    done = offline(*where, "http://user/", "--from", "order", "-H", "X-Broken: yes", "-o", "json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    fault = [s for s in said["steps"] if s["what"] == "fault"][0]
    assert (fault["object"], fault["field"]) == (
        "VirtualService shop/user", "spec.http[0].fault"), said
    assert "100 % are answered 418" in fault["value"], fault
    assert len(said["candidates"]) == 2, said
    assert (said["answer"]["status"], said["answer"]["flag"]) == (418, "FI"), said
    said = json.loads(offline(*where, "http://user/old/x", "--from", "order", "-o", "json").stdout)
    assert (said["answer"]["status"], said["answer"]["text"]) == (308, "http://user/new"), said


def test_a_folder_is_explained_with_no_server_at_all():
    done = offline("-f", "examples/shop", "http://localhost:8000/users/1")
    assert done.returncode == 0, done.stderr
    assert "HTTPRoute shop/users spec.rules[0]" in done.stdout, done.stdout
    assert "matched path prefix /users" in done.stdout
    assert "takes requests" in done.stdout
    done = offline("-f", "examples/shop", "http://localhost:8000/users/1", "-H", "nonsense")
    assert done.returncode == 1 and "'Name: value'" in done.stderr


COMMAND = re.compile(r"```\n\$ (weft explain .*)\n((?:(?!```).*\n)*)```\n")


def test_the_documented_situations_are_what_is_printed():
    """Every `$ weft explain` of docs/explain.md is run again; UPDATE_DOCS=1 writes the page."""
    page = ROOT / "docs/explain.md"
    text = page.read_text()
    found = COMMAND.findall(text)
    assert len(found) == 11, [command for command, _ in found]

    def output(command):
        done = offline(*shlex.split(command)[2:])
        assert done.returncode == 0, (command, done.stderr)
        return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"

    if os.environ.get("UPDATE_DOCS"):
        page.write_text(COMMAND.sub(
            lambda m: f"```\n$ {m[1]}\n{output(m[1])}```\n", text))
        return
    for command, shown in found:
        assert output(command) == shown, command


def test_a_line_of_the_access_log_is_explained(shop):
    def lines():
        texts = [f.read_text(errors="replace") for f in shop.data.rglob("*.log")]
        # Whole ones: the last may be half written.
        return [line for text in texts
                for line in re.findall(r"(\[2\d{3}-\d\d-\d\dT.*)\n", text)]

    url = shop.gateway + "/users/1"
    asked = requests.get(url, headers={"x-request-id": "x"}, timeout=20)
    ident = asked.headers["x-request-id"]
    def of(node):
        found = [x for x in lines() if ident in x and f" node={node}" in x]
        return found[0] if found else None

    line = until("the gateway's line", lambda: of("gateway~shop~shop"))
    said = explain(shop, "--log", line)
    assert (said["then"]["path"], said["then"]["status"]) == ("/users/1", asked.status_code)
    assert said["then"]["node"] == "gateway~shop~shop", said["then"]
    assert said["then"]["route"] == "HTTPRoute shop/users spec.rules[0]"
    assert said["same_rule"] is True and said["now"]["proxy"] == "gateway~shop~shop", said
    assert said["then"]["generation"] <= said["now"]["generation"], said
    done = shop.weft("explain", "--log", line)
    assert done.stderr == "", "the line is no filter of logs"
    people = done.stdout
    assert "rule      HTTPRoute shop/users spec.rules[0]" in people, people
    inbound = until("the called pod's line", lambda: of("sidecar~shop~user-"))
    assert explain(shop, "--log", inbound)["now"] is None
    done = shop.weft("explain", "--log", "nonsense", check=False)
    assert done.returncode == 1 and "neither weft's text nor its JSON" in done.stderr
    assert shop.weft("explain", check=False).returncode == 2
