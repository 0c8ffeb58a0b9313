# SPDX-License-Identifier: Apache-2.0
"""Workloads as kubectl drives them: rollouts and undo, sets, jobs, schedules, autoscaling on the
mesh's own request rate, disruption budgets."""

import contextlib
import json
import os
import signal
import threading
import time

import pytest
import requests

from mesh import Mesh, free_port, until

SERVER = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = os.environ.get("VERSION", "0").encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

address = (os.environ["POD_IP"], int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""

POD = """
    metadata:
      labels: {app: web}
      annotations: {weft.dev/command: python3 server.py}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: main
          image: web:1
          ports: [{name: http, containerPort: 8080}]
          env: [{name: VERSION, value: "1"}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 20}
"""

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: demo}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:""" + POD

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
"""

ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: demo}
spec:
  gatewayClassName: weft
  addresses: [{type: IPAddress, value: 127.0.0.1}]
  listeners: [{name: http, protocol: HTTP, port: PORT}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: demo}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"""


@pytest.fixture
def demo(tmp_path):
    """A weft with a namespace, a program, and a gateway to a service without pods yet."""
    folder = tmp_path / "m"
    folder.mkdir()
    port = free_port()
    (folder / "server.py").write_text(SERVER)
    (folder / "a.yaml").write_text(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n---" + SERVICE + "---"
        + ROUTE.replace("PORT", str(port)))
    extra = os.environ.get("WEFT_UP_FLAGS", "").split()
    mesh = Mesh(folder, tmp_path / "data", gateway_port=port, extra=extra).start()
    mesh.k = lambda *args, **kw: mesh.kubectl("-n", "demo", *args, **kw).stdout
    mesh.apply = lambda text: mesh.k("apply", "-f", "-", stdin=text)
    yield mesh
    mesh.stop()
    assert "panicked" not in mesh.log_text()


def autoscale(mesh, percent, most):
    """`kubectl autoscale`; an old kubectl knows only autoscaling/v1, which is not served."""
    done = mesh.kubectl("-n", "demo", "autoscale", "deployment", "web", f"--cpu-percent={percent}",
                        "--min=1", f"--max={most}", check=False)
    if done.returncode == 0:
        return
    assert "could not find the requested resource" in done.stderr, done.stderr
    mesh.apply(f"""
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: web, namespace: demo}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: web}}
  minReplicas: 1
  maxReplicas: {most}
  metrics:
    - type: Resource
      resource: {{name: cpu, target: {{type: Utilization, averageUtilization: {percent}}}}}
