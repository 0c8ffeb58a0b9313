# SPDX-License-Identifier: Apache-2.0
"""F1: `kill -9` of one of three instances at 2,000 requests a second, nothing configured. No GET
fails. POSTs: only those in flight may fail, and none reaches two instances."""

import time

from drill import Figure, Load, Origin, gateway


def run(whole, folder):
    rate, seconds = (2000, 12) if whole else (400, 3)
    origins = [Origin() for _ in range(3)]
    with gateway(folder / "get", origins) as (port, _):
        load = Load(port, rate, seconds).run(during=origins[1].kill)
    gets = len(load.done)
    assert load.count(200) == gets, f"{gets - load.count(200)} of {gets} failed: {load.others(200)}"
    log = folder / "posts.log"
    origins = [Origin(log=log, ms=2) for _ in range(3)]
    with gateway(folder / "post", origins) as (port, _):
        posts = Load(port, rate // 2, seconds, method="POST").run(during=origins[1].kill)
        time.sleep(0.1)
    # Those without a number asked whether the gateway is there.
    ids = [i for i in log.read_text().split() if i != "-"]
    twice = len(ids) - len(set(ids))
    failed = len(posts.done) - posts.count(200)
    assert twice == 0, f"{twice} POSTs reached two instances"
    # Two ms at this rate: what one instance has in flight, with room for chance; on a busy machine
    # it has been holding what came in a quarter of a second, and a third of what clients that fell
    # behind sent at once, or of what came while answers took long. Without retries a sixth would fail.
    held = max(posts.behind, posts.percentile(99, 200) / 1000)
    most = 20 if whole else 40 + rate / 6 * held
    assert failed <= most, f"{failed} POSTs failed: {posts.others(200)}"
    return Figure(f"F1 kill -9 of 1 of 3: {gets - load.count(200)} of {gets} GETs failed; POSTs: "
            f"{failed} of {len(posts.done)} (in flight), {twice} sent twice", str(gets - load.count(200)))
