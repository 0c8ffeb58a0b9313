# SPDX-License-Identifier: Apache-2.0
"""The capture rules of a pod, as Debian's `nft` lists them: a person can read what is captured,
and the rules are valid to another program than the one that made them."""

import json
import os
import pathlib
import re
import subprocess

import pytest

from mesh import BIN, Mesh, until

ANNOTATIONS = {
    "traffic.sidecar.istio.io/excludeInboundPorts": "9090",
    "traffic.sidecar.istio.io/excludeOutboundPorts": "3306,5432",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.9.0.0/16,fd12::/32",
}

OUTBOUND = """\
type nat hook output priority dstnat; policy accept;
meta mark 0x77656674 accept comment "the sidecar's own"
oif "lo" accept comment "inside the pod"
udp dport 53 ip daddr 10.244.0.0/16 accept comment "names asked of a pod"
udp dport 53 ip6 daddr fd00:7766::/64 accept comment "names asked of a pod"
udp dport 53 redirect to :15053 comment "names"
tcp dport 53 ip daddr 10.244.0.0/16 redirect to :15001 comment "names asked of a pod"
tcp dport 53 ip6 daddr fd00:7766::/64 redirect to :15001 comment "names asked of a pod"
tcp dport 53 redirect to :15053 comment "names"
tcp dport @exclude_outbound_ports accept comment "excluded ports"
meta l4proto tcp ip daddr 10.9.0.0/16 accept comment "excluded addresses"
meta l4proto tcp ip6 daddr fd12::/32 accept comment "excluded addresses"
meta l4proto tcp redirect to :15001 comment "what leaves goes to the sidecar"
"""

INBOUND = """\
type nat hook prerouting priority dstnat; policy accept;
iif "lo" accept comment "inside the pod"
tcp dport @open_inbound_ports accept comment "the mesh port and excluded ports"
meta l4proto tcp redirect to :15006 comment "what arrives goes to the sidecar"
"""

GUARD_INBOUND = """\
type filter hook input priority filter; policy accept;
iif "lo" accept comment "inside the pod"
ct status dnat accept comment "went to the sidecar"
ct direction reply accept comment "answers"
meta l4proto @passing accept comment "protocols that are not captured"
tcp dport @open_inbound_ports accept comment "the mesh port and excluded ports"
tcp dport 15006 accept comment "the sidecar's own port"
counter drop comment "nothing passes the sidecar by"
"""


def listed(command, stdin=None):
    """What `nft list ruleset` prints at the end of that command."""
    done = subprocess.run(command, capture_output=True, text=True, input=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rules(pid):
    """In the network namespace of that process."""
    return listed(["nsenter", f"--net=/proc/{pid}/ns/net", str(BIN / "nft"), "list", "ruleset"])


@pytest.fixture(scope="module")
def pod(tmp_path_factory):
    """A process of a pod with excluded ports and addresses."""
    folder = tmp_path_factory.mktemp("rules")
    spec = {"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "app", "image": "app", "command": ["sleep", "1000000"]}]}
    manifest = {"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "app", "namespace": "default", "annotations": ANNOTATIONS},
                "spec": spec}
    (folder / "pod.yaml").write_text(json.dumps(manifest))
    mesh = Mesh(folder / "pod.yaml", folder / "data", extra=["--pods", "namespace"])
    with mesh:
        until("the pod", lambda: mesh.ready_pods("default"))
        here = os.readlink("/proc/self/ns/net")

        def inside():
            found = []
            for pid in mesh.tree():
                try:
                    words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                    away = os.readlink(f"/proc/{pid}/ns/net") != here
                except OSError:
                    continue
                if away and words.endswith(b"sleep\x001000000\0"):
                    found.append(pid)
            return found
        yield until("the app", inside)[0]


def chain(listing, name):
    """The lines of a chain, without counts."""
    body = listing.split(f"chain {name} {{\n", 1)[1].split("\t}\n", 1)[0]
    # Not every version knows the name of this priority in a chain of `output`.
    body = re.sub(r"packets \d+ bytes \d+ ", "", body).replace("priority -100;", "priority dstnat;")
    return "".join(line.strip() + "\n" for line in body.splitlines())


@pytest.mark.root
def test_a_person_can_read_what_is_captured(pod):
    listing = rules(pod)
    assert listing.count("table ") == 1 and listing.startswith("table inet weft {"), listing
    assert chain(listing, "outbound") == OUTBOUND, listing
    assert chain(listing, "inbound") == INBOUND, listing
    assert chain(listing, "guard_inbound") == GUARD_INBOUND, listing
    assert "elements = { 3306, 5432 }" in listing
    assert "elements = { 9090, 15008 }" in listing
    assert "elements = { icmp, udp, ipv6-icmp }" in listing


@pytest.mark.root
def test_another_program_takes_the_rules_as_they_are_listed(pod):
    """Written, removed and read again they are the same."""
    listing = rules(pod)
    script = '"$0" -f - && exec "$0" list ruleset'
    command = ["unshare", "--net", "sh", "-c", script, str(BIN / "nft")]
    assert listed(command, stdin=listing) == listing


@pytest.mark.root
def test_nothing_is_dropped_while_all_is_well(pod):
    """The guards count what they stop; a quiet pod's traffic never meets them."""
    listing = rules(pod)
    assert listing.count("counter packets 0 bytes 0 drop") == 2, listing