""")


def versions(mesh):
    """What ten requests through the gateway answer."""
    return {requests.get(mesh.gateway, timeout=20).text for _ in range(10)}


def test_a_rollout_its_history_undo_pause_and_restart(demo):
    demo.apply(DEPLOYMENT)
    out = demo.k("rollout", "status", "deployment/web", "--timeout=170s")
    assert 'deployment "web" successfully rolled out' in out
    until("the first version answers", lambda: versions(demo) == {"1"})
    failed, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                answer = requests.get(demo.gateway, timeout=20)
                if answer.status_code != 200:
                    failed.append((answer.status_code, answer.text))
            except requests.RequestException as error:
                failed.append(repr(error))
            time.sleep(0.02)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        demo.k("set", "env", "deployment/web", "VERSION=2")
        demo.k("annotate", "deployment/web", "kubernetes.io/change-cause=the second")
        demo.k("rollout", "status", "deployment/web", "--timeout=170s")
        until("the second version answers", lambda: versions(demo) == {"2"})
        history = demo.k("rollout", "history", "deployment/web").splitlines()
        assert [line.split()[0] for line in history[2:] if line] == ["1", "2"], history
        assert "the second" in history[3], history
        second = demo.k("rollout", "history", "deployment/web", "--revision=2")
        assert "VERSION:\t2" in second, second
        demo.k("rollout", "undo", "deployment/web")
        demo.k("rollout", "status", "deployment/web", "--timeout=170s")
        until("the first version is back", lambda: versions(demo) == {"1"})
    finally:
        stop.set()
        asker.join()
    assert failed == []
    demo.k("rollout", "pause", "deployment/web")
    demo.k("set", "env", "deployment/web", "VERSION=3")
    demo.k("scale", "deployment/web", "--replicas=3")
    until("a paused one scales", lambda: len(demo.ready_pods("demo", app="web")) == 3)
    assert versions(demo) == {"1"}
    described = demo.k("describe", "deployment", "web")
    assert "DeploymentPaused" in described, described
    demo.k("rollout", "resume", "deployment/web")
    demo.k("rollout", "status", "deployment/web", "--timeout=170s")
    until("it goes on", lambda: versions(demo) == {"3"})
    before = {p["metadata"]["name"] for p in demo.pods("demo", app="web")}
    demo.k("rollout", "restart", "deployment/web")
    demo.k("rollout", "status", "deployment/web", "--timeout=170s")
    after = {p["metadata"]["name"] for p in demo.ready_pods("demo", app="web")}
    assert len(after) == 3 and not before & after
    events = demo.k("get", "events", "-o", "json")
    reasons = {e["reason"] for e in json.loads(events)["items"]}
    assert {"ScalingReplicaSet", "SuccessfulCreate", "SuccessfulDelete"} <= reasons


def test_a_rollout_that_does_not_come_up_says_so(demo):
    demo.apply(DEPLOYMENT)
    demo.k("rollout", "status", "deployment/web", "--timeout=170s")
    patch = {"spec": {"progressDeadlineSeconds": 3, "template": {"metadata": {"annotations": {
        "weft.dev/command": "python3 missing.py"}}}}}
    demo.k("patch", "deployment", "web", "-p", json.dumps(patch))
    failed = demo.kubectl("-n", "demo", "rollout", "status", "deployment/web", "--timeout=170s",
                          check=False)
    assert failed.returncode == 1 and "exceeded its progress deadline" in failed.stderr
    assert versions(demo) == {"1"}, "what served goes on"
    # The way back may take longer than these 3 s on a busy machine.
    demo.k("patch", "deployment", "web", "-p", '{"spec": {"progressDeadlineSeconds": 600}}')
    demo.k("rollout", "undo", "deployment/web")
    demo.k("rollout", "status", "deployment/web", "--timeout=170s")


def test_a_stateful_set_and_a_daemon_set(demo):
    demo.apply(DEPLOYMENT.replace("kind: Deployment", "kind: StatefulSet")
               .replace("replicas: 2", "replicas: 2\n  serviceName: webs"))
    out = demo.k("rollout", "status", "statefulset/web", "--timeout=170s")
    assert "roll out complete: 2" in out, out
    names = [p["metadata"]["name"] for p in demo.ready_pods("demo", app="web")]
    assert names == ["web-0", "web-1"]
    lines = demo.k("get", "sts").splitlines()
    assert lines[0].split() == ["NAME", "READY", "AGE"] and lines[1].split()[1] == "2/2"
    demo.k("set", "env", "statefulset/web", "VERSION=2")
    demo.k("rollout", "status", "statefulset/web", "--timeout=170s")
    until("the second version answers", lambda: versions(demo) == {"2"})
    demo.k("rollout", "undo", "statefulset/web")
    demo.k("rollout", "status", "statefulset/web", "--timeout=170s")
    until("the first version is back", lambda: versions(demo) == {"1"})
    demo.k("scale", "statefulset/web", "--replicas=1")
    until("the last one goes", lambda: [p["metadata"]["name"] for p in demo.pods("demo", app="web")]
          == ["web-0"])
    demo.k("delete", "statefulset", "web", "--timeout=170s")
    until("its pods go with it", lambda: demo.pods("demo") == [] or
          all("edge" in p["metadata"]["name"] for p in demo.pods("demo")))
    refused = demo.kubectl("-n", "demo", "apply", "-f", "-", check=False, stdin=DEPLOYMENT
                           .replace("kind: Deployment", "kind: StatefulSet")
                           .replace("replicas: 2", "volumeClaimTemplates: [{metadata: {name: d}, "
                                    "spec: {accessModes: [ReadWriteOnce]}}]"))
    assert refused.returncode == 1 and "weft keeps no volumes" in refused.stderr, refused.stderr
    demo.apply(DEPLOYMENT.replace("kind: Deployment", "kind: DaemonSet")
               .replace("  replicas: 2\n", ""))
    out = demo.k("rollout", "status", "daemonset/web", "--timeout=170s")
    assert "successfully rolled out" in out, out
    assert len(demo.ready_pods("demo", app="web")) == 1
    demo.k("set", "env", "daemonset/web", "VERSION=4")
    demo.k("rollout", "status", "daemonset/web", "--timeout=170s")
    until("the new one answers", lambda: versions(demo) == {"4"})
    history = demo.k("rollout", "history", "daemonset/web")
    assert len([line for line in history.splitlines() if line[:1].isdigit()]) == 2, history


def test_jobs_complete_fail_and_count(demo):
    demo.k("create", "job", "hello", "--image=hello:1", "--", "/bin/echo", "hi there")
    demo.k("wait", "--for=condition=complete", "job/hello", "--timeout=170s")
    assert demo.k("logs", "job/hello", "-c", "hello").strip() == "hi there"
    lines = demo.k("get", "jobs").splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE"]
    assert lines[1].split()[1:3] == ["Complete", "1/1"]
    pod = demo.pods("demo", **{"job-name": "hello"})[0]
    assert pod["status"]["phase"] == "Succeeded"
    assert demo.k("get", "pods", "-l", "job-name=hello").splitlines()[1].split()[2] == "Completed"
    demo.apply("""
