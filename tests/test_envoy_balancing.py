# SPDX-License-Identifier: Apache-2.0
"""weft beside Envoy itself: one bootstrap with several instances, and who of them gets what."""

import collections
import concurrent.futures
import contextlib
import http.client
import time

import pytest
from mesh import free_port, until
from standalone import Site
from test_envoy_beside import running
from test_envoy_bootstrap import address, bootstrap, host, listener, manager


class Instance(Site):
    """Says its name after `takes` seconds; its health is what it was made with."""

    def __init__(self, name, well=True, takes=0):
        super().__init__()
        self.name, self.well, self.takes = name, well, takes

    def answer(self, request):
        check = request.path == "/health"
        time.sleep(0 if check else self.takes)
        return 200 if self.well or not check else 503, self.name.encode(), {}


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
    with running(name, path, port):
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
                until(f"{name} asks {takers}", asked)


@pytest.mark.parametrize("weights", [(1, 9), (2, 2, 2, 6)])
def test_weights_hold_with_requests_at_a_time(tmp_path, weights):
    """Envoy's own figures are told: its least request leaves the weights as soon as it is busy."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(Instance(str(n), takes=0.02)) for n in range(len(weights))]
        one = [{"lb_endpoints": [endpoint(instance, load_balancing_weight=weight)
                                 for instance, weight in zip(made, weights, strict=True)]}]
        for name in ("envoy", "weft"):
            with serving(name, tmp_path, one, lb_policy="LEAST_REQUEST") as port:
                counts = at_a_time(port, 8, 120)
            print(name, weights, sorted(counts.items()))
            assert sum(counts.values()) == 960 and set(counts) == {str(n) for n in range(len(made))}
        for n, weight in enumerate(weights):
            share = counts[str(n)] / 960
            # Six deviations, were it drawn.
            assert abs(share - weight / sum(weights)) < 0.1, (weights, counts)


def place(instances, weight, down=0, **locality):
    """A group; so many of it are not well."""
    all_ = [endpoint(i, **({"health_status": "UNHEALTHY"} if n < down else {}))
            for n, i in enumerate(instances)]
    group = {"lb_endpoints": all_, **({"locality": locality} if locality else {})}
    return {**group, "load_balancing_weight": weight} if weight else group


@pytest.mark.parametrize("made", [
    # Where nobody of those with a weight is left, the others are asked.
    lambda a, b, c, d: [place([a], 100, 1, zone="a"), place([b], None, zone="b"),
                        place([c, d], None, zone="c")],
    # In panic all are asked, whatever the weights.
    lambda a, b, c, d: [place([a, b], 9, 2, zone="a"), place([c], 1, zone="b"),
                        place([d], None, 1, zone="c")],
    # Names are no patterns, and the last weight of a place counts.
    lambda a, b, c, _: [place([a], 1, region="*"), place([b], 3, region="x/y"),
                        place([c], 2, region="*")],
    # What is nowhere has no weight.
    lambda a, b, *_: [place([a], 1), place([b], 3, region="x")],
], ids=["nobody left", "panic", "names", "nowhere"])
def test_places_with_and_without_weights_get_what_envoy_gives_them(tmp_path, made):
    common = {"locality_weighted_lb_config": {}}
    with contextlib.ExitStack() as stack:
        groups = made(*(stack.enter_context(Instance(name)) for name in "abcd"))
        each = []
        for name in ("envoy", "weft"):
            with serving(name, tmp_path, groups, common_lb_config=common) as port:
                each.append(got(port, 240))
        envoy, weft = each
        assert set(weft) == set(envoy), each
        assert all(abs(weft[name] - envoy[name]) <= 24 for name in envoy), each
