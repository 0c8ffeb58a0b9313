# SPDX-License-Identifier: Apache-2.0
"""weft's own commands against the running shop: what operators see, and that it is true."""

import json
import subprocess

import requests

from mesh import WEFT, sidecar_of, until

CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: demo}\ndata: {k: v}\n"


def offline(*args):
    return subprocess.run([str(WEFT), *args], capture_output=True, text=True, timeout=60)


def rows(table):
    """The lines of a printed table, as lists of words, without its header."""
    return [line.split() for line in table.splitlines()[1:] if line.strip()]


def test_status_and_top_show_every_service_and_no_problem(shop):
    def healthy():
        done = shop.weft("status", check=False)
        return done.returncode == 0 and "No problems." in done.stdout
    until("all is well", healthy)
    facts = json.loads(shop.weft("status", "-o", "json").stdout)
    ready = {s["service"]: (s["ready"], s["instances"]) for s in facts["services"]}
    for service, count in (("user", 2), ("product", 3), ("order", 2)):
        assert ready[service] == (count, count), facts
    for _ in range(50):
        requests.get(shop.gateway + "/users/1", timeout=20)
    def busy():
        top = {row[1]: row for row in rows(shop.weft("top", "--once").stdout)}
        requests.get(shop.gateway + "/users/1", timeout=20)
        return float(top["user"][4]) > 0
    until("top shows the load", busy)


def test_proxy_status_says_that_every_proxy_applied_what_it_was_sent(shop):
    def in_sync():
        facts = json.loads(shop.weft("proxy", "status", "-o", "json").stdout)["proxies"]
        return len(facts) == 8 and all(
            p["state"] == "in sync" and p["applied"] >= p["sent"] > 0 for p in facts)
    until("eight proxies are in sync", in_sync)
    nodes = {row[0] for row in rows(shop.weft("proxy", "status").stdout)}
    assert "gateway~shop~shop" in nodes and any(n.startswith("sidecar~shop~user-") for n in nodes)


def test_a_proxy_dumps_the_configuration_it_serves(shop):
    ip = sidecar_of(shop.ready_pods("shop", app="order")[0])
    dump = requests.get(f"http://{ip}:15000/config_dump", timeout=20).json()
    hosts = {h["host"]["name"]: h for h in dump["hosts"]}
    product = hosts["product.shop.svc.cluster.local"]
    assert any(r["origin"]["kind"] == "VirtualService" for r in product["routes"]), product
    assert {"v1", "v2"} <= {b["subset"] for b in product["backends"]}, product
    assert "PRIVATE KEY" not in json.dumps(dump)


def test_objects_are_applied_shown_described_and_deleted(empty, tmp_path):
    manifest = tmp_path / "a.yaml"
    manifest.write_text(CONFIG)
    file = str(manifest)
    assert "would be applied" in empty.weft("apply", "-f", file, "--dry-run").stdout
    assert empty.weft("get", "configmap", "a", "-n", "demo", check=False).returncode == 1
    assert "created" in empty.weft("apply", "-f", file).stdout
    shown = json.loads(empty.weft("get", "cm", "a", "-n", "demo", "-o", "json").stdout)
    assert shown["data"] == {"k": "v"}
    assert rows(empty.weft("get", "cm", "-A").stdout)[0][:2] == ["demo", "a"]
    # Several kinds at once, as with kubectl.
    both = rows(empty.weft("get", "cm,secrets,ns", "-A").stdout)
    assert ["demo", "configmap/a"] in [row[:2] for row in both], both
    assert "namespace/demo" in [cell for row in both for cell in row], both
    both = json.loads(empty.weft("get", "ns,cm", "-n", "demo", "-o", "json").stdout)
    assert both["kind"] == "List", both
    assert {("v1", "ConfigMap"), ("v1", "Namespace")} == {
        (item["apiVersion"], item["kind"]) for item in both["items"]}, both
    wrong = empty.weft("get", "cm,nonsense", check=False)
    assert wrong.returncode != 0 and '"nonsense" is no kind' in wrong.stderr, wrong
    described = empty.weft("describe", "cm", "a", "-n", "demo").stdout
    assert "ConfigMap" in described and "k: v" in described
    assert "deleted" in empty.weft("delete", "-f", file).stdout
    assert "not there" in empty.weft("delete", "-f", file).stdout


def test_kubectl_diff_shows_what_an_apply_would_change(empty):
    empty.kubectl("apply", "-f", "-", stdin=CONFIG)
    same = empty.kubectl("diff", "-f", "-", stdin=CONFIG, check=False)
    assert same.returncode == 0, same.stdout + same.stderr
    other = empty.kubectl("diff", "-f", "-", stdin=CONFIG.replace("k: v", "k: w"), check=False)
    assert other.returncode == 1 and "+  k: w" in other.stdout, other.stdout + other.stderr
    assert empty.kubectl("get", "cm", "a", "-n", "demo", "-o", "jsonpath={.data.k}").stdout == "v"


def test_help_schemas_completions_and_man_pages_need_no_server(tmp_path):
    topics = offline("help", "topics").stdout
    for name in ("start", "ports", "retries", "flags", "mtls"):
        assert name in topics
        assert offline("help", name).stdout.startswith("# ")
    schema = json.loads(offline("schema", "HTTPRoute").stdout)
    assert "rules" in json.dumps(schema)
    assert "HTTPRoute" in offline("schema").stdout
    for shell in ("bash", "zsh", "fish"):
        assert "weft" in offline("completions", shell).stdout
    assert offline("man", str(tmp_path / "man")).returncode == 0
    assert (tmp_path / "man/weft.1").read_text().startswith(".ie") or \
        ".TH" in (tmp_path / "man/weft.1").read_text()