apiVersion: batch/v1
kind: Job
metadata: {name: bad, namespace: demo}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: x, command: [/bin/sh, -c, "exit 3"]}]
""")
    demo.k("wait", "--for=condition=failed", "job/bad", "--timeout=170s")
    described = demo.k("describe", "job", "bad")
    assert "BackoffLimitExceeded" in described and "0 Succeeded / 1 Failed" in described, described
    demo.apply("""
apiVersion: batch/v1
kind: Job
metadata: {name: each, namespace: demo}
spec:
  completions: 3
  parallelism: 3
  completionMode: Indexed
  ttlSecondsAfterFinished: 20
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: x, command: [/bin/sh, -c, "echo $JOB_COMPLETION_INDEX"]}]
""")
    demo.k("wait", "--for=condition=complete", "job/each", "--timeout=170s")
    said = demo.k("logs", "-l", "job-name=each", "-c", "main").split()
    assert sorted(said) == ["0", "1", "2"]
    until("it goes when its time is over",
          lambda: "each" not in demo.k("get", "jobs,pods", "-o", "name"))


def test_a_job_goes_on_when_weft_was_stopped_or_killed(demo):
    demo.apply("""
apiVersion: batch/v1
kind: Job
metadata: {name: long, namespace: demo}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: main
          image: x
          command: [/bin/sh, -c, "until [ -e $HERE/go ]; do sleep 0.1; done; echo done"]
          env: [{name: HERE, value: FOLDER}]
""".replace("FOLDER", str(demo.data.parent)))
    for how in (signal.SIGINT, signal.SIGKILL):
        until("it works", lambda: demo.ready_pods("demo", **{"job-name": "long"}))
        demo.stop(how)
        demo.start()
    until("it works", lambda: demo.ready_pods("demo", **{"job-name": "long"}))
    (demo.data.parent / "go").write_text("")
    demo.k("wait", "--for=condition=complete", "job/long", "--timeout=170s")
    assert demo.k("get", "job", "long", "-o", "jsonpath={.status.failed}") == ""


def test_a_schedule_makes_jobs_and_stops(demo):
    demo.apply("""
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick, namespace: demo}
spec:
  schedule: "@every 2s"
  timeZone: Europe/Berlin
  successfulJobsHistoryLimit: 2
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: OnFailure
          containers: [{name: main, image: x, command: [/bin/echo, tick]}]
""")

    def done():
        jobs = json.loads(demo.k("get", "jobs", "-o", "json"))["items"]
        return [j["metadata"]["name"] for j in jobs if j["status"].get("succeeded") == 1]

    first = until("two jobs are done", lambda: len(done()) >= 2 and done())
    until("the oldest are forgotten", lambda: first[0] not in done())
    demo.k("patch", "cronjob", "tick", "-p", '{"spec": {"suspend": true}}')
    line = demo.k("get", "cronjobs").splitlines()
    assert line[0].split()[:5] == ["NAME", "SCHEDULE", "TIMEZONE", "SUSPEND", "ACTIVE"]
    assert "True" in line[1] and "Europe/Berlin" in line[1]
    demo.k("create", "job", "by-hand", "--from=cronjob/tick")
    demo.k("wait", "--for=condition=complete", "job/by-hand", "--timeout=170s")
    wrong = demo.kubectl("-n", "demo", "create", "cronjob", "bad", "--image=x",
                         "--schedule=61 * * * *", check=False)
    assert wrong.returncode == 1 and "spec.schedule" in wrong.stderr, wrong.stderr


def test_replicas_follow_the_request_rate(demo):
    demo.apply(DEPLOYMENT)
    demo.k("rollout", "status", "deployment/web", "--timeout=170s")
    demo.apply("""
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web, namespace: demo}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 1
  maxReplicas: 4
  metrics:
    - type: Pods
      pods:
        metric: {name: requests_per_second}
        target: {type: AverageValue, averageValue: "5"}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 5}
