# SPDX-License-Identifier: Apache-2.0
"""Every language calls every other through the mesh."""

import itertools

import pytest
import requests

from conftest import need, wait_until

LANGUAGES = ("go", "node", "python")
PAIRS = list(itertools.permutations(LANGUAGES, 2))


@pytest.fixture(scope="module")
def url(peers, weft):
    url = weft.gateway_or("http://127.0.0.1:8103")
    for language in LANGUAGES:
        ping = f"{url}/{language}/ping"
        wait_until(f"{language} answers", lambda p=ping: requests.get(p, timeout=60).ok, 180)
    return url


@pytest.fixture(scope="module")
def peers():
    need("go")
    need("node")


@pytest.mark.parametrize("caller, called", PAIRS)
def test_calls(url, caller, called):
    for _ in range(5):
        answer = requests.get(f"{url}/{caller}/call/{called}", timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"language": called}


def test_the_calls_were_meshed(weft, url):
    """Each pair shows up in the callers' own sidecars, which no direct call would reach."""
    for caller, called in PAIRS:
        requests.get(f"{url}/{caller}/call/{called}", timeout=60)

    def unseen():
        groups = requests.get(f"{weft.api}/v1/prometheus/targets", timeout=60).json()
        text = ""
        for target in (t for group in groups for t in group["targets"]):
            text += requests.get(f"http://{target}/metrics", timeout=60).text
        lines = [line for line in text.splitlines() if line.startswith("istio_requests_total{")]
        for caller, called in PAIRS:
            wanted = ('reporter="source"', f'source_workload="{caller}-service"',
                      f'destination_service_name="{called}-service"')
            if not any(all(w in line for w in wanted) for line in lines):
                yield f"{caller} to {called}"

    # A call may be answered before it is counted.
    wait_until("all pairs are counted", lambda: not list(unseen()))
