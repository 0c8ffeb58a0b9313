# SPDX-License-Identifier: Apache-2.0
"""Proxies that serve files, and what is behind them."""

import contextlib
import http.server
import socket
import subprocess
import threading

from mesh import WEFT, until


class Threads(http.server.ThreadingHTTPServer):
    """A thread for each connection, and a place to wait for each that comes at once: where there is
    none, the kernel has a client try again a second later."""

    daemon_threads, request_queue_size = True, 512


class Site:
    """A server of HTTP/1.1 at a port of its own, which hears a request to its end and then says what
    `answer(request)` returns: status, body and headers."""

    def __init__(self):
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # The body goes out behind the head at once.
            disable_nagle_algorithm = True

            def serve(self):
                self.hear()
                status, body, headers = site.answer(self)
                self.send_response(status)
                for name, value in {"content-length": len(body), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def hear(self):
                """All of the request: who answers before its end races with what is wrong in it."""
                self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("transfer-encoding", "") == "chunked":
                    while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                        self.rfile.read(size + 2)
                    while self.rfile.readline().strip():
                        pass

            do_GET = do_POST = do_PUT = serve

            def log_message(self, *_):
                pass

        self.server = Threads(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port

    def answer(self, request):
        raise NotImplementedError

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Origin(Site):
    """A server that says its name, the method and the path."""

    def __init__(self, name, status=200):
        super().__init__()
        self.name, self.status = name, status

    def answer(self, request):
        return self.status, f"{self.name} {request.command} {request.path}".encode(), {}


class Streams:
    """A listener whose connections are served by `serve(stream)` in a thread each; one that ends by
    an error of its socket ends nothing else."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self.socket.accept()
                threading.Thread(target=self.one, args=(stream,), daemon=True).start()

    def one(self, stream):
        with contextlib.suppress(OSError), stream:
            self.serve(stream)

    def serve(self, stream):
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


class Proxy:
    """`weft proxy` with these words, until it listens on a port."""

    def __init__(self, *words, ready=None, env=None):
        words = [str(WEFT), "proxy", "--workers", "2", *map(str, words)]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        self.lines = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        if ready:
            check = lambda: self.process.poll() is not None or listens(ready)  # noqa: E731
            until("the proxy listens", check)
            assert self.process.poll() is None, self.text()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def text(self):
        """What it has said: all of it once it has ended."""
        if self.process.poll() is not None:
            # A process that it started may go on writing there.
            self.reader.join(1)
        return "".join(self.lines)

    def says(self, words):
        until(f"it says {words!r}", lambda: words in self.text())

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(60)
        assert "panicked" not in self.text(), self.text()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True
    except OSError:
        return False


def curl(url, *words):
    """Status, headers and body; status 0 when there is no answer."""
    command = ["curl", "-sS", "-i", "--max-time", "30", *words, url]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return 0, {}, run.stderr
    head, _, body = run.stdout.partition("\n\n")
    first, *rest = head.splitlines()
    headers = dict(line.split(": ", 1) for line in rest if ": " in line)
    return int(first.split()[1]), {k.lower(): v for k, v in headers.items()}, body


def certificates(folder):
    """An authority with a server's and a client's certificate."""
    script = """
set -e
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -sha256 -days 3 -subj /CN=ca -out ca.pem \
  -addext basicConstraints=critical,CA:TRUE
for n in server client; do
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $n.key
  openssl req -new -key $n.key -subj /CN=$n -out $n.csr
  printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > $n.ext
  openssl x509 -req -in $n.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3 -sha256 \
    -extfile $n.ext -out $n.pem
done
"""
    subprocess.run(["sh", "-c", script], cwd=folder, check=True, capture_output=True)
    return folder
