# SPDX-License-Identifier: Apache-2.0
"""Clients that block on an index, as their sources have it: consul-template's views, and the three
watches of Spring Cloud Consul (keys, the catalog's services, events of its bus). Each waits until
something that it shows has changed, is not woken by anything else, and survives the server.

Paths, parameters, what becomes of an index, and the pauses between requests are those of
consul-template's `watch/view.go` and of Spring's `ConfigWatch`, `ConsulCatalogWatch` and
`EventService` with its client `consul-api`."""

import base64
import threading

import pytest
import requests

from mesh import until
from test_store import Server


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path / "server") as running:
        yield running
    assert "panicked" not in running.log_text()


def put(server, path, body=None, **json):
    url = f"{server.consul}/v1/{path}"
    answer = requests.put(url, data=body, json=json or None, timeout=20)
    assert answer.ok, f"{path}: {answer.status_code} {answer.text}"
    return answer


class Watch:
    """A client in a thread of its own, until it is told to end."""

    def __init__(self, server):
        self.server, self.over, self.wrong, self.asks = server, threading.Event(), [], 0
        self.session = requests.Session()
        self.thread = threading.Thread(target=self.guarded, daemon=True)

    def guarded(self):
        try:
            while not self.over.is_set():
                self.turn()
        except Exception as error:
            if not self.over.is_set():
                self.wrong.append(repr(error))

    def ask(self, path):
        """One request for as long as it blocks; nothing when its server is gone."""
        self.asks += 1
        try:
            answer = self.session.get(self.server.consul + path, timeout=100)
        except requests.RequestException:
            # Both wait before they try again.
            self.over.wait(0.25)
            return None
        if answer.status_code >= 500:
            self.over.wait(0.25)
            return None
        return answer

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        assert not self.wrong, self.wrong


class View(Watch):
    """A dependency of a template. `data` is what is rendered, `renders` how often that changed,
    `answers` how many requests came back."""

    def __init__(self, server, path, shown):
        super().__init__(server)
        self.path, self.shown = path, shown
        self.index, self.stale = 0, True
        self.data, self.renders, self.answers = None, 0, 0

    def turn(self):
        path = self.path + ("&" if "?" in self.path else "?")
        path += (f"index={self.index}&" if self.index else "") + ("stale=&" if self.stale else "")
        answer = self.ask(path + "wait=60000ms")
        if answer is None:
            return
        assert answer.status_code in (200, 404), answer.text
        self.answers += 1
        index = int(answer.headers["X-Consul-Index"])
        assert index > 0, "clients spin on an index of 0"
        if self.stale and int(answer.headers["X-Consul-LastContact"]) > 2000:
            self.stale = False
            return
        self.stale = True
        if index == self.index:
            return
        if index < self.index:
            self.index = 0
            return
        self.index = index
        data = self.shown(answer.json()) if answer.status_code == 200 else "nothing"
        if data != self.data:
            # Who sees the newer data finds it counted.
            self.renders += 1
            self.data = data


def value(pairs):
    return [base64.b64decode(p["Value"] or "").decode() for p in pairs]


def instances(entries):
    return sorted(e["Service"]["ID"] for e in entries)


def test_views_of_consul_template_render_what_changed_and_nothing_else(server):
    put(server, "agent/service/register", Name="web", ID="web-1", Port=80, Check={"TTL": "600s"})
    put(server, "agent/service/register", Name="other", ID="other-1", Port=81)
    put(server, "kv/tpl/one", "1")
    views = {
        "services": View(server, "/v1/catalog/services", sorted),
        "web": View(server, "/v1/health/service/web?passing=1", instances),
        "other": View(server, "/v1/health/service/other?passing=1", instances),
        "catalog": View(server, "/v1/catalog/service/web", lambda x: [s["ServiceID"] for s in x]),
        "nodes": View(server, "/v1/catalog/nodes", lambda x: [n["Node"] for n in x]),
        "one": View(server, "/v1/kv/tpl/one", value),
        "missing": View(server, "/v1/kv/tpl/missing", value),
        "tree": View(server, "/v1/kv/tpl?recurse=", value),
    }
    for view in views.values():
        view.__enter__()
    until("all have something", lambda: all(v.renders for v in views.values()))

    count = {name: view.renders for name, view in views.items()}

    def changes(change, **wanted):
        """These have this to show afterwards, each rendered once for it, and no others are."""
        change()
        for name, data in wanted.items():
            until(f"{name} shows it", lambda: views[name].data == data)
            count[name] += 1
        assert {name: view.renders for name, view in views.items()} == count

    assert views["web"].data == [] and views["missing"].data == "nothing"
    changes(lambda: put(server, "agent/check/pass/service:web-1"), web=["web-1"])
    changes(lambda: put(server, "kv/tpl/one", "2"), one=["2"], tree=["2"])
    changes(lambda: put(server, "kv/tpl/missing", "3"), missing=["3"], tree=["3", "2"])
    changes(lambda: put(server, "agent/service/register", Name="web", ID="web-2", Port=82),
            web=["web-1", "web-2"], catalog=["web-1", "web-2"])
    changes(lambda: put(server, "agent/service/register", Name="new", Port=83),
            services=["consul", "new", "other", "web"])
    changes(lambda: put(server, "agent/check/fail/service:web-1"), web=["web-2"])
    url = f"{server.consul}/v1/kv/tpl/missing"
    changes(lambda: requests.delete(url, timeout=20), missing="nothing", tree=["2"])
    # An index moves only for what its query sees: one answer each, the next request waits.
    assert {name: views[name].answers for name in ("other", "nodes")} == {"other": 1, "nodes": 1}

    # A server that is gone, and one that came back: nothing is rendered anew for that.
    data = {name: view.data for name, view in views.items()}
    server.stop()
    asks = {name: view.asks for name, view in views.items()}
    until("all notice", lambda: all(view.asks > asks[name] for name, view in views.items()))
    server.start()
    changes(lambda: put(server, "kv/tpl/new", "x"), tree=["x", "2"])
    data["tree"] = ["x", "2"]
    assert {name: view.data for name, view in views.items()} == data
    assert {name: view.renders for name, view in views.items()} == count
    changes(lambda: put(server, "kv/tpl/one", "4"), one=["4"], tree=["x", "4"])
    changes(lambda: put(server, "agent/service/deregister/web-2"), web=[], catalog=["web-1"])
    changes(lambda: put(server, "agent/service/deregister/other-1"), other=[],
            services=["consul", "new", "web"])
    for view in views.values():
        view.__exit__()


