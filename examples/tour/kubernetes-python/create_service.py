#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Creates a Service with the Python kubernetes client. There is no cluster: the kubeconfig is the
one that `weft kubeconfig` writes."""

import os
import sys

from kubernetes import client, config


def main():
    config.load_kube_config(os.environ.get("KUBECONFIG"))
    v1 = client.CoreV1Api()
    name = sys.argv[1] if len(sys.argv) > 1 else "web"
    # No apiVersion and no kind: the method says what it is.
    body = {
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    made = v1.create_namespaced_service("default", body)
    print(f"{made.metadata.name} has {made.spec.cluster_ip}:{made.spec.ports[0].port}")
    for service in v1.list_namespaced_service("default").items:
        print(f"  {service.metadata.name}")


if __name__ == "__main__":
    main()
