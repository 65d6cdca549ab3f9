"""The same preparation by hand: one program in pandas, one in polars.

Clean (missing ids, returns, unknown events, bad times, exact duplicates, price outliers), k-core,
leave the last out, encode, last 50 events of each user; parts and histories as Parquet. Outliers and
the core are judged by the rows that train.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

EVENTS = ["view", "cart", "purchase"]
FIRST, LAST = "2024-01-01", "2024-12-31"
THRESHOLD, CORE, HISTORY = 15.0, 5, 50


def with_pandas(source: Path, out: Path) -> None:
    import pandas as pd

    df = pd.read_csv(source, dtype={"user_id": "str", "item_id": "str"}, on_bad_lines="skip")
    df["quantity"] = pd.to_numeric(df["quantity"], errors="coerce")
    df["price"] = pd.to_numeric(df["price"], errors="coerce")
    stamp = pd.to_datetime(df["timestamp"], format="%Y-%m-%d %H:%M:%S", errors="coerce")
    known = df["user_id"].notna() & df["item_id"].notna() & (df["quantity"] > 0) & df["event"].isin(EVENTS)
    good = known & (stamp >= pd.Timestamp(FIRST)) & (stamp <= pd.Timestamp(LAST))
    df = df.assign(time=stamp)[good]
    df = df.drop_duplicates(["user_id", "item_id", "timestamp", "event", "price", "quantity"])
    df = df.sort_values(["user_id", "time"], kind="stable")

    def training() -> pd.DataFrame:
        """The rows before the last two of a user; all rows of users with fewer than three."""
        rows = df.groupby("user_id")
        return df[(rows.cumcount(ascending=False) > 1) | (rows["time"].transform("size") < 3)]

    low, high = training()["price"].quantile([0.25, 0.75])
    reach = THRESHOLD * (high - low)
    df = df[~((df["price"] < low - reach) | (df["price"] > high + reach))]
    while True:
        before = len(df)
        df = df[df["user_id"].map(training()["user_id"].value_counts()) >= CORE]
        df = df[df["item_id"].map(training()["item_id"].value_counts()) >= CORE]
        if len(df) == before:
            break
    df["user"], df["item"] = pd.factorize(df["user_id"])[0] + 1, pd.factorize(df["item_id"])[0] + 1
    left = df.groupby("user").cumcount(ascending=False)
    columns = ["user_id", "item_id", "user", "item", "time", "event", "quantity"]
    for part, chosen in (("train", left > 1), ("valid", left == 1), ("test", left == 0)):
        df.loc[chosen, columns].to_parquet(out / f"{part}.parquet", index=False)
    df[left > 1].groupby("user").tail(HISTORY)[["user", "item", "event", "time"]].to_parquet(
        out / "history.parquet", index=False
    )


def with_polars(source: Path, out: Path) -> None:
    import polars as pl

    text = dict.fromkeys(("user_id", "item_id", "timestamp", "event"), pl.String)
    df = pl.read_csv(source, schema_overrides=text, ignore_errors=True, truncate_ragged_lines=True)
    df = df.with_columns(
        time=pl.col("timestamp").str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
    )
    df = df.filter(
        pl.col("user_id").is_not_null()
        & pl.col("item_id").is_not_null()
        & (pl.col("quantity") > 0)
        & pl.col("event").is_in(EVENTS)
        & pl.col("time").is_between(pl.lit(FIRST).str.to_datetime(), pl.lit(LAST).str.to_datetime())
    )
    df = df.unique(maintain_order=True, keep="first").sort("user_id", "time", maintain_order=True)
    # A user's rows before the last two train; all rows of users with fewer than three.
    left = pl.int_range(pl.len(), dtype=pl.Int32).reverse().over("user_id")
    trains = (left > 1) | (pl.len().over("user_id") < 3)
    df = df.with_columns(trains=trains)
    prices = df.filter("trains")["price"]
    low, high = prices.quantile(0.25, "linear"), prices.quantile(0.75, "linear")
    assert low is not None and high is not None
    reach = THRESHOLD * (high - low)
    df = df.filter(pl.col("price").is_null() | pl.col("price").is_between(low - reach, high + reach))
    while True:
        before = len(df)
        df = df.with_columns(trains=trains).filter(pl.col("trains").sum().over("user_id") >= CORE)
        df = df.filter(pl.col("trains").sum().over("item_id") >= CORE)
        if len(df) == before:
            break
    df = df.with_columns(
        user=pl.col("user_id").rank("dense"),
        item=pl.col("item_id").rank("dense"),
        left=pl.int_range(pl.len(), dtype=pl.Int32).reverse().over("user_id"),
    )
    columns = ["user_id", "item_id", "user", "item", "time", "event", "quantity"]
    for part, chosen in (
        ("train", pl.col("left") > 1),
        ("valid", pl.col("left") == 1),
        ("test", pl.col("left") == 0),
    ):
        df.filter(chosen).select(columns).write_parquet(out / f"{part}.parquet")
    recent = df.filter(pl.col("left").is_between(2, HISTORY + 1))
    recent.select("user", "item", "event", "time").write_parquet(out / "history.parquet")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["pandas", "polars"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    work = {"pandas": with_pandas, "polars": with_polars}[given.peer]
    __import__(given.peer)
    start = time.perf_counter()
    work(given.source, given.out)
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
