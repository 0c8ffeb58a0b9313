# SPDX-License-Identifier: Apache-2.0
"""F18: the machine's clock is set back an hour, on an hour, and on 400 days, under load. Requests
do not fail, and nothing that waits for a time ends early or late: blocking queries, heartbeats of
checks, sessions. Up to an hour in either direction two proxies go on to shake hands by mutual TLS.
With the last step certificates that were issued before are over: who asks gets new ones, the
server makes its own anew, and what ended is told in the log, in `weft status` and in the metrics.
libfaketime sets the clock of weft and its proxies; the drill's own stays right."""

import base64
import concurrent.futures

import os
import platform
import subprocess
import sys
import threading
import time

import requests

from drill import HERE, ROUTE, Load, Origin, gateway

sys.path.insert(0, str(HERE.parent))
from mesh import ROOT, until  # noqa: E402

FAKE = (ROOT / f"target/peers/root/usr/lib/{platform.machine()}-linux-gnu/faketime"
        / "libfaketimeMT.so.1")
STEPS = {"-1 h": -3600, "+1 h": 3600, "+400 d": 400 * 86400}
# Requests at the same time, so that proxies open connections of their own to each other.
BURST = 40

# Behind a sidecar, and a certificate of the user's that lives for 90 days.
MESHED = """
---
apiVersion: v1
kind: Secret
metadata: {{name: old, namespace: drill}}
type: kubernetes.io/tls
data: {{tls.crt: {cert}, tls.key: {key}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: meshed, namespace: drill}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: meshed}}}}
  template:
    metadata: {{labels: {{app: meshed}}}}
    spec:
      containers:
        - name: main
          image: none
          command: [{python}, {backend}, $(POD_IP), $(PORT), ms=100]
          ports: [{{name: http, containerPort: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {{name: meshed, namespace: drill}}
spec:
  selector: {{app: meshed}}
  ports: [{{name: http, port: 80, targetPort: http}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: meshed, namespace: drill}}
spec:
  parentRefs: [{{name: web}}]
  rules:
    - matches: [{{path: {{type: PathPrefix, value: /meshed}}}}]
      backendRefs: [{{name: meshed, port: 80}}]
"""


class Waits:
    """Things that wait for a time while the clock is set; each notes how long it was, and what it
    should have been."""

    def __init__(self, consul, slack):
        # What a busy machine may add, where the clock is set off by an hour and more.
        self.consul, self.slack = consul, slack
        self.wrong, self.threads, self.noted = [], [], []

    def start(self, wait, *args):
        def whole():
            try:
                wait(*args)
            except Exception as error:  # whatever it is: a wait that was cut short shows nothing
                self.wrong.append(f"{wait.__name__}{args}: {error!r}")
        thread = threading.Thread(target=whole, daemon=True)
        thread.start()
        self.threads.append(thread)

    def note(self, what, took, least, most):
        self.noted.append(what)
        if not least <= took <= most + self.slack:
            self.wrong.append(f"{what} took {took:.1f} s, not {least} to {most}")

    def query(self, seconds):
        index = requests.get(f"{self.consul}/v1/catalog/nodes", timeout=20).headers["X-Consul-Index"]
        began = time.monotonic()
        requests.get(f"{self.consul}/v1/catalog/nodes?index={index}&wait={seconds}s", timeout=60)
        self.note("a blocking query", time.monotonic() - began, seconds, seconds * 17 / 16)

    def heartbeat(self, name, seconds):
        body = {"Name": name, "Check": {"TTL": f"{seconds}s", "Status": "passing"}}
        requests.put(f"{self.consul}/v1/agent/service/register", json=body, timeout=20)
        # Its time begins somewhere between these two.
        sent = time.monotonic()
        requests.put(f"{self.consul}/v1/agent/check/pass/service:{name}", timeout=20)
        began = time.monotonic()

        def critical():
            checks = requests.get(f"{self.consul}/v1/health/checks/{name}", timeout=20).json()
            return checks[0]["Status"] == "critical"
        until("the heartbeat is missed", critical, seconds + 30, every=0.05)
        self.note("a missed heartbeat", time.monotonic() - sent, seconds - 0.2,
                  seconds + began - sent)

    def kept(self, name, stop):
        """A session and a check that are kept alive live."""
        made = requests.put(f"{self.consul}/v1/session/create", json={"TTL": "60s"}, timeout=20)
        session = made.json()["ID"]
        body = {"Name": name, "Check": {"TTL": "40s", "Status": "passing"}}
        requests.put(f"{self.consul}/v1/agent/service/register", json=body, timeout=20)
        while not stop.wait(1):
            beats = [requests.put(f"{self.consul}/v1/session/renew/{session}", timeout=20),
                     requests.put(f"{self.consul}/v1/agent/check/pass/service:{name}", timeout=20)]
            checks = requests.get(f"{self.consul}/v1/health/checks/{name}", timeout=20).json()
            if not all(b.ok for b in beats) or checks[0]["Status"] != "passing":
                self.wrong.append(f"{name} ended though it was kept alive: {checks}")
        self.noted.append("what was kept alive")

    def join(self):
        for thread in self.threads:
            thread.join(90)
        assert not self.wrong, self.wrong[:5]
        assert not any(thread.is_alive() for thread in self.threads), "a wait does not end"
        assert len(self.noted) == len(self.threads), f"some noted nothing: {self.noted}"


def leaf(consul):
    return requests.get(f"{consul}/v1/agent/connect/ca/leaf/web", timeout=60).json()


