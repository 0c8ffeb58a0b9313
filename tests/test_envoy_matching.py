# SPDX-License-Identifier: Apache-2.0
"""weft beside Envoy itself: which route takes a request, and what its edits make of headers."""

import pytest
from mesh import free_port
from standalone import Site
from test_envoy_beside import connect, running
from test_envoy_bootstrap import bootstrap, cluster, host, listener, manager

AUTHORITY = ":authority"


class Echo(Site):
    """Answers with the head that it got."""

    def answer(self, request):
        return 200, str(request.headers).encode(), {}


@pytest.fixture
def echo():
    with Echo() as server:
        yield server


def said(port, head):
    """A request of these lines, and all of its answer."""
    with connect(port) as stream:
        stream.sendall(f"GET / HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode())
        data = b""
        while part := stream.recv(65536):
            data += part
    return data.decode("latin-1").lower()


def both(folder, routes, heads, origin):
    """What Envoy and weft answer to each of these heads."""
    out = []
    for name in ("envoy", "weft"):
        port = free_port()
        path = bootstrap(folder / f"{name}.json", [listener("web", port, manager([host(routes)]))],
                         [cluster("up", origin.port)])
        with running(name, path, port):
            out.append([said(port, head) for head in heads])
    return out


@pytest.mark.parametrize("header", [
    {"name": AUTHORITY, "string_match": {"safe_regex": {"regex": ".*:[0-9]+"}}},
    {"name": AUTHORITY, "string_match": {"exact": "y.example"}},
    {"name": AUTHORITY, "string_match": {"exact": "y.example"}, "invert_match": True},
    {"name": AUTHORITY, "string_match": {"suffix": ":81"}},
    {"name": "x-m", "string_match": {"exact": "a"}, "invert_match": True},
    {"name": "x-m", "string_match": {"prefix": "a"}, "invert_match": True,
     "treat_missing_header_as_empty": True},
    {"name": "x-m", "present_match": False},
])
def test_a_header_is_matched_alike(tmp_path, echo, header):
    taken = {"match": {"prefix": "/", "headers": [header]}, "direct_response": {"status": 234}}
    routes = [taken, {"match": {"prefix": "/"}, "direct_response": {"status": 235}}]
    hosts = ["host: y.example\r\n", "host: y.example:81\r\n", "host: z.example\r\n"]
    heads = hosts + [hosts[0] + f"x-m: {value}\r\n" for value in ("a", "b")]
    envoy, weft = both(tmp_path, routes, heads, echo)
    statuses = [answer.split()[1] for answer in envoy]
    assert set(statuses) == {"234", "235"}, "it tells the heads apart"
    assert [answer.split()[1] for answer in weft] == statuses


def test_what_is_removed_and_written_is_replaced(tmp_path, echo):
    def put(key, value, action):
        return {"header": {"key": key, "value": value}, "append_action": action}

    names = ["x-a", "x-c", "x-d"]
    new = [put("x-a", "new", "OVERWRITE_IF_EXISTS_OR_ADD"), put("x-c", "c2", "APPEND_IF_EXISTS_OR_ADD")]
    # The answer's body is the request's head, so that one answer shows both.
    route = {"match": {"prefix": "/"}, "route": {"cluster": "up"},
             "request_headers_to_remove": names, "request_headers_to_add": new,
             "response_headers_to_remove": names, "response_headers_to_add": new}
    head = "host: a\r\n" + "".join(f"{name}: old\r\n" for name in names)
    seen = []
    for (answer,) in both(tmp_path, [route], [head], echo):
        response, request = answer.split("\r\n\r\n", 1)
        lines = [[line.strip() for line in part.splitlines()] for part in (response, request)]
        seen.append([sorted(li for li in part if li[:4] in ("x-a:", "x-c:", "x-d:")) for part in lines])
    envoy, weft = seen
    assert envoy == [["x-a: new", "x-c: c2"]] * 2
    assert weft == envoy
