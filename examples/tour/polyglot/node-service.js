// SPDX-License-Identifier: Apache-2.0

// The Node service: built-in modules only. Node's http ignores HTTP_PROXY, so it calls the address
// that weft gives it for each service, such as GO_SERVICE_ADDR: a port of the pod's sidecar.
const http = require("node:http");

function addressOf(other) {
  const name = `${other.toUpperCase()}_SERVICE_ADDR`;
  const address = process.env[name];
  if (!address) throw new Error(`${name} is not set; start this program with weft up`);
  return address;
}

function call(other, response) {
  const request = http.get(`http://${addressOf(other)}/${other}/ping`, {
    headers: { host: `${other}-service` },
    timeout: 5000,
  });
  request.on("response", (answer) => {
    response.writeHead(answer.statusCode, { "content-type": "application/json" });
    answer.pipe(response);
  });
  request.on("timeout", () => request.destroy(new Error("no answer within 5 s")));
  request.on("error", (error) => response.writeHead(502).end(`${error.message}\n`));
}

const server = http.createServer((request, response) => {
  const path = request.url;
  const other = /^\/node\/call\/([a-z]+)$/.exec(path);
  if (path === "/healthz") return response.end("ok\n");
  if (path === "/node/ping") {
    response.setHeader("content-type", "application/json");
    return response.end(JSON.stringify({ language: "node" }));
  }
  if (!other) return response.writeHead(404).end("nothing is here\n");
  try {
    call(other[1], response);
  } catch (error) {
    response.writeHead(502).end(`${error.message}\n`);
  }
});

server.listen(Number(process.env.PORT || 8080), process.env.POD_IP || "127.0.0.1");
process.on("SIGTERM", () => server.close(() => process.exit(0)));
