# SPDX-License-Identifier: Apache-2.0
"""What is on the wire, whose certificates they are, and who can get one."""

import pathlib
import signal
import socket
import ssl
import struct
import subprocess

import pytest
import requests

from mesh import BIN, until


def certificate(ip, port=15008):
    """The certificate that a mesh port shows; the handshake needs no client certificate for it."""
    from cryptography import x509
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection((ip, port), timeout=20) as raw:
        with context.wrap_socket(raw, server_hostname="p8080.mesh.weft.internal") as tls:
            assert tls.version() == "TLSv1.3"
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))


def uris(cert):
    from cryptography import x509
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def test_certificates_are_svids_of_the_right_identity(shop):
    for pod in shop.ready_pods("shop"):
        if pod["metadata"].get("annotations", {}).get("weft.dev/proxy") == "gateway":
            continue
        account = pod["spec"].get("serviceAccountName", "default")
        cert = certificate(pod["status"]["podIP"])
        assert uris(cert) == [f"spiffe://cluster.local/ns/shop/sa/{account}"]
        assert not list(cert.subject)


@pytest.mark.root
def test_traffic_between_sidecars_is_tls_on_the_wire(shop, tmp_path):
    targets = [p["status"]["podIP"] for p in shop.ready_pods("shop", app="user")]
    hosts = " or ".join(f"host {ip}" for ip in targets)
    capture = tmp_path / "wire.pcap"
    dump = subprocess.Popen([str(BIN / "tcpdump"), "-i", "lo", "-U", "-s", "0", "-Z", "root", "-w", str(capture),
                             f"tcp port 15008 or (tcp port 8080 and ({hosts}))"],
                            stderr=subprocess.PIPE, text=True)
    try:
        assert "listening" in dump.stderr.readline()
        marker = "x" * 20 + "-weft-wire-marker"
        for _ in range(10):
            requests.get(f"{shop.gateway}/users/1?m={marker}", timeout=20)
        until("the app's packets", lambda: capture.exists()
              and marker.encode() in capture.read_bytes())
    finally:
        dump.send_signal(signal.SIGINT)
        dump.wait(60)
    packets = list(segments(capture.read_bytes()))
    mesh = [data for ports, data in packets if 15008 in ports and data]
    assert mesh and not any(marker.encode() in data for data in mesh)
    first = {data[0] for data in mesh}
    assert first & {0x16, 0x17}, "TLS records"
    # The last hop, inside the pod, is the app's own: there the marker is seen, so it was sent.
    app = b"".join(data for ports, data in packets if 15008 not in ports)
    assert marker.encode() in app


def segments(pcap):
    """(ports, payload) of each TCP segment of a little-endian Ethernet capture of IPv4."""
    at = 24
    while at + 16 <= len(pcap):
        length = struct.unpack("<I", pcap[at + 8:at + 12])[0]
        frame = pcap[at + 16:at + 16 + length]
        at += 16 + length
        ip = frame[14:]
        if not ip or ip[0] >> 4 != 4 or ip[9] != 6:
            continue
        tcp = ip[(ip[0] & 15) * 4:]
        yield struct.unpack(">HH", tcp[:4]), tcp[(tcp[12] >> 4) * 4:]


def test_one_process_cannot_get_anothers_identity(shop):
    sockets = [p for p in (shop.data / "run").rglob("*") if p.is_socket()]
    assert sockets
    for path in sockets:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(str(path))
            body = b'{"csr":"AAAA"}'
            try:
                s.sendall(struct.pack(">I", len(body)) + body)
                answer = s.recv(65536)
            except OSError:
                answer = b""
        assert b"BEGIN CERTIFICATE" not in answer and b"chain" not in answer, answer
    mode = pathlib.Path(shop.data).stat().st_mode & 0o777
    assert mode == 0o700
    keys = [p for p in (shop.data / "ca").iterdir() if b"PRIVATE KEY" in p.read_bytes()]
    assert keys and all(p.stat().st_mode & 0o077 == 0 for p in keys), keys


def test_the_forward_proxy_asks_for_the_pods_credential(shop):
    ip = shop.ready_pods("shop", app="order")[0]["status"]["podIP"]
    answer = requests.get("http://user.shop.svc.cluster.local/users/1", timeout=20,
                          proxies={"http": f"http://{ip}:15001"})
    assert answer.status_code == 407


def test_mtls_report_says_what_is_bypassable(shop):
    out = shop.weft("mtls", "report").stdout
    row = next(line.split() for line in out.splitlines() if line.startswith("shop   "))
    assert row[2] == "mtls"
    user = next(line.split() for line in out.splitlines() if line.split()[1:2] == ["user"])
    assert user[2] == "mtls" and user[-1] == "yes"


def test_web_pages_cannot_use_the_doors(shop):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert shop.get("/api/v1/namespaces", headers=headers).status_code == 403
        assert shop.consul("/v1/catalog/services", headers=headers).status_code == 403
