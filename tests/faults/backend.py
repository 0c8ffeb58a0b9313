# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 server for the drills: backend.py ADDRESS PORT [places=N] [ms=N] [status=N] [log=F]

`places` requests are served at a time, `ms` long each, the others wait in a line without end, as
in a server with a pool of threads. Every request's `x-id` is written to the file `log`.
`/drill/hits` tells how many requests came.
"""

import asyncio
import os
import sys


class Server:
    def __init__(self, address, port, places="10000", ms="0", status="200", log=""):
        self.address = address
        self.port, self.ms, self.status = int(port), int(ms) / 1000, int(status)
        self.places, self.hits = int(places), 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.log = os.open(log, flags, 0o644) if log else None

    async def run(self):
        self.free = asyncio.Semaphore(self.places)
        server = await asyncio.start_server(self.serve, self.address, self.port, backlog=1024)
        print("ready", flush=True)
        await server.serve_forever()

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *rest = head.decode("latin-1").split("\r\n")
                fields = dict(f.lower().split(": ", 1) for f in rest if ": " in f)
                await reader.readexactly(int(fields.get("content-length", 0)))
                body, status = b"ok", self.status
                if line.split(" ")[1] == "/drill/hits":
                    body, status = str(self.hits).encode(), 200
                else:
                    self.hits += 1
                    if self.log is not None:
                        os.write(self.log, (fields.get("x-id", "-") + "\n").encode())
                    async with self.free:
                        if self.ms:
                            await asyncio.sleep(self.ms)
                writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%s"
                             % (status, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


if __name__ == "__main__":
    address, port, *options = sys.argv[1:]
    asyncio.run(Server(address, port, **dict(o.split("=", 1) for o in options)).run())
