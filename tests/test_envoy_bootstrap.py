# SPDX-License-Identifier: Apache-2.0
"""`weft proxy --envoy`: bootstraps of Envoy are served, and what weft does not do is said."""

import http.client
import json
import pathlib
import re
import socket
import subprocess

import pytest
from mesh import WEFT, free_port, until
from standalone import Origin, Proxy, certificates, curl

ROOT = pathlib.Path(__file__).parents[1]
TYPES = "type.googleapis.com/envoy."


def listener(name, port, filters, tls=None):
    chain = {"filters": filters}
    if tls:
        chain["transport_socket"] = tls
    return {"name": name, "address": address(port), "filter_chains": [chain]}


def address(port, host="127.0.0.1"):
    return {"socket_address": {"address": host, "port_value": port}}


def manager(routes, filters=(), **more):
    router = {"@type": TYPES + "extensions.filters.http.router.v3.Router"}
    http = [{"name": n, "typed_config": {"@type": TYPES + t, **c}} for n, t, c in filters]
    hcm = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    config = {
        "@type": TYPES + hcm,
        "stat_prefix": "x",
        "http_filters": http + [{"name": "router", "typed_config": router}],
        "route_config": {"virtual_hosts": routes},
        **more,
    }
    return [{"name": "hcm", "typed_config": config}]


def host(routes, domains=("*",), **more):
    return {"name": "v", "domains": list(domains), "routes": routes, **more}


def cluster(name, *ports, **more):
    endpoints = [{"endpoint": {"address": address(p)}} for p in ports]
    load = {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
    return {"name": name, "connect_timeout": "1s", "load_assignment": load, **more}


def tls(kind, certs, name, authority=False, **more):
    pair = {
        "certificate_chain": {"filename": str(certs / f"{name}.pem")},
        "private_key": {"filename": str(certs / f"{name}.key")},
    }
    common = {"tls_certificates": [pair]}
    if authority:
        common["validation_context"] = {"trusted_ca": {"filename": str(certs / "ca.pem")}}
    config = {"@type": TYPES + f"extensions.transport_sockets.tls.v3.{kind}", **more}
    return {"name": "tls", "typed_config": {**config, "common_tls_context": common}}


def bootstrap(path, listeners, clusters, admin=None, **more):
    static = {"listeners": listeners, "clusters": clusters}
    whole = {"static_resources": static, **more}
    if admin:
        whole["admin"] = {"address": address(admin)}
    path.write_text(json.dumps(whole))
    return path


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("certs"))


def test_routes_redirects_answers_rewrites_and_rbac(tmp_path):
    port, admin = free_port(), free_port()
    rbac = {
        "rules": {
            "policies": {
                "readers": {
                    "permissions": [
                        {"header": {"name": ":method", "string_match": {"exact": "GET"}}}
                    ],
                    "principals": [{"any": True}],
                }
            }
        }
    }
    edit = {"header": {"key": "x-said", "value": "by-route"}}
    routes = [
        {"match": {"prefix": "/old"}, "redirect": {"prefix_rewrite": "/new", "response_code": "FOUND"}},
        {"match": {"path": "/direct"}, "direct_response": {"status": 418, "body": {"inline_string": "tea"}}},
        {
            "match": {"prefix": "/v1/", "headers": [{"name": "x-a", "string_match": {"suffix": "z"}}]},
            "route": {"cluster": "one", "prefix_rewrite": "/"},
            "response_headers_to_add": [edit],
        },
        {
            "match": {"safe_regex": {"regex": "/[a-z]+/split"}},
            "route": {"weighted_clusters": {"clusters": [
                {"name": "one", "weight": 1}, {"name": "two", "weight": 3}]}},
        },
        {"match": {"prefix": "/"}, "route": {"cluster": "two"}},
    ]
    filters = [("rbac", "extensions.filters.http.rbac.v3.RBAC", rbac)]
    with Origin("one") as one, Origin("two") as two:
        path = bootstrap(
            tmp_path / "b.json",
            [listener("in", port, manager([host(routes)], filters))],
            [cluster("one", one.port), cluster("two", two.port)],
            admin,
        )
        with Proxy("--envoy", path, ready=port) as proxy:
            base = f"http://127.0.0.1:{port}"
            status, headers, _ = curl(f"{base}/old/x?q=1")
            assert (status, headers["location"]) == (302, f"{base}/new/x?q=1")
            assert curl(f"{base}/direct")[::2] == (418, "tea")
            status, headers, body = curl(f"{base}/v1/thing", "-H", "x-a: xyz")
            assert (status, headers["x-said"], body) == (200, "by-route", "one GET /thing")
            assert curl(f"{base}/v1/thing")[2] == "two GET /v1/thing"
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            names = []
            for _ in range(400):
                link.request("GET", "/ab/split")
                names.append(link.getresponse().read().split()[0])
            link.close()
            # 3 in 4; eight deviations of what is drawn.
            assert 230 <= names.count(b"two") <= 370, names
            assert curl(f"{base}/", "-X", "POST")[0] == 403
            words = [WEFT, "explain", "-f", path, "-X", "POST", f"{base}/"]
            run = subprocess.run(words, capture_output=True, text=True)
            assert "403" in run.stdout and "no policy allows it" in run.stdout, run.stdout
            info = json.loads(curl(f"http://127.0.0.1:{admin}/server_info")[2])
            assert info["state"] == "LIVE"
            assert proxy.stop() == 0


