# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus finds every target through weft and counts what was sent."""

import os
import pathlib
import subprocess

import pytest
import requests

from conftest import free_port, need, wait_until

HERE = pathlib.Path(__file__).parent
#: promtool wants seconds; the name is Istio's, which dashboards ask for, and stays.
ISTIO_NAMES = {
    'istio_request_duration_milliseconds use base unit "seconds" instead of "milliseconds"',
}


@pytest.fixture(scope="module")
def url(weft):
    url = weft.gateway_or("http://127.0.0.1:8102")
    wait_until("the gateway answers", lambda: requests.get(f"{url}/healthz", timeout=60).ok, 180)
    return url


@pytest.fixture(scope="module")
def prometheus(weft, tmp_path_factory):
    program = need(os.environ.get("PROMETHEUS", "prometheus"))
    folder = tmp_path_factory.mktemp("prometheus")
    text = (HERE / "scrape/prometheus.yml").read_text()
    config = folder / "prometheus.yml"
    config.write_text(text.replace("http://127.0.0.1:7080", weft.api))
    port = free_port()
    log = open(folder / "log", "w")
    child = subprocess.Popen([program, f"--config.file={config}", f"--storage.tsdb.path={folder}",
                              f"--web.listen-address=127.0.0.1:{port}"], stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        wait_until("Prometheus is ready", lambda: requests.get(f"{base}/-/ready", timeout=5).ok, 180)
        yield base
    finally:
        child.terminate()
        child.wait()


def query(prometheus, text):
    answer = requests.get(f"{prometheus}/api/v1/query", params={"query": text}, timeout=60)
    return answer.json()["data"]["result"]


def total(prometheus, text):
    return sum(float(series["value"][1]) for series in query(prometheus, text))


def targets(weft):
    groups = requests.get(f"{weft.api}/v1/prometheus/targets", timeout=60).json()
    return [target for group in groups for target in group["targets"]]


def test_the_services_own_counter_is_scraped(weft, url, prometheus):
    # So many that chance leaves no replica out.
    for _ in range(40):
        assert requests.post(f"{url}/checkout?payment=cash", timeout=60).ok
    for _ in range(5):
        assert requests.post(f"{url}/checkout?payment=card", timeout=60).ok
    for payment, count in (("cash", 40), ("card", 5)):
        text = f'checkouts_total{{payment="{payment}"}}'
        wait_until(f"{count} by {payment}", lambda t=text, c=count: total(prometheus, t) == c)
    # Both replicas were found and both took calls.
    assert len(query(prometheus, 'checkouts_total{payment="cash"}')) == 2


def test_every_target_is_up(weft, url, prometheus):
    listed = targets(weft)
    # Two annotated ports of the app and at least the server, a gateway and two sidecars.
    assert sum(t.endswith(":9102") for t in listed) == 2, listed
    assert len(listed) >= 6, listed
    wait_until("all targets are up", lambda: total(prometheus, "up") == len(targets(weft)))


def test_weft_counts_the_same_requests(weft, url, prometheus):
    before = total(prometheus, "sum(checkouts_total)")
    for _ in range(9):
        assert requests.post(f"{url}/checkout", timeout=60).ok
    wait_until("the app counts them", lambda: total(prometheus, "sum(checkouts_total)") >= before + 9)
    counted = 'sum(istio_requests_total{reporter="destination",destination_service_name="checkout"})'
    # The sidecars also see what the app counts; readiness probes may add to it.
    wait_until("the sidecars count them", lambda: total(prometheus, counted) >= before + 9)


def test_promtool_has_nothing_to_say(weft, url):
    promtool = need(os.environ.get("PROMTOOL", "promtool"))
    requests.post(f"{url}/checkout", timeout=60)
    own = [t for t in targets(weft) if not t.endswith(":9102")]
    for target in own:
        text = requests.get(f"http://{target}/metrics", timeout=60).text
        assert text.strip(), target
        done = subprocess.run([promtool, "check", "metrics"], input=text, text=True,
                              capture_output=True, timeout=30)
        said = [line for line in (done.stdout + done.stderr).splitlines()
                if line.strip() and line not in ISTIO_NAMES]
        assert not said, f"{target}: {said}"
