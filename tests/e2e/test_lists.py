"""Offline lists over real Ray Data: killed in the middle, the same command loses and repeats nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import ray

from app.lists.run import rank_users
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

DEADLINE_S = 120.0
USERS, BLOCK_ROWS, K = 2_000, 50, 5
DRIVER = """
import sys
from pathlib import Path
from app.lists.run import rank_users
rank_users(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), k=int(sys.argv[4]), block_rows=int(sys.argv[5]))
"""


def wait_for_parts(folder: Path, wanted: int, driver: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE_S
    while len(list(folder.glob(".*.parts-*/[0-9]*.json"))) < wanted:
        assert driver.poll() is None and time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_run_goes_on(ray_local: None, tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=60, items=40, events=900)
    bundle_of(random_model("two_tower", dataset), dataset, tmp_path / "bundle")
    users, out = tmp_path / "users.txt", tmp_path / "lists.parquet"
    users.write_text("".join(f"u{number}\n" for number in range(USERS)))
    command = [sys.executable, "-c", DRIVER, tmp_path / "bundle", users, out, str(K), str(BLOCK_ROWS)]
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}  # the node that runs, which outlives it
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **address})
    try:
        wait_for_parts(tmp_path, 3, driver)
    finally:
        driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert not out.exists()
    summary = rank_users(tmp_path / "bundle", str(users), out, k=K, block_rows=BLOCK_ROWS)
    assert 3 <= summary["resumed"] < USERS // BLOCK_ROWS  # it was killed in the middle
    table = pq.ParquetFile(out).read()
    ranks = list(zip(table["user"].to_pylist(), table["rank"].to_pylist(), strict=True))
    assert ranks == [(f"u{number}", rank) for number in range(USERS) for rank in range(1, K + 1)]
    assert (summary["users"], summary["cold_start"]) == (USERS, USERS - 60)
    assert list(tmp_path.glob(".*")) == []
