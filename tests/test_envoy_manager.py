# SPDX-License-Identifier: Apache-2.0
"""weft beside Envoy itself: what a connection manager says of requests and answers, whatever their
routes say; which filter chain a connection has; and what places of a cluster share."""

import contextlib
import re
import ssl
import time

import pytest
from mesh import free_port, until
from standalone import Origin, Streams, certificates
from test_envoy_beside import connect, running
from test_envoy_bootstrap import TYPES, address, bootstrap, cluster, host, listener, manager
from test_envoy_matching import echo, said  # noqa: F401

FORWARD = [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]
ADMIN = {"match": {"prefix": "/admin"}, "direct_response": {"status": 209}}


def beside(folder, listeners, clusters, observe):
    """What is observed of Envoy and of weft with a bootstrap of these, at a port of their own."""
    out = []
    for name in ("envoy", "weft"):
        port = free_port()
        path = bootstrap(folder / f"{name}.json", listeners(name, port), clusters)
        with running(name, path, port):
            out.append(observe(port))
    return out


def served(folder, client, observe, routes=FORWARD, clusters=()):
    chain = manager([host(routes)], **client)
    return beside(folder, lambda _, port: [listener("web", port, chain)], list(clusters), observe)


def exchange(port, text):
    """Bytes of a request, and all of what is answered until the connection ends."""
    with connect(port) as stream:
        stream.sendall(text.encode())
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while part := stream.recv(65536):
                data += part
    return data.decode("latin-1")


def get(port, target):
    """Status, where it leads to, and what the origin says that it got."""
    text = exchange(port, f"GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    head, _, body = text.partition("\r\n\r\n")
    leads = re.search(r"(?mi)^location: (.*?)\r?$", head)
    status = int(head.split()[1])
    return status, leads and leads[1], body if status == 200 else ""


@pytest.mark.parametrize(("client", "targets"), [
    ({"merge_slashes": True}, ["/a//b/?q=//", "//admin", "/a///", "/x%2F/y"]),
    ({"path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"}, ["/a%2Fb?q=%2F", "/admin%2fx"]),
    ({"path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT", "merge_slashes": True},
     ["/a%2F/b?q=1", "/a//b", "/%2Fexample.org/"]),
    ({"path_with_escaped_slashes_action": "REJECT_REQUEST"}, ["/a%2fb", "/a/b?q=%2f"]),
    ({"path_with_escaped_slashes_action": "KEEP_UNCHANGED"}, ["/a%2fb"]),
], ids=["merged", "unescaped", "redirected", "refused", "kept"])
def test_slashes_become_the_same(tmp_path, client, targets):
    def observe(port):
        return [get(port, target) for target in targets]

    client = {"normalize_path": True, **client}
    with Origin("one") as one:
        up = [cluster("up", one.port)]
        envoy, weft = served(tmp_path, client, observe, [ADMIN, *FORWARD], up)
    assert weft == envoy, targets


def test_a_request_comes_whole_in_its_time(tmp_path):
    """The origin answers once it has the body; a slow answer to a whole request is waited for."""
    class Slow(Origin):
        """Answers some seconds after it has the body: more than a request has for its coming."""

        def answer(self, request):
            time.sleep(3)
            return super().answer(request)

    chain = manager([host(FORWARD)], request_timeout="2s")

    def observe(port):
        ask = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\n"
        return [exchange(port, ask + body).split()[1] for body in ("x", "xy")]

    with Slow("one") as one:
        said = beside(tmp_path, lambda _, port: [listener("web", port, chain)],
                      [cluster("up", one.port)], observe)
    assert said == [["408", "200"], ["408", "200"]]


@pytest.mark.parametrize(("client", "wanted"), [
    ({"server_name": "me"}, "me"),
    ({"server_name": "me", "server_header_transformation": "PASS_THROUGH"}, "basehttp"),
    ({"server_header_transformation": "OVERWRITE"}, "envoy"),
], ids=["named", "passed", "overwritten"])
def test_answers_say_alike_who_serves(tmp_path, echo, client, wanted):  # noqa: F811
    def observe(port):
        return re.search(r"(?m)^server: ([a-z]+)", said(port, "host: a\r\n"))[1]

    up = [cluster("up", echo.port)]
    assert served(tmp_path, client, observe, clusters=up) == [wanted, wanted]


@pytest.mark.parametrize(("client", "kept"), [
    ({"use_remote_address": True, "xff_num_trusted_hops": 1}, 1),
    ({"use_remote_address": True, "xff_num_trusted_hops": 2}, 2),
])
def test_as_many_in_front_are_believed(tmp_path, echo, client, kept):  # noqa: F811
    """Envoy passes on what nobody vouches for, too, which weft does not; in the place of a loopback
    address it says the machine's own."""
    def observe(port):
        head = said(port, "host: a\r\nx-forwarded-for: 6.6.6.6, 1.1.1.1, 2.2.2.2\r\n")
        way = re.search(r"(?m)^x-forwarded-for: (.*?)\r?$", head)[1]
        return re.split(r", ?", way)

    envoy, weft = served(tmp_path, client, observe, clusters=[cluster("up", echo.port)])
    assert weft[:-1] == envoy[-kept - 1:-1]
    assert weft[-1] == "127.0.0.1"


def test_a_virtual_host_without_a_route_is_logged_alike(tmp_path):
    logs = []

    def listeners(name, port):
        logs.append(tmp_path / f"{name}.access")
        log = {"@type": TYPES + "extensions.access_loggers.file.v3.FileAccessLog",
               "path": str(logs[-1]), "log_format": {"text_format_source": {
                   "inline_string": "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"}}}
        chain = manager([host([ADMIN])], access_log=[{"name": "log", "typed_config": log}])
        return [listener("web", port, chain)]

    assert beside(tmp_path, listeners, [], lambda port: get(port, "/none")[0]) == [404, 404]
    lines = [until("a line is written", lambda log=log: log.exists() and log.read_text().endswith("\n") and log.read_text())
             for log in logs]
    assert lines == ["404 NR route_not_found\n"] * 2


class Secure(Streams):
    """Ends TLS and says its name."""

    def __init__(self, name, certs):
        self.name = name.encode()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certs / "server.pem", certs / "server.key")
        super().__init__()

    def serve(self, stream):
        with self.context.wrap_socket(stream, True) as secure:
            secure.sendall(self.name)


