# SPDX-License-Identifier: Apache-2.0
"""exec, attach, cp, port-forward, logs and top with real kubectl over both of its transports, and
with the Python client; of pods as processes, of pods in namespaces, and of pods that another
machine's agent runs."""

import contextlib
import hashlib
import os
import pathlib
import pty
import random
import re
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import termios
import threading
import time

import fcntl
import pytest
from kubernetes import client, config
from kubernetes.stream import portforward, stream

from mesh import BIN, WEFT, Elsewhere, Mesh, until

APP = r'''
import os, socket, sys, threading
print("begun", flush=True)
print("to stderr", file=sys.stderr, flush=True)
server = socket.create_server((os.environ["POD_IP"], int(os.environ["PORT"])), backlog=200)

def echo(conn):
    # Answers after the end of what it was sent: it sees a half-closed connection.
    with conn:
        first = conn.recv(65536)
        if first.startswith(b"whole:"):
            data = first
            while part := conn.recv(65536):
                data += part
            conn.sendall(b"%d" % len(data))
            return
        while first:
            conn.sendall(first)
            first = conn.recv(65536)

while True:
    threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
'''

MANIFEST = """
apiVersion: v1
kind: Namespace
metadata: {{name: demo}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: box, namespace: demo}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  template:
    metadata:
      labels: {{app: box}}
      annotations: {{weft.dev/workdir: {folder}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: app
        image: app
        command: [python3, {folder}/app.py]
        env: [{{name: COLOUR, value: green}}]
        ports: [{{containerPort: 8080}}]
      - name: side
        image: side
        command: [sh, -c, 'n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.2; done']
---
apiVersion: v1
kind: Service
metadata: {{name: box, namespace: demo}}
spec:
  selector: {{app: box}}
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: crash, namespace: demo, labels: {{app: crash}}}}
spec:
  containers:
  - name: c
    image: c
    command: [sh, -c, 'echo life of `date +%s%N`; sleep 0.3; exit 1']
---
apiVersion: v1
kind: Pod
metadata: {{name: twice, namespace: demo}}
spec:
  containers:
  - name: c
    image: c
    command: [sh, -c, 'test -e $(FLAG) && echo second && exec sleep 1000; touch $(FLAG); echo first; exit 1']
    env: [{{name: FLAG, value: {folder}/flag}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: talk, namespace: demo}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1  # a shell at a terminal does not hear SIGTERM
  containers:
  - name: c
    image: c
    stdin: true
    command: [sh, -c, 'while read line; do echo heard $line; test "$line" = end && exit 3; done']
  - name: term
    image: c
    stdin: true
    tty: true
    command: [sh]
"""

TRANSPORTS = ["websocket", "spdy"]


NEEDS_ROOT = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
NOBODY = 65534


@pytest.fixture(scope="module", params=[
    "process",
    "elsewhere",
    pytest.param("namespace", marks=NEEDS_ROOT),
    # As an ordinary user; only the test needs root, to become one.
    pytest.param("rootless", marks=NEEDS_ROOT),
])
def mesh(request):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weft-streams-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "m").mkdir()
    (folder / "m/app.py").write_text(APP)
    (folder / "m/all.yaml").write_text(MANIFEST.format(folder=folder / "m"))
    kind = Elsewhere if request.param == "elsewhere" else Mesh
    how = {"extra": ["--pods", "process" if request.param == "process" else "namespace"]}
    if kind is Elsewhere:
        how = {}
    if request.param == "rootless":
        # Nobody may read where the tests' own weft is.
        how |= {"user": NOBODY, "program": folder / "weft"}
        shutil.copy2(WEFT, how["program"])
        subprocess.run(["chown", "-R", str(NOBODY), str(folder)], check=True)
    mesh = kind(folder / "m", folder / "data", **how).start()
    mesh.config = None
    until("box is ready", lambda: mesh.ready_pods("demo", app="box"))
    yield mesh
    mesh.stop()
    assert "panicked" not in mesh.log_text()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pod(mesh):
    return mesh.ready_pods("demo", app="box")[0]["metadata"]["name"]


def environment(mesh, transport):
    if mesh.config is None:
        mesh.config = mesh.kubeconfig()
    on = "true" if transport == "websocket" else "false"
    return {**os.environ, "KUBECONFIG": str(mesh.config), "HOME": str(mesh.data.parent),
            "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": on, "KUBECTL_PORT_FORWARD_WEBSOCKETS": on}


