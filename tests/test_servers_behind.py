# SPDX-License-Identifier: Apache-2.0
"""A client whose requests go to several servers in turn, as behind a balancer: what one of them
acknowledged is so for the others at once, also for writes that would have nothing to do in an older
state."""

import itertools
import json

import requests

from test_servers import etcd, server  # noqa: F401

ROUNDS = 100


def test_a_client_of_several_servers_gets_what_each_acknowledged(tmp_path, etcd):  # noqa: F811
    with server(tmp_path, etcd, "a") as a, server(tmp_path, etcd, "b") as b:
        session, wrong = requests.Session(), []

        def ask(at, method, path, body=None):
            return session.request(method, f"{at.consul}/v1/{path}", data=body, timeout=60)

        def wants(what, is_so):
            if not is_so:
                wrong.append(what)

        for n, (one, other) in zip(range(ROUNDS), itertools.cycle([(a, b), (b, a)])):
            key = f"kv/gone/{n}"
            ask(one, "PUT", key, "1")
            assert ask(other, "DELETE", key).json() is True
            wants("deleted", ask(one, "GET", f"{key}?consistent").status_code == 404)

            key = f"kv/kept/{n}"
            ask(one, "PUT", key, "1")
            ask(other, "GET", f"{key}?consistent")
            ask(one, "PUT", key, "2")
            assert ask(other, "PUT", key, "1").json() is True
            wants("written", ask(one, "GET", f"{key}?raw&consistent").text == "1")

            made = ask(one, "PUT", "session/create", json.dumps({"LockDelay": "0s"})).json()["ID"]
            wants("renewed", ask(other, "PUT", f"session/renew/{made}").status_code == 200)
            assert ask(one, "PUT", f"{key}?acquire={made}", "x").json() is True
            wants("released", ask(other, "PUT", f"{key}?release={made}", "x").json() is True)

            made = ask(one, "PUT", "session/create", "{}").json()["ID"]
            assert ask(other, "PUT", f"session/destroy/{made}").json() is True
            wants("destroyed", ask(one, "GET", f"session/info/{made}?consistent").json() == [])
        counts = {what: wrong.count(what) for what in set(wrong)}
        assert not wrong, f"acknowledged and not so, of {ROUNDS}: {counts}"
