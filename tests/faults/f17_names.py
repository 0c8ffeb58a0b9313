# SPDX-License-Identifier: Apache-2.0
"""F17, its second half: a pod's program asks for one name outside of the mesh 1,000 times at once, and
nobody knows its address yet. One question for it is on the wire, and all are answered within 3 s.
The first half, 5,000 connections, is a test of tests/test_l4.py. Needs root: it runs where it may
say which name server the machine has."""

import json
import pathlib
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from drill import alone
from f20_dns import NameServer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from mesh import Mesh, until  # noqa: E402

OUTSIDE, NAME = "10.77.0.1", "outside.example"

# The pod's program: sends so many requests at once through its proxy, and tells what came of them.
APP = r'''
import asyncio, base64, collections, json, os, time, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["HTTP_PROXY"])
word = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()

async def one(url, gate):
    reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port)
    await gate.wait()
    host = urllib.parse.urlsplit(url).netloc
    writer.write(f"GET {url} HTTP/1.1\r\nhost: {host}\r\nproxy-authorization: Basic {word}\r\n"
                 "connection: close\r\n\r\n".encode())
    said = await reader.read()
    writer.close()
    return said.split(b" ", 2)[1].decode() if said else "closed"

async def herd(many, url):
    gate = asyncio.Event()
    tasks = [asyncio.create_task(one(url, gate)) for _ in range(many)]
    await asyncio.sleep(0.5)
    began = time.monotonic()
    gate.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    counts = collections.Counter(map(str, ended))
    return json.dumps({"counts": counts, "seconds": time.monotonic() - began}).encode()

async def serve(reader, writer):
    head = await reader.readuntil(b"\r\n\r\n")
    _, many, url = head.split(b" ", 2)[1].decode().split("/", 2)
    body = await herd(int(many), url) if int(many) else b"ready"
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                 % (len(body), body))
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, os.environ["POD_IP"], int(os.environ["PORT"]))
    await server.serve_forever()
asyncio.run(main())
'''

MANIFEST = """
apiVersion: v1
kind: Namespace
metadata: {{name: drill}}
---
apiVersion: v1
kind: Pod
metadata: {{name: herd, namespace: drill}}
spec:
  containers:
    - name: app
      image: app
      command: [{python}, {app}]
      ports: [{{containerPort: 8080}}]
"""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


class Origin(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 4096


def run(whole, folder):
    return alone(__file__, whole, folder, 120)


def inside(whole, folder):
    for words in ("link set lo up", f"addr add {OUTSIDE}/32 dev lo"):
        subprocess.run(["ip", *words.split()], check=True)
    resolv = folder / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:3 attempts:1\n")
    subprocess.run(["mount", "--bind", resolv, "/etc/resolv.conf"], check=True)
    # Slow enough that all of them miss before there is an answer; who is later finds the answer.
    names = NameServer(OUTSIDE, delay=0.5, ttl=120)
    origin = Origin((OUTSIDE, 0), Answer)
    threading.Thread(target=origin.serve_forever, daemon=True).start()
    (folder / "app.py").write_text(APP)
    (folder / "pod.yaml").write_text(MANIFEST.format(python=sys.executable, app=folder / "app.py"))
    many, most = (1_000, 3) if whole else (200, 10)
    with Mesh(folder / "pod.yaml", folder / "data", extra=["--pods=process"]) as mesh:
        def app():
            [pod] = mesh.ready_pods("drill")
            return f"http://{pod['status']['podIP']}:8080"

        at = until("the program listens", lambda: get(app(), 0) and app())
        assert names.questions(NAME) == 0
        said = json.loads(get(at, many, f"http://{NAME}:{origin.server_port}/"))
    text = (f"{many} misses of one name at once: {names.questions(NAME)} question for its address, all "
            f"answered after {said['seconds']:.2f} s")
    assert said["counts"] == {"200": many}, f"{text}: {said}"
    assert names.questions(NAME) == 1 and said["seconds"] <= most, text
    print(f"F17 {text}")


def get(at, many, url=""):
    with urllib.request.urlopen(f"{at}/{many}/{url}", timeout=60) as answer:
        return answer.read()


if __name__ == "__main__":
    inside(sys.argv[1] == "whole", pathlib.Path(sys.argv[2]))
