# SPDX-License-Identifier: Apache-2.0
"""A small application as people write it for Consul with python-consul 1.1: it registers, keeps its
check alive, elects one leader, follows its configuration and finds its peers. The only line that
tells weft from Consul is the address."""

import os
import sys
import threading
import time

import consul

HOST, PORT = "127.0.0.1", int(os.environ["CONSUL_PORT"])  # the one line

NAME, ID, MINE = "worker", sys.argv[1], int(sys.argv[2])
client = consul.Consul(host=HOST, port=PORT)


def say(*words):
    print(ID, *words, flush=True)


client.agent.service.register(NAME, service_id=ID, address="127.0.0.1", port=MINE,
                              tags=["v1"], check=consul.Check.ttl("2s"))


def beat():
    while True:
        client.agent.check.ttl_pass("service:" + ID, "alive")
        time.sleep(0.5)


def follow():
    index = None
    while True:
        index, pair = client.kv.get("worker/config", index=index, wait="10s")
        if pair is not None:
            say("config", pair["Value"].decode())


threading.Thread(target=beat, daemon=True).start()
threading.Thread(target=follow, daemon=True).start()

session = client.session.create(name=ID, ttl=10, lock_delay=0, behavior="delete")
leads, index, peers = False, None, None
while True:
    client.session.renew(session)
    if not leads and client.kv.put("worker/leader", ID, acquire=session):
        leads = True
        say("leads")
    index, nodes = client.health.service(NAME, index=index, wait="1s", passing=True)
    found = sorted(n["Service"]["ID"] for n in nodes)
    if found != peers:
        peers = found
        say("peers", *found)