def kubectl(mesh, transport, *args, timeout=60, **kw):
    return subprocess.run([str(BIN / "kubectl"), "-n", "demo", *args], capture_output=True,
                          env=environment(mesh, transport), timeout=timeout, **kw)


def start_kubectl(mesh, transport, *args, **kw):
    kw = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **kw}
    return subprocess.Popen([str(BIN / "kubectl"), "-n", "demo", *args],
                            env=environment(mesh, transport), **kw)


@contextlib.contextmanager
def ending(process):
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# -- exec ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec_gives_output_errors_and_the_exit_code(mesh, pod, transport):
    script = "echo out; echo err >&2; exit 7"
    done = kubectl(mesh, transport, "exec", pod, "-c", "app", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (7, b"out\n"), done
    assert done.stderr.startswith(b"err\n") and b"exit code 7" in done.stderr
    killed = kubectl(mesh, transport, "exec", pod, "-c", "app", "--", "sh", "-c", "kill -9 $$")
    assert killed.returncode == 137
    assert kubectl(mesh, transport, "exec", "deploy/box", "-c", "side", "--", "true").returncode == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec_is_in_the_containers_environment_and_folder(mesh, pod, transport):
    script = 'echo $POD_NAME $COLOUR; pwd'
    done = kubectl(mesh, transport, "exec", pod, "-c", "app", "--", "sh", "-c", script)
    name, folder = done.stdout.decode().splitlines()
    assert name == f"{pod} green"
    assert folder == str(mesh.paths[0])
    other = kubectl(mesh, transport, "exec", pod, "-c", "side", "--", "sh", "-c", script)
    assert other.stdout.decode().splitlines()[0] == pod


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec_takes_input_to_its_end(mesh, pod, transport):
    data = os.urandom(3_000_000)
    done = kubectl(mesh, transport, "exec", "-i", pod, "-c", "app", "--", "sha256sum", input=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest(), done
    back = kubectl(mesh, transport, "exec", "-i", pod, "-c", "app", "--", "cat", input=data)
    assert back.returncode == 0 and back.stdout == data
    # A program that takes nothing ends all the same.
    done = kubectl(mesh, transport, "exec", "-i", pod, "-c", "app", "--", "true", input=data)
    assert done.returncode == 0, done


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec_says_why_it_cannot(mesh, pod, transport):
    def why(*args):
        done = kubectl(mesh, transport, "exec", *args)
        assert done.returncode != 0
        return done.stderr.decode()

    assert "no-such-tool" in why(pod, "-c", "app", "--", "no-such-tool")
    assert "container" in why(pod, "-c", "nobody", "--", "true")
    assert "weft's own" in why(pod, "-c", "weft-proxy", "--", "true") \
        or "not valid" in why(pod, "-c", "weft-proxy", "--", "true")
    assert "not found" in why("no-such-pod", "--", "true")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_terminal_has_a_size_and_hears_keys(mesh, pod, transport):
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    shell = start_kubectl(mesh, transport, "exec", "-it", pod, "-c", "app", "--", "sh",
                          stdin=inner, stdout=inner, stderr=inner, start_new_session=True)
    os.close(inner)
    said = b""

    def read_until(pattern, seconds=60):
        nonlocal said
        deadline = time.monotonic() + seconds
        while not re.search(pattern, said):
            assert time.monotonic() < deadline, said
            if select.select([outer], [], [], 0.2)[0]:
                said += os.read(outer, 65536)
        return said

    with ending(shell):
        read_until(rb"[$#] ")
        os.write(outer, b"tty && echo on-$((40+2))\n")
        read_until(rb"/dev/pts/\d+\s+on-42")
        os.write(outer, b"stty size; echo sized\n")
        read_until(rb"33 101\s+sized")
        os.write(outer, b"sh -c 'echo front-$((40+2)); exec sleep 100'\n")
        read_until(rb"front-42")
        os.write(outer, b"\x03")  # Ctrl-C ends the program in front, not the shell
        read_until(rb"\^C\s+[$#] ")
        os.write(outer, b"echo still-$((40+2)); exit 9\n")
        read_until(rb"still-42")
        assert shell.wait(60) == 9
    os.close(outer)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_program_ends_with_its_client(mesh, pod, transport):
    seconds = 1000 + random.randrange(10**6)
    script = f'trap "" TERM; sleep {seconds} & echo up; wait'
    with ending(start_kubectl(mesh, transport, "exec", pod, "-c", "app", "--", "sh", "-c", script)
                ) as shell:
        assert shell.stdout.readline() == b"up\n"

        def running():
            return [p for p in mesh.tree() if str(seconds) in words(p)]
        until("it runs, and what it started", lambda: len(running()) >= 2)
        shell.kill()
        until("both have ended", lambda: not running())


def words(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_sixty_sessions_at_the_same_time(mesh, pod):
    running = [start_kubectl(mesh, TRANSPORTS[n % 2], "exec", pod, "-c", "app", "--", "sh", "-c",
                             f"echo {n}; exit {n % 5}") for n in range(60)]
    for n, process in enumerate(running):
        out, _ = process.communicate(timeout=300)
        assert out.decode().splitlines()[0] == str(n) and process.returncode == n % 5


# -- cp --------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_cp_carries_files_both_ways(mesh, pod, transport, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 * 1024 * 1024))
    there = mesh.data.parent / transport
    assert kubectl(mesh, transport, "exec", pod, "-c", "app", "--", "mkdir", str(there)
                   ).returncode == 0
    done = kubectl(mesh, transport, "cp", str(source), f"{pod}:{there}/file", "-c", "app")
    assert done.returncode == 0, done
    assert (there / "file").read_bytes() == source.read_bytes()
    back = tmp_path / "back"
    done = kubectl(mesh, transport, "cp", f"{pod}:{there}/file", str(back), "-c", "app")
    assert done.returncode == 0, done
    assert back.read_bytes() == source.read_bytes()


# -- port-forward ----------------------------------------------------------------------------


@contextlib.contextmanager
def forwarded(mesh, transport, *args):
    with ending(start_kubectl(mesh, transport, "port-forward", *args)) as process:
        line = process.stdout.readline().decode()
        found = re.search(r"127\.0\.0\.1:(\d+) ->", line)
        assert found, line + process.stdout.read().decode()
        yield int(found.group(1)), process


def exchange(port, data, end=False):
    """Sends all while reading what comes back, as an echo does."""
    got = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as conn:
        def send():
            conn.sendall(data)
            if end:
                conn.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=send)
        sender.start()
        while len(got) < len(data):
            part = conn.recv(65536)
            if not part:
                break
            got += part
        sender.join()
    return bytes(got)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_fifty_connections_through_one_forwarded_port(mesh, pod, transport):
    with forwarded(mesh, transport, f"pod/{pod}", ":8080") as (port, _):
        wrong = []

        def one(n):
            data = os.urandom(200_000 + n)
            if exchange(port, data) != data:
                wrong.append(n)

        threads = [threading.Thread(target=one, args=(n,)) for n in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert not wrong and not any(t.is_alive() for t in threads)
        # Each half of a connection ends at its own time.
        with socket.create_connection(("127.0.0.1", port), timeout=60) as conn:
            conn.sendall(b"whole:" + b"x" * 100_000)
            conn.shutdown(socket.SHUT_WR)
            assert conn.recv(100) == b"100006"
            assert conn.recv(100) == b""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_service_is_forwarded_by_its_own_port(mesh, transport):
    with forwarded(mesh, transport, "service/box", ":80") as (port, _):
        assert exchange(port, b"hello") == b"hello"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_closed_port_says_so(mesh, pod, transport):
    with forwarded(mesh, transport, f"pod/{pod}", ":9999") as (port, process):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as conn:
            with contextlib.suppress(ConnectionError):
                conn.sendall(b"hello")
                assert conn.recv(100) == b""
        said = process.stdout.read().decode()
        assert "9999" in said and "refused" in said, said


# -- logs and attach -------------------------------------------------------------------------


def logs(mesh, *args, check=True):
    done = kubectl(mesh, "websocket", "logs", *args)
    assert not check or done.returncode == 0, done
    return done.stdout.decode()


def test_logs_in_all_their_forms(mesh, pod):
    # Two pipes have no common order.
    until("it has said both", lambda: sorted(
        logs(mesh, pod, "-c", "app").splitlines()) == ["begun", "to stderr"])
    until("it ticks", lambda: len(logs(mesh, pod, "-c", "side").splitlines()) > 5)
    assert len(logs(mesh, pod, "-c", "side", "--tail=3").splitlines()) == 3
    assert logs(mesh, pod, "-c", "side", "--tail=0") == ""
    stamped = logs(mesh, pod, "-c", "side", "--timestamps", "--tail=1")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z tick \d+\n$", stamped), stamped
    since_is_kept(mesh, pod)
    then = stamped.split()[0]
    since = logs(mesh, pod, "-c", "side", "--timestamps", f"--since-time={then}").splitlines()
    # kubectl cuts the time to seconds.
    assert then[:19] <= since[0].split()[0][:19] and stamped.strip() in since, (stamped, since)
    assert len(logs(mesh, pod, "-c", "side", "--limit-bytes=10")) == 10
    every = logs(mesh, pod, "--all-containers", "--prefix")
    assert f"[pod/{pod}/app] begun" in every and f"[pod/{pod}/side] tick 1" in every
    chosen = logs(mesh, "-l", "app=box", "--all-containers", "--tail=-1")
    assert "begun" in chosen and "tick 1" in chosen
    assert "begun" in logs(mesh, "deploy/box", "-c", "app")


def since_is_kept(mesh, pod):
    """`--since=2s` is every line of the last two seconds and none before, by the lines' own times:
    how many that are is the machine's affair."""
    def ask(*words):
        return logs(mesh, pod, "-c", "side", "--timestamps", *words).splitlines()

    def moment(seconds):
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{whole}.{int(seconds % 1 * 1e9):09d}Z"

    def once():
        # The server's present is somewhere between these two.
        before = time.time()
        recent = ask("--since=2s")
        after = time.time()
        every = [(line.split()[0], line) for line in ask()]
        assert set(recent) <= {line for at, line in every if at >= moment(before - 2)}, recent
        assert {line for at, line in every
                if moment(after - 2) <= at <= moment(before)} <= set(recent), recent
        return 0 < len(recent) < len(every)

    until("the last two seconds have a line", once)


def test_logs_of_the_process_before(mesh):
    def both():
        before = logs(mesh, "crash", "--previous", check=False)
        return re.match(r"life of \d+\n$", before)
    # Also while it waits to be started again.
    until("it crashed", both)
    until("its second life", lambda: logs(mesh, "twice") == "second\n")
    assert logs(mesh, "twice", "--previous") == "first\n"
    done = kubectl(mesh, "websocket", "logs", "--previous",
                   mesh.ready_pods("demo", app="box")[0]["metadata"]["name"], "-c", "app")
    assert done.returncode != 0 and b"before" in done.stderr


def test_followed_logs_come_as_they_are_written(mesh, pod):
    with ending(start_kubectl(mesh, "websocket", "logs", "-f", "--tail=1", pod, "-c", "side")
                ) as follower:
        first = follower.stdout.readline().split()
        second = follower.stdout.readline().split()
        assert int(second[1]) == int(first[1]) + 1
    # The end of a process is the end of its log.
    done = kubectl(mesh, "websocket", "logs", "-f", "crash", timeout=60)
    assert b"life of" in done.stdout


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_attach_joins_the_program_that_runs(mesh, pod, transport):
    with ending(start_kubectl(mesh, transport, "attach", "-q", pod, "-c", "side")) as attached:
        first = attached.stdout.readline().split()
        second = attached.stdout.readline().split()
        assert first[0] == b"tick" and int(second[1]) == int(first[1]) + 1
    with ending(start_kubectl(mesh, transport, "attach", "-q", "-i", "talk", "-c", "c",
                              stdin=subprocess.PIPE)) as attached:
        attached.stdin.write(b"hello\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == b"heard hello\n"
    # It runs on when nobody is attached any more.
    until("its log has it", lambda: logs(mesh, "talk", "-c", "c").splitlines()[-1] == "heard hello")


def test_attach_to_a_terminal_and_to_the_end(mesh):
    outer, inner = pty.openpty()
    with ending(start_kubectl(mesh, "websocket", "attach", "-q", "-it", "talk", "-c", "term",
                              stdin=inner, stdout=inner, stderr=inner, start_new_session=True)
                ) as shell:
        os.close(inner)
        os.write(outer, b"tty && echo on-$((40+2)); exit\n")
        assert shell.wait(60) == 0
        # A terminal hands over what was written to it a little later, and in pieces.
        seen = b""
        while not re.search(rb"/dev/pts/\d+\s+on-42", seen):
            assert select.select([outer], [], [], 60)[0], seen
            seen += os.read(outer, 65536)
    os.close(outer)
    done = kubectl(mesh, "spdy", "attach", "-q", "-i", "talk", "-c", "c", input=b"end\n")
    assert done.stdout == b"heard end\n", done
    # What has ended cannot be attached to, once that is known.
    until("it is refused", lambda: kubectl(
        mesh, "spdy", "attach", "-q", "-i", "talk", "-c", "c", input=b"").returncode != 0)


def test_run_starts_a_pod_and_stays_with_it(mesh):
    how = ["--image=x", "--restart=Never", "--rm", "-i", "--quiet"]
    done = kubectl(mesh, "websocket", "run", "seven", *how, "--command", "--", "sh", "-c",
                   "sleep 0.5; exit 7")
    assert done.returncode == 7, done
    done = kubectl(mesh, "spdy", "run", "echo", *how, "--command", "--", "cat", input=b"hello\n")
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done


# -- figures ---------------------------------------------------------------------------------


def test_top_shows_what_pods_and_nodes_use(mesh, pod):
    with ending(start_kubectl(mesh, "websocket", "exec", pod, "-c", "side", "--", "sh", "-c",
                              "while :; do :; done")):
        def busy():
            rows = mesh.kubectl("top", "pods", "-n", "demo", "--containers").stdout.splitlines()
            cells = [r.split() for r in rows[1:]]
            cpu = {c[1]: int(c[2].rstrip("m")) for c in cells if c[0] == pod}
            return cpu.get("side", 0) > 50 > cpu["app"] and rows
        until("the busy container shows", busy)
    row = [r.split() for r in mesh.kubectl("top", "pods", "-n", "demo", "-l", "app=box")
           .stdout.splitlines()[1:]]
    assert row[0][0] == pod and int(row[0][2].rstrip("Mi")) > 2, row
    nodes = mesh.kubectl("top", "nodes").stdout.splitlines()
    assert len(nodes) == 2 and nodes[1].split()[2].endswith("%"), nodes


# -- the Python client -----------------------------------------------------------------------


@pytest.fixture
def core(mesh):
    config.load_kube_config(str(mesh.kubeconfig()))
    return client.CoreV1Api()


def test_the_python_client_runs_programs(core, pod):
    out = stream(core.connect_get_namespaced_pod_exec, pod, "demo", container="app",
                 command=["sh", "-c", "echo out; echo err >&2"], stderr=True, stdin=False,
                 stdout=True, tty=False)
    assert sorted(out.splitlines()) == ["err", "out"]
    shell = stream(core.connect_get_namespaced_pod_exec, pod, "demo", container="app",
                   command=["sh"], stderr=True, stdin=True, stdout=True, tty=False,
                   _preload_content=False)
    shell.write_stdin("echo $((6*7))\n")
    assert shell.readline_stdout(timeout=60) == "42"
    shell.write_stdin("exit 7\n")
    shell.run_forever(timeout=60)
    assert shell.returncode == 7


def test_the_python_client_forwards_ports(core, pod):
    ports = portforward(core.connect_get_namespaced_pod_portforward, pod, "demo", ports="8080")
    conn = ports.socket(8080)
    conn.settimeout(60)
    conn.sendall(b"hello")
    assert conn.recv(100) == b"hello"
    conn.close()
    assert ports.error(8080) is None


# -- endings ---------------------------------------------------------------------------------


def test_sessions_end_with_their_pod_and_with_weft(mesh):
    old = mesh.ready_pods("demo", app="box")[0]["metadata"]["name"]
    with ending(start_kubectl(mesh, "websocket", "exec", old, "-c", "app", "--", "sleep", "1000")
                ) as session, \
            ending(start_kubectl(mesh, "spdy", "logs", "-f", old, "-c", "side")) as follower:
        follower.stdout.readline()
        mesh.kubectl("delete", "pod", old, "-n", "demo", "--wait=false")
        assert session.wait(60) != 0
        follower.stdout.read()
        assert follower.wait(60) == 0
    until("another is ready", lambda: [p for p in mesh.ready_pods("demo", app="box")
                                       if p["metadata"]["name"] != old])
    new = mesh.ready_pods("demo", app="box")[0]["metadata"]["name"]
    with ending(start_kubectl(mesh, "websocket", "exec", new, "-c", "app", "--", "sleep", "1000")
                ) as session, \
            ending(start_kubectl(mesh, "spdy", "logs", "-f", new, "-c", "side")) as follower, \
            forwarded(mesh, "spdy", f"pod/{new}", ":8080") as (port, forwarder), \
            socket.create_connection(("127.0.0.1", port), timeout=60) as conn:
        conn.sendall(b"x")
        assert conn.recv(1) == b"x"
        began = time.monotonic()
        mesh.stop()
        assert time.monotonic() - began < 28
        for process in (session, follower, forwarder):
            process.wait(60)
    mesh.start()
    mesh.config = None
    until("box is ready again", lambda: mesh.ready_pods("demo", app="box"))