class ConfigWatch(Watch):
    """Spring's: the first context's request waits for 55 s, the others' for 1 s; a second between
    two rounds. `refreshed` is what an application is told."""

    def __init__(self, server, *contexts):
        super().__init__(server)
        self.refreshed, self.rounds = [], 0
        # As the property sources found them when the application began.
        self.indexes = {c: int(requests.get(f"{server.consul}/v1/kv/{c}?recurse", timeout=20)
                               .headers["X-Consul-Index"]) for c in contexts}

    def turn(self):
        wait = 55
        for context, index in list(self.indexes.items()):
            answer = self.ask(f"/v1/kv/{context}?recurse&wait={wait}s&index={index}")
            wait = 1
            if answer is None or answer.status_code == 404:
                continue
            new = int(answer.headers["X-Consul-Index"])
            if new != index:
                if new not in self.indexes.values():
                    self.refreshed.append(context)
                self.indexes[context] = new
        self.rounds += 1
        self.over.wait(1)


class CatalogWatch(Watch):
    """Spring's: each answer is a heartbeat whose state is the index."""

    def __init__(self, server):
        super().__init__(server)
        self.index, self.beats = -1, []

    def turn(self):
        at = "" if self.index == -1 else f"&index={self.index}"
        answer = self.ask(f"/v1/catalog/services?wait=2s{at}")
        if answer is not None:
            self.index = int(answer.headers["X-Consul-Index"])
            self.beats.append((self.index, sorted(answer.json())))
            self.over.wait(1)


class Bus(Watch):
    """Spring's channel adapter: events after the one whose id is the last index are new."""

    def __init__(self, server):
        super().__init__(server)
        self.heard, self.rounds, self.last = [], 0, None
        self.last = self.index_of(self.ask("/v1/event/list"))

    def turn(self):
        at = "" if self.last is None else f"&index={self.last}"
        answer = self.ask(f"/v1/event/list?wait=2s{at}")
        if answer is None:
            return
        self.heard += [base64.b64decode(e["Payload"]).decode() for e in self.new(answer.json())]
        self.last = self.index_of(answer)
        self.rounds += 1

    def new(self, events):
        for place, event in enumerate(events):
            if wait_index(event["ID"]) == self.last:
                return events[place + 1:]
        return events

    @staticmethod
    def index_of(answer):
        return int(answer.headers["X-Consul-Index"])


def wait_index(ident):
    """What consul-api, and Consul's own `consul watch`, make of an event's id."""
    digits = ident.replace("-", "")
    return int(digits[:16], 16) ^ int(digits[16:], 16)


def test_an_application_of_spring_cloud_consul_is_told_once_of_each_change(server):
    put(server, "kv/config/app/greeting", "hello")
    put(server, "kv/config/application/colour", "red")
    put(server, "event/fire/springCloudBus", "from before")
    with ConfigWatch(server, "config/app/", "config/application/") as keys, \
            CatalogWatch(server) as catalog, Bus(server) as bus:
        until("the catalog is known", lambda: catalog.beats)
        # What others write does not end its wait.
        put(server, "kv/unrelated", "x")
        put(server, "agent/service/register", Name="app", ID="app-1", Port=8080,
            Check={"TTL": "600s"})
        until("the new service is seen", lambda: catalog.beats[-1][1] == ["app", "consul"])
        seen = len(catalog.beats)
        put(server, "agent/check/pass/service:app-1")
        until("further heartbeats come", lambda: len(catalog.beats) > seen + 1)
        assert len({index for index, _ in catalog.beats[seen - 1:]}) == 1, \
            "a check is nothing of the names of services"
        assert keys.rounds == 0 and keys.refreshed == []
        put(server, "kv/config/app/greeting", "hallo")
        until("it is refreshed", lambda: keys.refreshed == ["config/app/"])
        until("the other context was asked", lambda: keys.rounds == 1)
        put(server, "kv/config/application/colour", "blue")
        put(server, "kv/config/app/greeting", "salut")
        until("both are refreshed", lambda: keys.refreshed[1:] == [
            "config/app/", "config/application/"])
        # Each event once, and none from before.
        assert bus.heard == []
        for n in range(5):
            put(server, "event/fire/springCloudBus", f"event {n}")
            until("it is heard", lambda: len(bus.heard) > n)
        rounds = bus.rounds
        until("quiet rounds bring nothing", lambda: bus.rounds > rounds + 1)
        assert bus.heard == [f"event {n}" for n in range(5)]
    assert keys.refreshed == ["config/app/", "config/app/", "config/application/"]
