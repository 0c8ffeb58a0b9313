# SPDX-License-Identifier: Apache-2.0
"""Flask behind Istio's v1alpha3 kinds: from outside, inside, and by header."""

import pytest
import requests

from conftest import wait_until


@pytest.fixture(scope="module")
def url(weft):
    url = weft.gateway_or("http://127.0.0.1:8101")
    wait_until("the gateway answers", lambda: requests.get(f"{url}/users/1", timeout=60).ok, 180)
    return url


def test_the_gateway_reaches_the_named_subset(url):
    versions = {requests.get(f"{url}/users/1", timeout=60).json()["version"] for _ in range(20)}
    assert versions == {"v1"}
    assert requests.get(f"{url}/users/3", timeout=60).status_code == 404
    # Not routed at all, so not Flask's answer.
    nowhere = requests.get(f"{url}/nowhere", timeout=60)
    assert nowhere.status_code == 404
    assert "werkzeug" not in nowhere.headers.get("server", "").lower()


def test_an_order_calls_the_user_service_through_the_mesh(url):
    def order(**headers):
        answer = requests.post(f"{url}/orders", json={"user": 2, "item": "loom"},
                               headers=headers, timeout=60)
        assert answer.status_code == 201, answer.text
        return answer.json()

    placed = [order() for _ in range(20)]
    assert {o["user"]["name"] for o in placed} == {"Alan Turing"}
    assert {o["user"]["version"] for o in placed} == {"v1"}
    # Only the mesh can know this rule: the caller names the same host.
    canary = [order(**{"x-canary": "true"}) for _ in range(20)]
    assert {o["user"]["version"] for o in canary} == {"v2"}
    last = canary[-1]
    assert requests.get(f"{url}/orders/{last['id']}", timeout=60).json() == last


def test_an_order_for_nobody_is_the_callers_mistake(url):
    answer = requests.post(f"{url}/orders", json={"user": 9, "item": "loom"}, timeout=60)
    assert answer.status_code == 422
    assert "user 9 does not exist" in answer.text
