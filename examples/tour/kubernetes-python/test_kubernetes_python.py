# SPDX-License-Identifier: Apache-2.0
"""The Python client creates, changes, watches and deletes; kubectl sees the same."""

import ipaddress
import json
import os
import pathlib
import subprocess
import sys

import pytest
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException

from conftest import need

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def kubeconfig(weft, tmp_path_factory):
    path = tmp_path_factory.mktemp("kube") / "config"
    path.write_text(weft.run("kubeconfig"))
    return str(path)


@pytest.fixture(scope="module")
def v1(kubeconfig):
    return client.CoreV1Api(config.new_client_from_config(kubeconfig))


def test_a_body_without_kind_creates_a_service(kubeconfig, v1):
    env = {**os.environ, "KUBECONFIG": kubeconfig}
    made = subprocess.run([sys.executable, HERE / "create_service.py", "web"], env=env, text=True,
                          capture_output=True, timeout=60)
    assert made.returncode == 0, made.stderr
    service = v1.read_namespaced_service("web", "default")
    assert made.stdout.startswith(f"web has {service.spec.cluster_ip}:80\n")
    assert "  web\n" in made.stdout
    assert ipaddress.ip_address(service.spec.cluster_ip)
    # What a real server fills in.
    assert (service.spec.type, service.spec.ports[0].protocol) == ("ClusterIP", "TCP")
    assert service.spec.ports[0].target_port == 8080
    assert service.metadata.uid and service.metadata.creation_timestamp
    with pytest.raises(ApiException) as again:
        v1.create_namespaced_service("default", {"metadata": {"name": "web"},
                                                 "spec": {"ports": [{"port": 80}]}})
    assert again.value.status == 409
    assert json.loads(again.value.body)["reason"] == "AlreadyExists"


def test_kubectl_sees_the_same_service(kubeconfig, v1):
    kubectl = need("kubectl")
    body = {"metadata": {"name": "seen"}, "spec": {"ports": [{"port": 81}]}}
    made = v1.create_namespaced_service("default", body)
    table = subprocess.run([kubectl, "--kubeconfig", kubeconfig, "get", "svc", "seen", "-o", "wide"],
                           text=True, capture_output=True, timeout=60)
    assert table.returncode == 0, table.stderr
    head, row = table.stdout.splitlines()
    assert head.split() == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE",
                            "SELECTOR"]
    assert row.split()[:5] == ["seen", "ClusterIP", made.spec.cluster_ip, "<none>", "81/TCP"]


def test_change_watch_and_delete(v1):
    body = {"metadata": {"name": "changing"}, "spec": {"ports": [{"port": 82}]}}
    made = v1.create_namespaced_service("default", body)
    v1.patch_namespaced_service("changing", "default", {"metadata": {"labels": {"step": "two"}}})
    v1.delete_namespaced_service("changing", "default")
    stream = watch.Watch().stream(v1.list_namespaced_service, "default", timeout_seconds=60,
                                  resource_version=made.metadata.resource_version,
                                  field_selector="metadata.name=changing")
    seen = []
    for event in stream:
        seen.append((event["type"], (event["object"].metadata.labels or {}).get("step")))
        if event["type"] == "DELETED":
            break
    assert seen[0] == ("MODIFIED", "two")
    assert seen[-1][0] == "DELETED"
    with pytest.raises(ApiException) as gone:
        v1.read_namespaced_service("changing", "default")
    assert gone.value.status == 404


def test_a_bad_service_is_refused_with_its_field(v1):
    body = {"metadata": {"name": "bad"}, "spec": {"ports": [{"port": 99999}]}}
    with pytest.raises(ApiException) as refused:
        v1.create_namespaced_service("default", body)
    assert refused.value.status == 422
    status = json.loads(refused.value.body)
    assert status["reason"] == "Invalid"
    assert any("spec.ports[0].port" in c["field"] for c in status["details"]["causes"])