def is_valid(cert, stamp, folder):
    """Whether a certificate is valid by a clock that is set so."""
    path = folder / "leaf.pem"
    path.write_text(cert)
    end = subprocess.run(["openssl", "x509", "-in", path, "-noout", "-enddate"], check=True,
                         capture_output=True, text=True).stdout.strip().split("=", 1)[1]
    over = time.mktime(time.strptime(end, "%b %d %H:%M:%S %Y %Z")) - time.timezone
    return over > time.time() + stamp


def objects(folder):
    """The route to the origins, and what else there is."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / "old.key", "-out",
                    folder / "old.pem", "-days", "90", "-subj", "/CN=old"], check=True,
                   capture_output=True)
    inside = {"cert": "old.pem", "key": "old.key"}
    inside = {k: base64.b64encode((folder / v).read_bytes()).decode() for k, v in inside.items()}
    return ROUTE + MESHED.format(python=sys.executable, backend=HERE / "backend.py", **inside)


def shake_hands(port):
    """Many requests at once through two proxies; what else but 200 there was."""
    url = f"http://127.0.0.1:{port}/meshed"
    with concurrent.futures.ThreadPoolExecutor(BURST) as pool:
        said = list(pool.map(lambda _: requests.get(url, timeout=20).status_code, range(BURST)))
    return [status for status in said if status != 200]


def alarms(mesh):
    """Certificates that `weft status` tells of, with the reason; and the server's own figures."""
    problems = mesh.get("/v1/weft/status").json()["problems"]
    told = {p["object"].removeprefix("certificate "): p["reason"] for p in problems
            if p["object"].startswith("certificate ")}
    rows = [line.rsplit(" ", 1) for line in mesh.get("/metrics").text.splitlines()
            if line.startswith("weft_certificate")]
    return told, {name: int(value) for name, value in rows}


def over(mesh):
    """After 400 days: what ended is told, and what is weft's own is new."""
    def told():
        reasons, figures = alarms(mesh)
        ends = figures['weft_certificate_not_after_seconds{certificate="server"}']
        assert reasons["secret drill/old"].startswith("ended 3"), reasons
        assert figures["weft_certificates_alarmed"] == len(reasons), figures
        assert figures["weft_certificate_alarms_total"] >= 2, figures
        assert ends > time.time() + STEPS["+400 d"], "the server's own is over"
        assert not {"server", "authority"} & set(reasons), reasons
        return True
    until("what ended is told and what is weft's own is new", told)
    assert "certificate secret drill/old" in mesh.weft("status", check=False).stdout
    said = [line for line in mesh.log_text().splitlines() if "a certificate needs care" in line]
    for certificate in ("secret drill/old", "server"):
        assert any(certificate in line and "ended" in line for line in said), said


def run(whole, folder):
    if not FAKE.exists():
        raise AssertionError("no libfaketime: run tests/peers.sh")
    folder.mkdir(parents=True, exist_ok=True)
    stamp, wait, slack = folder / "clock", *((20, 3) if whole else (4, 10))
    stamp.write_text("+0\n")
    origins = [Origin() for _ in range(2)]
    fake = {"LD_PRELOAD": str(FAKE), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_TIMESTAMP_FILE": str(stamp)}
    os.environ.update(fake)
    try:
        with gateway(folder, origins, objects(folder)) as (port, mesh):
            [os.environ.pop(name) for name in fake]
            until("two proxies lead there", lambda: shake_hands(port) == [])
            assert alarms(mesh)[0] == {}, "an alarm before anything happened"
            refused = []
            consul = f"http://127.0.0.1:{mesh.doors['consul'].rsplit(':', 1)[1]}"
            first, stop, all_waits = leaf(consul), threading.Event(), []
            kept = Waits(consul, slack)
            kept.start(kept.kept, "kept", stop)

            def steps():
                for number, seconds in enumerate(STEPS.values()):
                    waits = Waits(consul, slack)
                    waits.start(waits.query, wait)
                    waits.start(waits.heartbeat, f"late{number}", wait)
                    time.sleep(wait / 4)
                    stamp.write_text(f"{seconds:+d}\n")
                    if seconds < 86400:
                        refused.extend(shake_hands(port))
                        # The user's own is an hour too young, if anything.
                        until("that is told", lambda: {
                            name: why[:16] for name, why in alarms(mesh)[0].items()} == (
                                {"secret drill/old": "is not valid yet"} if seconds < 0 else {}))
                    waits.join()
                    all_waits.append(waits)
                stop.set()
                kept.join()
            load = Load(port, 300 if whole else 60, (3 * wait + 8)).run(during=steps)
            over(mesh)
            renewed = leaf(consul)
            assert not is_valid(first["CertPEM"], STEPS["+400 d"], folder), "it lives for too long"
            assert is_valid(renewed["CertPEM"], STEPS["+400 d"], folder), "a leaf that is over"
    finally:
        [os.environ.pop(name, None) for name in fake]
    total = len(load.done)
    text = (f"F18 the clock set {', '.join(STEPS)}: {total - load.count(200)} of {total} failed, "
            f"{sum(len(w.noted) for w in all_waits)} waits of {wait} s neither early nor late, "
            f"{len(refused)} of {2 * BURST} failed by mutual TLS an hour off, what ended was told, "
            "an expired leaf was replaced")
    assert not refused, f"{text}: {refused[:5]}"
    assert len(all_waits) == len(STEPS), "not all steps were taken"
    assert load.count(200) == total, f"{text}: {load.others(200)}"
    return text
