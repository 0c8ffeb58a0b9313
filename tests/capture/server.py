# SPDX-License-Identifier: Apache-2.0
"""What is called through capture, one protocol per port. Knows nothing of weft; standard library
only. Ports: 7001 and 7002 greet first, 7003 answers after the client's end, 7004 sends back what
it gets, 7005 HTTP/1.1 with WebSocket, 7006 answers datagrams; 7007 greets and 7008 sends back, as
7002 and 7004 do: the first is not captured, the second is declared."""

import base64
import hashlib
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Greets(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"5.7.0-greeting\n")
        while data := self.request.recv(65536):
            self.request.sendall(data)


class AnswersAtTheEnd(socketserver.BaseRequestHandler):
    def handle(self):
        seen, count = hashlib.sha256(), 0
        while data := self.request.recv(65536):
            seen.update(data)
            count += len(data)
        self.request.sendall(f"{count} {seen.hexdigest()}\n".encode())


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        buffer = bytearray(1 << 18)
        view = memoryview(buffer)
        while n := self.request.recv_into(buffer):
            self.request.sendall(view[:n])


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        body = f"{socket.gethostname()} {self.path} {self.headers.get('Host')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + MAGIC
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        for name, value in [("Upgrade", "websocket"), ("Connection", "Upgrade"),
                            ("Sec-WebSocket-Accept", accept)]:
            self.send_header(name, value)
        self.end_headers()
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 == 8:
                break
            length = head[1] & 127
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            self.wfile.write(bytes([0x81, len(data)]) + data)
        self.close_connection = True

    def log_message(self, *_):
        pass


class V6(socketserver.ThreadingTCPServer):
    """Takes IPv4 as well."""
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class V6Web(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


def datagrams():
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::", 7006))
    while True:
        data, peer = sock.recvfrom(65536)
        sock.sendto(b"got " + data, peer)


for port, handler in [(7001, Greets), (7002, Greets), (7003, AnswersAtTheEnd), (7004, Echo),
                      (7007, Greets), (7008, Echo)]:
    threading.Thread(target=V6(("::", port), handler).serve_forever, daemon=True).start()
threading.Thread(target=datagrams, daemon=True).start()
V6Web(("::", 7005), Web).serve_forever()
