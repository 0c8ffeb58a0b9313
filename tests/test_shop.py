# SPDX-License-Identifier: Apache-2.0
"""The shop under load and disturbance: nothing fails, nothing is lost, nothing stays behind."""

import json
import os
import re
import signal
import subprocess
import threading
import time

import requests

from mesh import LOAD, alive, pss_kb, sidecar_of, until
from conftest import start_shop


def load(mesh, seconds, rps=300, extra=()):
    """Starts the load client; its report comes from `finish`."""
    ids = mesh.data.parent / f"ids-{time.monotonic_ns()}"
    command = [str(LOAD), "--url", mesh.gateway, "--rps", str(rps), "--seconds", str(seconds),
               "--ids", str(ids), *extra]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.ids = ids
    return process


def finish(process, seconds=120):
    out, _ = process.communicate(timeout=seconds)
    return json.loads(out)


def books(mesh, ids):
    """Every 201 exactly once in the order database, and no stock lost."""
    data = mesh.data.parent / "shop/.data"
    done = subprocess.run(
        [str(LOAD), "--check", "--order-db", str(data / "order.db"),
         "--product-db", str(data / "product.db"), "--ids", str(ids), "--settle", "300"],
        capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def failures(report):
    return json.dumps(report, indent=1)[:6000]


def test_the_shop_answers_through_the_gateway(shop):
    answer = requests.get(shop.gateway + "/users/1", timeout=20)
    assert answer.status_code == 200 and answer.json()["id"] == 1
    assert answer.headers["x-request-id"]
    assert requests.get(shop.gateway + "/products", timeout=20).status_code == 200
    order = requests.post(shop.gateway + "/orders", timeout=20,
                          json={"user": 1, "product": 2, "quantity": 1})
    assert order.status_code == 201, order.text
    none = requests.get(shop.gateway + "/nothing", timeout=20)
    assert none.status_code == 404 and none.headers["x-weft-flags"] == "NR"


def test_ready_within_its_budget(shop):
    # 3 s is the budget, which `cargo xtask budgets` measures where nothing else runs; a busy CI
    # machine has some times that.
    assert shop.ready_after < 20, shop.ready_after


def test_memory_within_its_budget(shop):
    def small():
        sizes = {}
        for pid in shop.tree():
            command = open(f"/proc/{pid}/cmdline").read().split("\0")
            if command[1:2] == ["proxy"] and "sidecar~" in " ".join(command):
                sizes[pid] = pss_kb(pid)
        assert len(sizes) == 7 and max(sizes.values()) <= 12 * 1024, sizes
        return True
    # What starting needed is given back to the system within some seconds.
    until("each sidecar at rest has 12 MB", small)
    until("the server at rest has 40 MB", lambda: pss_kb(shop.process.pid) <= 40 * 1024)


def disturb(mesh, log):
    """The disturbances of the issue, one after the other."""
    victim = mesh.ready_pods("shop", app="product", version="v1")[0]["metadata"]["name"]
    os.kill(mesh.app_pid(victim, "shop-product"), signal.SIGKILL)
    log.append(f"killed {victim}")
    time.sleep(2)  # the load goes on meanwhile; this is its pace, not a wait for something
    frozen = mesh.ready_pods("shop", app="user")[0]["metadata"]["name"]
    pid = mesh.app_pid(frozen, "shop-user")
    os.kill(pid, signal.SIGSTOP)
    log.append(f"froze {frozen}")
    time.sleep(5)
    os.kill(pid, signal.SIGCONT)
    mesh.kubectl("scale", "deployment/order", "-n", "shop", "--replicas=4")
    until("four orders", lambda: len(mesh.ready_pods("shop", app="order")) == 4)
    log.append("order scaled to 4")
    time.sleep(2)
    mesh.kubectl("scale", "deployment/order", "-n", "shop", "--replicas=2")
    until("two orders", lambda: len(mesh.pods("shop", app="order")) == 2)
    log.append("order scaled to 2")
    mesh.kubectl("apply", "-f", str(mesh.data.parent / "shop/changes/all-to-v2.yaml"))
    log.append("split changed")
    return victim


def test_no_request_fails_while_instances_die_freeze_scale_and_move(tmp_path):
    mesh = start_shop(tmp_path)
    try:
        process = load(mesh, 30)
        log = []
        victim = disturb(mesh, log)
        report = finish(process)
        assert report["failed"] == 0, f"{log}\n{failures(report)}"
        books(mesh, process.ids)
        until("the killed instance is ready again",
              lambda: victim in {p["metadata"]["name"] for p in mesh.ready_pods("shop")})
        mesh.kubectl("apply", "-f", str(tmp_path / "shop/changes/ninety-ten.yaml"))
        pod = next(p for p in mesh.pods("shop") if p["metadata"]["name"] == victim)
        assert pod["status"]["containerStatuses"][0]["restartCount"] >= 1

        def served():
            before = served_by(mesh, pod)
            for _ in range(20):
                requests.get(mesh.gateway + "/products", timeout=20)
            return served_by(mesh, pod) > before
        until("it takes traffic again", served)
    finally:
        mesh.stop()
    assert "panicked" not in mesh.log_text()


def served_by(mesh, pod):
    text = requests.get(f"http://{sidecar_of(pod)}:15020/metrics", timeout=20).text
    rows = re.findall(r'^istio_requests_total\{([^}]*)\} ([0-9.e+]+)', text, re.M)
    return sum(float(n) for labels, n in rows if 'reporter="destination"' in labels)


def test_without_the_declaration_only_calls_in_flight_at_the_kill_may_fail(tmp_path):
    mesh = start_shop(tmp_path)
    try:
        mesh.kubectl("apply", "-f", str(tmp_path / "shop/changes/not-declared.yaml"))
        until("every proxy knows", lambda: all_in_sync(mesh))
        process = load(mesh, 8)
        time.sleep(2)
        victim = mesh.ready_pods("shop", app="product", version="v1")[0]["metadata"]["name"]
        os.kill(mesh.app_pid(victim, "shop-product"), signal.SIGKILL)
        report = finish(process)
        # 300 requests a second, a few milliseconds each: what is in flight at one instance. On a
        # busy machine they take longer, and more of them are.
        slow = max(kind["p99_ms"] for kind in report["kinds"].values())
        assert report["failed"] <= max(10, 300 * slow / 1000 / 3), failures(report)
        # All of them were under way at one moment.
        begun = [one["at_ms"] for one in report["failures"]]
        ended = [one["at_ms"] + one["latency_ms"] for one in report["failures"]]
        assert max(begun, default=0) <= min(ended, default=0) + max(100, slow), failures(report)
        assert report["sent"] > 1000, failures(report)
        books(mesh, process.ids)
    finally:
        mesh.stop()


def all_in_sync(mesh):
    rows = mesh.get("/v1/weft/proxies").json()["proxies"]
    return rows and all(row["state"] == "in sync" for row in rows)


def test_an_order_killed_between_reserve_and_write_loses_no_stock(tmp_path):
    marker = tmp_path / "crash"

    def crash_once(name, text):
        env = f"- {{ name: SHOP_CRASH_AFTER_RESERVE_ONCE, value: {marker} }}"
        return re.sub(r"\n( *)- \{ name: PORT,", rf"\n\1{env}\g<0>", text) \
            if name == "order.yaml" else text
    mesh = start_shop(tmp_path, edit=crash_once)
    try:
        process = load(mesh, 5, rps=50)
        finish(process)
        assert marker.exists(), "no order process crashed"
        until("it was restarted", lambda: sum(
            p["status"]["containerStatuses"][0]["restartCount"]
            for p in mesh.pods("shop", app="order")) >= 1)
        until("the books hold again", lambda: books(mesh, process.ids))
    finally:
        mesh.stop()


def test_ctrl_c_ends_every_child_and_a_second_up_continues(tmp_path):
    mesh = start_shop(tmp_path)
    order = requests.post(mesh.gateway + "/orders", timeout=20,
                          json={"user": 1, "product": 2, "quantity": 1}).json()
    uid = mesh.get("/api/v1/namespaces/shop/services/user").json()["metadata"]["uid"]
    tree = mesh.tree()
    assert len(tree) >= 1 + 8 + 7
    mesh.stop()
    # Who was killed is gone when the kernel has come round to it.
    until("every child has ended", lambda: [pid for pid in tree if alive(pid)] == [], seconds=30)
    mesh.start()
    try:
        assert mesh.get("/api/v1/namespaces/shop/services/user").json()["metadata"]["uid"] == uid
        found = requests.get(f"{mesh.gateway}/orders/{order['id']}", timeout=20)
        assert found.status_code == 200, found.text
    finally:
        mesh.stop()


def test_kill_minus_9_loses_nothing_acknowledged_and_leaves_no_orphan(tmp_path):
    mesh = start_shop(tmp_path)
    acknowledged, stop = [], threading.Event()

    def write():
        n = 0
        while not stop.is_set():
            body = {"metadata": {"name": f"c{n}"}, "data": {"n": str(n)}}
            try:
                answer = requests.post(mesh.api + "/api/v1/namespaces/shop/configmaps", json=body,
                                       timeout=20)
            except requests.RequestException:
                return
            if answer.status_code == 201:
                acknowledged.append(n)
            n += 1
    writer = threading.Thread(target=write)
    writer.start()
    until("some writes", lambda: len(acknowledged) > 100)
    tree = mesh.tree()
    mesh.process.kill()
    mesh.process.wait()
    stop.set()
    writer.join()
    until("no orphan", lambda: [p for p in tree if alive(p)] == [])
    mesh.start()
    try:
        found = {c["metadata"]["name"]
                 for c in mesh.get("/api/v1/namespaces/shop/configmaps").json()["items"]}
        missing = [n for n in acknowledged if f"c{n}" not in found]
        assert missing == []
        assert requests.get(mesh.gateway + "/users/1", timeout=20).status_code == 200
    finally:
        mesh.stop()
    assert "panicked" not in mesh.log_text()