def test_tls_is_passed_on_by_its_server_name(tmp_path):
    certs = certificates(tmp_path)
    tcp = "extensions.filters.network.tcp_proxy.v3.TcpProxy"
    proxy = {"@type": TYPES + tcp, "stat_prefix": "x"}
    inspector = {"@type": TYPES + "extensions.filters.listener.tls_inspector.v3.TlsInspector"}

    def chain(name, **found):
        filters = [{"name": "tcp", "typed_config": {**proxy, "cluster": name}}]
        return {"filters": filters, **({"filter_chain_match": found} if found else {})}

    chains = [chain("one", server_names=["a.example", "b.example"]),
              chain("two", server_names=["*.c.example"], transport_protocol="tls"),
              chain("rest", transport_protocol="tls")]

    def listeners(_, port):
        return [{"name": "web", "address": address(port), "filter_chains": chains,
                 "listener_filters": [{"name": "tls", "typed_config": inspector}]}]

    def observe(port):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        seen = []
        for name in ("a.example", "B.example", "x.c.example", "c.example", None):
            with connect(port) as tcp, context.wrap_socket(tcp, server_hostname=name) as secure:
                seen.append(secure.recv(99).decode())
        return seen

    with Secure("one", certs) as one, Secure("two", certs) as two, Secure("rest", certs) as rest:
        clusters = [cluster(each.name.decode(), each.port) for each in (one, two, rest)]
        said = beside(tmp_path, listeners, clusters, observe)
    assert said == [["one", "one", "two", "rest", "rest"]] * 2


def test_places_share_by_their_weights(tmp_path):
    with Origin("near") as near, Origin("far") as far:
        groups = [{"locality": {"region": "r", "zone": zone}, "load_balancing_weight": weight,
                   "lb_endpoints": [{"endpoint": {"address": address(origin.port)}}]}
                  for zone, weight, origin in (("a", 3, near), ("b", 1, far))]
        up = {**cluster("up"), "common_lb_config": {"locality_weighted_lb_config": {}},
              "load_assignment": {"cluster_name": "up", "endpoints": groups}}

        def observe(port):
            return sum(get(port, "/")[2].startswith("near") for _ in range(200))

        for of_near in served(tmp_path, {}, observe, clusters=[up]):
            assert 120 < of_near < 180, of_near