def test_tls_in_and_out_with_certificates_of_files(tmp_path, certs):
    plain, secure, mutual, raw = (free_port() for _ in range(4))
    everything = [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]
    out = {**everything[0], "route": {"cluster": "mutual"}}
    tcp = "extensions.filters.network.tcp_proxy.v3.TcpProxy"
    proxy_all = [{"name": "tcp", "typed_config": {"@type": TYPES + tcp, "cluster": "up"}}]
    server = tls("DownstreamTlsContext", certs, "server")
    strict = tls("DownstreamTlsContext", certs, "server", True, require_client_certificate=True)
    client = tls("UpstreamTlsContext", certs, "client", True, sni="localhost")
    with Origin("up") as up:
        path = bootstrap(
            tmp_path / "b.json",
            [
                listener("plain", plain, manager([host([out])])),
                listener("secure", secure, manager([host(everything)]), server),
                listener("mutual", mutual, manager([host(everything)]), strict),
                listener("raw", raw, proxy_all, server),
            ],
            [cluster("up", up.port), cluster("mutual", mutual, transport_socket=client)],
        )
        with Proxy("--envoy", path, ready=plain):
            ca = ("--cacert", str(certs / "ca.pem"))
            assert curl(f"https://localhost:{secure}/a", *ca)[2] == "up GET /a"
            assert curl(f"https://localhost:{raw}/b", *ca)[2] == "up GET /b"
            assert curl(f"https://localhost:{mutual}/c", *ca)[0] == 0, "no certificate, no entry"
            # Plain in, mutual TLS to our own listener, plain to the origin.
            assert curl(f"http://127.0.0.1:{plain}/d")[2] == "up GET /d"


@pytest.mark.parametrize("action, name, passes", [
    ("DENY", "localhost", False),
    ("DENY", "CN=client", False),
    ("DENY", "CN=somebody", True),
    ("ALLOW", "CN=client", True),
    ("ALLOW", "CN=somebody", False),
])
def test_rbac_judges_clients_by_the_names_of_their_certificates(
    tmp_path, certs, action, name, passes
):
    port = free_port()
    who = {"authenticated": {"principal_name": {"exact": name}}}
    policy = {"permissions": [{"any": True}], "principals": [who]}
    rules = {"rules": {"action": action, "policies": {"p": policy}}}
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    hcm = manager([host([answer])], [("rbac", "extensions.filters.http.rbac.v3.RBAC", rules)])
    mutual = tls("DownstreamTlsContext", certs, "server", True)
    path = bootstrap(tmp_path / "b.json", [listener("in", port, hcm, mutual)], [])
    shown = ("--cert", str(certs / "client.pem"), "--key", str(certs / "client.key"))
    with Proxy("--envoy", path, ready=port):
        url, ca = f"https://localhost:{port}/", ("--cacert", str(certs / "ca.pem"))
        for version in ("--http1.1", "--http2"):
            assert curl(url, version, *ca, *shown)[0] == (200 if passes else 403)
        # Whoever shows nothing has no name.
        assert curl(url, *ca)[0] == (200 if action == "DENY" else 403)