""")
    stop = threading.Event()

    def load():
        while not stop.is_set():
            begun = time.monotonic()
            with contextlib.suppress(requests.RequestException):
                requests.get(demo.gateway, timeout=20)
            time.sleep(max(0.0, 0.05 - (time.monotonic() - begun)))

    # Twenty a second are enough, and these come to eighty where answers take no time.
    threads = [threading.Thread(target=load) for _ in range(4)]
    [t.start() for t in threads]
    try:
        until("it scales up to the most",
              lambda: len(demo.ready_pods("demo", app="web")) == 4, seconds=180)
        line = demo.k("get", "hpa", "web").splitlines()
        assert line[0].split() == [
            "NAME", "REFERENCE", "TARGETS", "MINPODS", "MAXPODS", "REPLICAS", "AGE"]
        assert "Deployment/web" in line[1] and "/5" in line[1], line[1]
        described = demo.k("describe", "hpa", "web")
        assert "SuccessfulRescale" in described and "requests_per_second" in described, described
        assert "ValidMetricFound" in described, described
    finally:
        stop.set()
        [t.join() for t in threads]
    until("and down again when it is quiet",
          lambda: len(demo.pods("demo", app="web")) == 1, seconds=180)
    demo.k("delete", "hpa", "web")
    autoscale(demo, 50, 3)
    made = json.loads(demo.k("get", "hpa", "web", "-o", "json"))
    target = made["spec"]["metrics"][0]["resource"]["target"]
    assert target == {"type": "Utilization", "averageUtilization": 50}
    until("it says that nothing is requested", lambda: "missing request for cpu" in demo.k(
        "get", "hpa", "web", "-o", "jsonpath={.status.conditions}"))


def test_replicas_follow_the_processor(demo):
    busy = "import threading, hashlib\nthreading.Thread(target=lambda: [hashlib.sha256(b'x' * 999)" \
           " for _ in iter(int, 1)], daemon=True).start()\n"
    (demo.data.parent / "m/busy.py").write_text(busy + SERVER)
    demo.apply(DEPLOYMENT.replace("replicas: 2", "replicas: 1").replace("server.py", "busy.py")
               .replace("          env:", "          resources: {requests: {cpu: 100m}}\n          env:"))
    demo.k("rollout", "status", "deployment/web", "--timeout=170s")
    autoscale(demo, 80, 2)
    until("it scales up", lambda: len(demo.ready_pods("demo", app="web")) == 2, seconds=180)
    until("it says how much is used", lambda: int(demo.k(
        "get", "hpa", "web", "-o",
        "jsonpath={.status.currentMetrics[0].resource.current.averageUtilization}")) > 80)


def test_the_same_job_again_is_unchanged(demo):
    job = """
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: demo}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: x, command: [/bin/true]}]
"""
    demo.apply(job)
    demo.k("wait", "--for=condition=complete", "job/once", "--timeout=170s")
    assert "unchanged" in demo.apply(job)
    changed = demo.kubectl("-n", "demo", "apply", "-f", "-", check=False,
                           stdin=job.replace("/bin/true", "/bin/false"))
    assert changed.returncode == 1 and "field is immutable" in changed.stderr, changed.stderr
    # Also as a file that weft was started with, twice.
    (demo.data.parent / "m/job.yaml").write_text(job.replace("once", "mine"))
    demo.stop()
    demo.start()
    demo.k("wait", "--for=condition=complete", "job/mine", "--timeout=170s")
    uid = demo.k("get", "job", "mine", "-o", "jsonpath={.metadata.uid}")
    demo.stop()
    demo.start()
    assert demo.k("get", "job", "mine", "-o", "jsonpath={.metadata.uid} {.status.succeeded}") \
        == f"{uid} 1"


def test_a_budget_keeps_pods(demo):
    demo.apply(DEPLOYMENT)
    demo.k("rollout", "status", "deployment/web", "--timeout=170s")
    demo.k("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=2")
    until("it is counted", lambda: demo.k(
        "get", "pdb", "web", "-o", "jsonpath={.status.currentHealthy}") == "2")
    name = demo.ready_pods("demo", app="web")[0]["metadata"]["name"]
    path = f"{demo.api}/api/v1/namespaces/demo/pods/{name}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    refused = requests.post(path, json=body, timeout=20)
    assert refused.status_code == 429, refused.text
    assert refused.json()["details"]["causes"][0]["reason"] == "DisruptionBudget"
    demo.k("scale", "deployment/web", "--replicas=3")
    until("one may go", lambda: demo.k(
        "get", "pdb", "web", "-o", "jsonpath={.status.disruptionsAllowed}") == "1")
    assert requests.post(path, json=body, timeout=20).status_code == 201
    until("it is replaced", lambda: len(demo.ready_pods("demo", app="web")) == 3 and
          name not in {p["metadata"]["name"] for p in demo.pods("demo", app="web")})
    node = demo.pods("demo", app="web")[0]["spec"]["nodeName"]
    drained = demo.kubectl("drain", node, "--ignore-daemonsets", "--timeout=12s", check=False)
    assert drained.returncode == 1 and "disruption budget" in drained.stderr, drained.stderr
    assert len(demo.ready_pods("demo", app="web")) == 2
    assert "SchedulingDisabled" in demo.kubectl("get", "nodes").stdout
    demo.kubectl("uncordon", node)
    demo.k("rollout", "status", "deployment/web", "--timeout=170s")
    until("the gateway is back", lambda: versions(demo) == {"1"})
