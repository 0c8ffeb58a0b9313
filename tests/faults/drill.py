# SPDX-License-Identifier: Apache-2.0
"""What the drills share: a gateway of `weft up` before servers of their own, and clients that send
at their own pace, whatever the answers do (an open loop, so that a slow answer hides nothing).

Each drill is a function `run(whole, folder)` that returns a line with its figures and raises when
weft does not pass. `whole` is the length of the reliability page; otherwise it is a tenth.
"""

import asyncio
import collections
import contextlib
import itertools
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from mesh import Mesh, free_port, until  # noqa: E402

EDGE = """
apiVersion: v1
kind: Namespace
metadata: {{name: drill}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: web, namespace: drill}}
spec:
  gatewayClassName: weft
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners: [{{name: http, port: {port}, protocol: HTTP}}{more}]
---
apiVersion: v1
kind: Service
metadata: {{name: origin, namespace: drill}}
spec:
  ports: [{{name: http, port: 80}}]
"""

ROUTE = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: drill}
spec:
  parentRefs: [{name: web}]
  rules: [{backendRefs: [{name: origin, port: 80}]}]
"""

SLICE = """
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: origin-{n}, namespace: drill, labels: {{kubernetes.io/service-name: origin}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: [{address}], conditions: {{ready: true}}}}]
"""


class Origin:
    """One server process, on an address of its own: instances are told apart by it."""

    numbers = itertools.count()

    def __init__(self, port=None, **options):
        self.port = port or free_port()
        number = next(self.numbers)
        self.address = f"127.0.{1 + number // 250}.{1 + number % 250}"
        words = [f"{k}={v}" for k, v in options.items()]
        command = [sys.executable, HERE / "backend.py", self.address, str(self.port), *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def hits(self):
        import requests
        return int(requests.get(f"http://{self.address}:{self.port}/drill/hits", timeout=20).text)


@contextlib.contextmanager
def gateway(folder, origins, objects=ROUTE, extra=(), more=""):
    """Port of a gateway that leads to these servers, and the mesh. `more` are further listeners."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    text = EDGE.format(port=port, more=more) + objects
    text += "".join(SLICE.format(n=n, address=o.address, port=o.port) for n, o in enumerate(origins))
    (folder / "edge.yaml").write_text(text)
    mesh = Mesh(folder / "edge.yaml", folder / "data", gateway_port=port, extra=extra).start()
    try:
        until("the gateway leads to the servers", lambda: answers(port))
        until("it knows them all", lambda: [answers(port)] and all(o.hits() for o in origins))
        yield port, mesh
    finally:
        mesh.stop()
        for origin in origins:
            origin.kill()


class Figure(str):
    """A drill's line, with what the table of peers shows of it."""

    def __new__(cls, text, cell):
        self = super().__new__(cls, text)
        self.cell = cell
        return self


def alone(file, whole, folder, seconds):
    """A drill's line from a process of its own with network and mounts of its own, or why not."""
    name = pathlib.Path(file).stem
    if os.geteuid() != 0:
        return f"{name.split('_')[0].upper()}: not run (needs root)"
    command = ["unshare", "--net", "--mount", sys.executable, file, "whole" if whole else "tenth",
               str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout.strip().splitlines()[-1]


# A client that falls so many seconds behind has no processor, and its servers none either.
BEHIND = 0.3


def undisturbed(whole, load, good, tries=4):
    """A load whose figures are of times. In the short form, which other tests run beside, `load()`
    makes it anew where it is not good and the clients themselves were held up: it shows nothing of
    weft then. The last one counts, whatever it is."""
    for _ in range(1 if whole else tries):
        made = load()
        if good(made) or made.behind <= BEHIND:
            break
    return made


def answers(port):
    import requests
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/", timeout=20).status_code != 404
    return False


class Load:
    """`rate` requests per second for `seconds` over kept connections; what became of each."""

    def __init__(self, port, rate, seconds, deadline=None, method="GET", connections=0,
                 bounded=False):
        self.port, self.rate, self.seconds = port, rate, seconds
        # Seconds after which an answer is late; more where a drill shares its machine with tests.
        deadline = deadline or float(os.environ.get("WEFT_DRILL_DEADLINE", 10))
        self.address = "127.0.0.1"
        # Opened beforehand and used in turn: a proxy's workers all get their part.
        self.connections = connections
        # No more than these: a request for which none is free waits, which counts as its time.
        self.bounded = bounded
        self.deadline, self.method = deadline, method
        self.idle, self.done, self.sent = collections.deque(), [], 0
        # Set from anywhere: it sends nothing more.
        self.over = False
        # How much later than it was due the latest one was sent.
        self.behind = 0.0

    def run(self, during=None):
        """Sends; `during` is called in a thread of its own once half of a third is over."""
        asyncio.run(self._run(during))
        return self

    async def _run(self, during):
        loop, tasks = asyncio.get_running_loop(), set()
        self.places = asyncio.Semaphore(self.connections if self.bounded else 1 << 30)
        for _ in range(self.connections):
            self.idle.append(await asyncio.open_connection(self.address, self.port))
        total, begin = int(self.rate * self.seconds), loop.time()
        other = None
        for n in range(total):
            pause = begin + n / self.rate - loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            self.behind = max(self.behind, loop.time() - begin - n / self.rate)
            if self.over:
                break
            if during and n == total // 6:
                other = loop.run_in_executor(None, during)
            self.sent = n + 1
            task = loop.create_task(self._one(n))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        if other:
            await other
        for _, writer in self.idle:
            writer.close()

    async def _one(self, n):
        began = time.monotonic()
        try:
            status = await asyncio.wait_for(self._ask(n), self.deadline)
        except asyncio.TimeoutError:
            status = "late"
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            status = f"broken: {type(error).__name__}"
        self.done.append((n, status, time.monotonic() - began))

    async def _ask(self, n):
        async with self.places:
            return await self._send(n)

    async def _send(self, n):
        if self.idle:
            reader, writer = self.idle.popleft()
        else:
            reader, writer = await asyncio.open_connection(self.address, self.port)
        try:
            body = "content-length: 2\r\n\r\nhi" if self.method == "POST" else "\r\n"
            writer.write(f"{self.method} /{n} HTTP/1.1\r\nhost: drill\r\nx-id: {n}\r\n{body}"
                         .encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.split("content-length: ", 1)[1].split("\r\n", 1)[0])
            await reader.readexactly(length)
            self.seen(head)
        except BaseException:
            # Also when it is late: nobody may get this connection's answer.
            writer.close()
            raise
        if "connection: close" in head:
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(head.split(" ", 2)[1])

    def seen(self, head):
        """An answer's head, in lower case."""

    def has_ended(self, count):
        """Whether the first so many requests are over."""
        return sum(n < count for n, _, _ in list(self.done)) >= count

    def count(self, *statuses):
        return sum(status in statuses for _, status, _ in self.done)

    def others(self, *statuses):
        """What else there was, for messages."""
        out = {}
        for _, status, _ in self.done:
            if status not in statuses:
                out[status] = out.get(status, 0) + 1
        return out

    def percentile(self, percent, *statuses):
        """Milliseconds of those that ended so."""
        times = sorted(t for _, status, t in self.done if status in statuses)
        return times[min(len(times) - 1, int(len(times) * percent / 100))] * 1000 if times else 0.0
