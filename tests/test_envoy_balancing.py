# SPDX-License-Identifier: Apache-2.0
"""weft beside Envoy itself: one bootstrap with several instances, and who of them gets what."""

import collections
import concurrent.futures
import contextlib
import http.client
import http.server
import threading
import time

import pytest
from mesh import free_port, until
from standalone import Proxy
from test_envoy_beside import Envoy
from test_envoy_bootstrap import address, bootstrap, host, listener, manager


class Instance:
    """Says its name after `takes` seconds; its health is what it was made with."""

    def __init__(self, name, well=True, takes=0):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                check = self.path == "/health"
                time.sleep(0 if check else takes)
                body = name.encode()
                self.send_response(200 if well or not check else 503)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def got(port, requests):
    """How many of so many requests, one behind the other, each instance got."""
    link, counts = http.client.HTTPConnection("127.0.0.1", port, timeout=20), collections.Counter()
    with contextlib.closing(link):
        for _ in range(requests):
            link.request("GET", "/")
            reply = link.getresponse()
            counts[reply.read().decode() if reply.status == 200 else reply.status] += 1
    return counts


def at_a_time(port, clients, requests):
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(lambda _: got(port, requests), range(clients)), collections.Counter())


@contextlib.contextmanager
def serving(name, folder, groups, **more):
    """Envoy, or weft, with groups of endpoints; the port where it listens."""
    port = free_port()
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]
    load = {"cluster_name": "up", "endpoints": groups}
    up = {"name": "up", "connect_timeout": "1s", "load_assignment": load, **more}
    path = bootstrap(folder / f"{name}.json", [listener("web", port, manager([host(routes)]))], [up])
    with Envoy(path, port) if name == "envoy" else Proxy("--envoy", path, ready=port):
        yield port


def endpoint(instance, **more):
    return {"endpoint": {"address": address(instance.port)}, **more}


CHECKS = [{"timeout": "2s", "interval": "0.3s", "unhealthy_threshold": 1, "healthy_threshold": 1,
           "no_traffic_interval": "0.3s", "http_health_check": {"path": "/health"}}]


@pytest.mark.parametrize(("near", "far", "panic", "takers"), [
    ("----", "++", 50, "far"),
    ("----", "+-", 50, "far that are well"),
    ("-+++", "++", 50, "near that are well"),
    ("----", "--", 50, "all"),
    ("-+++", "", 100, "near that are well"),
    ("--++", "", 100, "all"),
])
def test_a_group_that_died_leaves_its_part_to_those_behind_it(tmp_path, near, far, panic, takers):
    """Nobody is in panic while those that are well carry everything; 50 % is Envoy's usual."""
    with contextlib.ExitStack() as stack:
        made = [[stack.enter_context(Instance(f"{group} {n} {state}", well=state == "+"))
                 for n, state in enumerate(states)]
                for group, states in (("near", near), ("far", far))]
        groups = [{"priority": n, "lb_endpoints": [endpoint(i) for i in group]}
                  for n, group in enumerate(made) if group]
        names = {f"{group} {n} {state}" for group, states in (("near", near), ("far", far))
                 for n, state in enumerate(states)}
        group, _, well = takers.partition(" that are ")
        wanted = names if group == "all" else {
            name for name in names if name.startswith(group) and (not well or name.endswith("+"))}
        for name in ("envoy", "weft"):
            common = {"healthy_panic_threshold": {"value": panic}}
            with serving(name, tmp_path, groups, health_checks=CHECKS,
                         common_lb_config=common) as port:
                def asked(port=port):
                    return set(got(port, 60)) == wanted
                until(f"{name} asks {takers}", asked, 20)


@pytest.mark.parametrize("weights", [(1, 9), (2, 2, 2, 6)])
def test_weights_hold_with_requests_at_a_time(tmp_path, weights):
    """Envoy's own figures are told: its least request leaves the weights as soon as it is busy."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(Instance(str(n), takes=0.02)) for n in range(len(weights))]
        one = [{"lb_endpoints": [endpoint(instance, load_balancing_weight=weight)
                                 for instance, weight in zip(made, weights, strict=True)]}]
        for name in ("envoy", "weft"):
            with serving(name, tmp_path, one, lb_policy="LEAST_REQUEST") as port:
                counts = at_a_time(port, 8, 60)
            print(name, weights, sorted(counts.items()))
            assert sum(counts.values()) == 480 and set(counts) == {str(n) for n in range(len(made))}
        for n, weight in enumerate(weights):
            share = counts[str(n)] / 480
            assert abs(share - weight / sum(weights)) < 0.1, (weights, counts)
