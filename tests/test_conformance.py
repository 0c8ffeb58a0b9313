# SPDX-License-Identifier: Apache-2.0
"""The official Gateway API conformance suite, from its own Go module, against a running weft.

The suite applies its own manifests. The images they name are the programs of the official image
modules, mapped to local commands; nothing in the manifests is changed.
"""

import os
import re
import shlex
import subprocess

import pytest

from mesh import BIN, Mesh, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root: the suite calls port 80")

CLASS = """apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: weft}
spec: {controllerName: weft.dev/gateway}
"""
# What the mesh profile is asked for beside its core; the gateway's features stand in its class.
MESH_FEATURES = """Mesh MeshClusterIPMatching MeshConsumerRoute MeshHTTPRouteRewritePath
MeshHTTPRouteSchemeRedirect MeshHTTPRouteRedirectPort MeshHTTPRouteRedirectPath
MeshHTTPRouteBackendRequestHeaderModification MeshHTTPRouteQueryParamMatching
MeshHTTPRouteNamedRouteRule HTTPRoute HTTPRouteResponseHeaderModification HTTPRouteParentRefPort
HTTPRoute303RedirectStatusCode HTTPRoute307RedirectStatusCode HTTPRoute308RedirectStatusCode
GRPCRoute ReferenceGrant""".split()


def images(folder):
    """Image names to commands. The advanced echo finds its certificate where its image has it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", folder / "cert.key", "-out", folder / "cert.crt", "-days", "30",
         "-subj", "/CN=echo", "-addext", "subjectAltName=DNS:echo"],
        check=True, capture_output=True)
    echo = folder / "echo-advanced"
    files = f"{shlex.quote(str(folder))}/cert.*"
    echo.write_text(f'#!/bin/sh\ncp {files} / && exec {BIN}/echo-server "$@"\n')
    echo.chmod(0o755)
    return {
        "registry.k8s.io/gateway-api/echo-basic": BIN / "echo-basic",
        "registry.k8s.io/gateway-api/echo-advanced": echo,
        "registry.k8s.io/coredns/coredns": BIN / "coredns",
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformance")
    (folder / "manifests").mkdir()
    (folder / "manifests/class.yaml").write_text(CLASS)
    mapped = [arg for image, program in images(folder).items()
              for arg in ("--image", f"{image}={program}")]
    # `client …` by exec is on the path, as in the image.
    env = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    with Mesh(folder / "manifests", folder / "data", env=env,
              extra=["--pods=namespace", *mapped]) as mesh:
        mesh.scratch = folder
        yield mesh


def run_suite(mesh, profiles, *flags, seconds=1200):
    """Runs the suite; returns the names of its tests that passed."""
    env = {**os.environ, "KUBECONFIG": str(mesh.kubeconfig()), "HOME": str(mesh.scratch)}
    log = mesh.scratch / f"{profiles}.log"
    # The suite does not wait until the namespaces that its last run deleted are gone.
    until("the last run's namespaces are gone", lambda: "gateway-conformance" not in mesh.kubectl(
        "get", "namespaces", "-o", "name").stdout)
    command = [BIN / "gateway-conformance", "-test.run", "^TestConformance$", "-test.v",
               "--gateway-class=weft", "--allow-crds-mismatch",
               f"--conformance-profiles={profiles}", *flags]
    with open(log, "wb") as out:
        done = subprocess.run(command, env=env, stdout=out, stderr=subprocess.STDOUT,
                              timeout=seconds, cwd=mesh.scratch)
    text = log.read_text(errors="replace")
    found = re.findall(r"^ {4}--- (PASS|FAIL): TestConformance/(\w+) ", text, re.M)
    failed = sorted(name for verdict, name in found if verdict == "FAIL")
    assert done.returncode == 0 and not failed, f"failed: {failed}\n{log}\n{text[-3000:]}"
    return {name for _, name in found}


def test_the_mesh_profiles_of_gateway_api_pass(cluster):
    passed = run_suite(cluster, "MESH-HTTP,MESH-GRPC",
                       f"--supported-features={','.join(MESH_FEATURES)}")
    assert {"MeshBasic", "MeshTrafficSplit", "MeshFrontend", "MeshFrontendHostname", "MeshPorts",
            "MeshConsumerRoute", "MeshHTTPRouteWeight", "MeshGRPCRouteWeight"} <= passed
    assert len(passed) >= 20, sorted(passed)


@pytest.fixture(scope="module")
def gateways(cluster):
    """One run for all profiles of gateways; which features it tests is read from the GatewayClass
    that weft wrote."""
    return run_suite(
        cluster, "GATEWAY-HTTP,GATEWAY-GRPC,GATEWAY-TLS,GATEWAY-TCP,GATEWAY-UDP",
        "--usable-address=127.0.99.9", "--unusable-address=192.0.2.250", seconds=1800)


def test_the_gateway_profiles_of_gateway_api_pass(gateways):
    assert {"HTTPRouteWeight", "HTTPRouteReferenceGrant", "GatewayModifyListeners",
            "GatewayInvalidTLSConfiguration", "GRPCRouteWeight",
            "HTTPRouteHTTPSListenerDetectMisdirectedRequests", "HTTPRouteCORS", "HTTPRouteRetry",
            "HTTPRouteRequestMultipleMirrors", "HTTPRouteRequestPercentageMirror",
            "BackendTLSPolicy", "BackendTLSPolicySANValidation", "GRPCRouteNamedRule",
            "BackendTLSPolicyConflictResolution", "BackendTLSPolicyInvalidCACertificateRef",
            "BackendTLSPolicyInvalidKind"} <= gateways
    assert len(gateways) >= 105, sorted(gateways)


def test_what_a_gateway_says_of_itself_as_a_whole_is_done(gateways):
    assert {"GatewayStaticAddresses", "GatewayOptionalAddressValue",
            "GatewayInfrastructureMetadata", "GatewayInvalidParametersRef",
            "GatewayTLSBackendClientCertificate", "GatewayInvalidTLSBackendConfiguration",
            "GatewayFrontendClientCertificateValidation",
            "GatewayFrontendClientCertificateValidationInsecureFallback",
            "GatewayInvalidFrontendClientCertificateValidation",
            "GatewayFrontendInvalidDefaultClientCertificateValidation"} <= gateways


def test_listeners_of_listenersets_are_served(gateways):
    assert sum(name.startswith("ListenerSet") for name in gateways) == 13, sorted(gateways)


def test_the_profiles_below_http_of_gateway_api_pass(gateways):
    assert {"TLSRouteSimpleSameNamespace", "TLSRouteTerminateSimpleSameNamespace",
            "TLSRouteMixedTerminationSameNamespace", "TLSRouteHostnameIntersection",
            "TCPRouteWeightedRouting", "TCPRouteMultipleRoutesAttachment"} <= gateways
    assert sum(name.startswith(("TLSRoute", "TCPRoute")) for name in gateways) >= 21
    assert sum(name.startswith("UDPRoute") for name in gateways) == 9, sorted(gateways)