def test_http2_and_names_and_hashing(tmp_path):
    port = free_port()
    policy = {"hash_policy": [{"header": {"header_name": "x-user"}}]}
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "ring", **policy}}]
    with Origin("a") as a, Origin("b") as b, Origin("c") as c:
        ring = cluster("ring", a.port, b.port, c.port, type="STRICT_DNS", lb_policy="RING_HASH")
        for endpoint in ring["load_assignment"]["endpoints"][0]["lb_endpoints"]:
            endpoint["endpoint"]["address"]["socket_address"]["address"] = "localhost"
        ring["dns_lookup_family"] = "V4_ONLY"
        path = bootstrap(tmp_path / "b.json", [listener("in", port, manager([host(routes)]))], [ring])
        with Proxy("--envoy", path, ready=port):
            url = f"http://127.0.0.1:{port}/"
            until("the names are found", lambda: curl(url)[0] == 200)
            seen = set()
            # By chance one of three has none of 36; of 100 that is never seen.
            for user in range(100):
                if user >= 36 and len(seen) == 3:
                    break
                ask = ("--http2-prior-knowledge", "-H", f"x-user: {user}")
                first, again = curl(url, *ask)[2], curl(url, *ask)[2]
                assert first == again, "the same user, the same endpoint"
                seen.add(first.split()[0])
            assert seen == {"a", "b", "c"}


def test_everything_that_is_not_supported_is_said_at_once_and_nothing_starts(tmp_path):
    port = free_port()
    lua = ("lua", "extensions.filters.http.lua.v3.Lua", {"inline_code": "x"})
    route = {"match": {"prefix": "/"}, "route": {"cluster": "up", "auto_host_rewrite": True}}
    hcm = manager([host([route])], [lua], tracing={})
    up = cluster("up", 1, lb_policy="CLUSTER_PROVIDED", lb_polcy="ROUND_ROBIN")
    path = bootstrap(tmp_path / "b.json", [listener("in", port, hcm)], [up])
    run = subprocess.run([WEFT, "proxy", "--envoy", path], capture_output=True, text=True)
    assert run.returncode == 1
    manager_at = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
    for where in [
        f"{manager_at}.http_filters[0].typed_config",
        f"{manager_at}.tracing",
        f"{manager_at}.route_config.virtual_hosts[0].routes[0].route.auto_host_rewrite",
        "static_resources.clusters[0].lb_policy",
        "static_resources.clusters[0].lb_polcy",
    ]:
        assert re.search(rf"^  {re.escape(where)}: .*--allow-unsupported", run.stderr, re.M), where
    with Proxy("--envoy", path, "--allow-unsupported", ready=port) as proxy:
        assert proxy.stop() == 0


def test_what_is_wrong_is_refused_whatever_is_allowed(tmp_path):
    port = free_port()
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "nobody", "timeout": "soon"}}]
    asks = {"permissions": [{"metadata": {}}], "principals": [{"any": True}]}
    rbac = {"rules": {"action": "DENY", "policies": {"p": asks}}}
    hcm = manager([host(routes)], [("rbac", "extensions.filters.http.rbac.v3.RBAC", rbac)])
    path = bootstrap(tmp_path / "b.json", [listener("in", port, hcm)], [])
    words = [WEFT, "proxy", "--envoy", path, "--allow-unsupported"]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 1
    assert 'route.cluster: no cluster has the name "nobody"' in run.stderr
    assert 'route.timeout: expected a duration such as "5s"' in run.stderr
    assert "permissions[0].metadata: weft's policies do not ask this" in run.stderr
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_the_example_is_valid_and_explained():
    path = ROOT / "examples/envoy.yaml"
    run = subprocess.run([WEFT, "proxy", "--envoy", path, "--check"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    url = "http://shop.localhost:10000/api/users"
    run = subprocess.run([WEFT, "explain", "-f", path, url], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "api" in run.stdout
