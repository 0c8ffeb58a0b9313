# SPDX-License-Identifier: Apache-2.0
"""Proxies that serve files, and what is behind them."""

import http.server
import subprocess
import threading
import time

from mesh import WEFT, until


class Origin:
    """A server that says its name, the method and the path."""

    def __init__(self, name, status=200):
        self.name = name
        origin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                self.hear()
                body = f"{origin.name} {self.command} {self.path}".encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
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

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Proxy:
    """`weft proxy` with these words, until it listens on a port."""

    def __init__(self, *words, ready=None, env=None):
        words = [str(WEFT), "proxy", "--workers", "2", *map(str, words)]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        self.lines = []
        threading.Thread(target=self.read, daemon=True).start()
        if ready:
            check = lambda: self.process.poll() is not None or listens(ready)  # noqa: E731
            until("the proxy listens", check, 20)
            assert self.process.poll() is None, self.text()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def text(self):
        time.sleep(0.05)
        return "".join(self.lines)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(30)
        assert "panicked" not in self.text(), self.text()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def listens(port):
    import socket

    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def curl(url, *words):
    """Status, headers and body; status 0 when there is no answer."""
    command = ["curl", "-sS", "-i", "--max-time", "10", *words, url]
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
