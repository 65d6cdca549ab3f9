"""[serve] and [serve.rollout]: how a bundle is served, and the limits of a trial."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from app.recipe.section import Count, Positive, Section

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # stands in a path


class Rollout(Section):
    """How a new bundle takes over a running service; a fault takes it back."""

    canary_percent: float = Field(5.0, gt=0, lt=100, description="share of the users that get it first")
    shadow_every: Positive = Field(20, description="one of so many requests is scored by it as well")
    shadow_requests: Count = Field(50, description="requests compared before the first users get it")
    shadow_s: float = Field(10.0, ge=0, description="longest wait for these requests")
    canary_requests: Count = Field(200, description="requests answered before all users get it")
    canary_s: float = Field(15.0, ge=0, description="shortest time before all users get it")
    canary_longest_s: float = Field(
        45.0, ge=0, description="after so long 20 requests answered are enough; with fewer it waits for them"
    )
    promote_idle: bool = Field(
        False, description="whether all users get it after canary_longest_s even without any request"
    )
    load_s: float = Field(120.0, gt=0, description="longest time until all replicas have loaded it")
    max_errors: float = Field(0.01, ge=0, description="share of failed requests beyond the old one's")
    max_slowdown: float = Field(2.0, gt=0, description="how many times as long as the old one it may take")
    floor_ms: float = Field(25.0, ge=0, description="latencies below this never fail the canary")
    min_agreement: float = Field(
        0.2, ge=-1, le=1, description="least rank correlation with the old one; -1: it may differ at will"
    )
    max_drift: float = Field(
        1.5,
        gt=0,
        description="how far its scores may move from those in the comparison, in standard deviations",
    )


class Serve(Section):
    """How the bundle is served."""

    host: str = Field("127.0.0.1", description="address to listen on; 127.0.0.1 is this machine alone")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    min_replicas: Count = Field(
        1, description="least number of replicas; with 0 none runs without calls, and a first call waits"
    )
    max_replicas: Positive = Field(2, description="largest number of replicas")
    cpus: Positive = Field(1, description="cores that a replica reserves, and threads of one call")
    target_ongoing_requests: Positive = Field(
        8, description="ongoing requests of a replica that autoscaling aims at"
    )
    scale_up_s: float = Field(10.0, ge=0, description="how long load must be high before a replica is added")
    scale_down_s: float = Field(120.0, ge=0, description="how long it must be low before one is removed")
    max_ongoing_requests: Positive = Field(64, description="requests that a replica works on at a time")
    max_queued_requests: Positive = Field(
        256, description="further requests that a replica accepts; beyond these it answers 429"
    )
    max_batch_candidates: Positive = Field(2048, description="candidates that are scored in one batch")
    request_timeout_s: float = Field(10.0, gt=0, description="seconds after which a request fails with 503")
    max_body_bytes: Positive = Field(1 << 20, description="largest body of a request, in bytes")
    max_candidates: Positive = Field(1000, description="most candidates of a request")
    max_k: Positive = Field(100, description="longest list that a request may ask for")
    columns: list[str] = Field(
        default=[],
        description="item columns that answers of rank, recommend and similar show with each item, "
        'e.g. ["title", "image"]; a request may ask for others; empty: none',
    )
    max_bulk_lines: Positive = Field(1_000_000, description="most lines of a /v1/batch_rank")
    max_bulk_streams: Positive = Field(8, description="calls of /v1/batch_rank at a time in a replica")
    budget_ms: float = Field(
        0.0, ge=0, description="time of a recommendation after which it takes cheaper steps; 0: no limit"
    )
    cache_mb: float = Field(64.0, ge=0, description="memory of a replica's response cache; 0: no cache")
    states_mb: float = Field(16.0, ge=0, description="memory of a replica's user vector cache; 0: no cache")
    cache_s: float = Field(
        10.0, ge=0, description="time to live of both caches; a new event of the user invalidates"
    )
    store: str = Field(
        "", description="folder of the feedback log, or redis://HOST:PORT/0; empty: beside the bundle"
    )
    keep_days: float = Field(
        0.0,
        ge=0,
        description="days after which stored events are removed, and with them that a user has seen their "
        "items; export or train on them before; 0: never",
    )
    max_new_items: Count = Field(
        10_000, description="most items that may be added or changed between two trainings"
    )
    models: dict[ModelName, str] = Field(
        {}, description='further bundles, e.g. {news = "runs/news/bundle"}, served at /v1/models/news/rank'
    )
    models_mb: float = Field(
        1024.0, gt=0, description="memory of a replica for further bundles; the least recently used leave it"
    )
    cache_dir: str = Field(
        "", description="folder for copies of bundles from s3:// and the like; empty: in ~/.cache"
    )
    cache_gb: float = Field(
        20.0, gt=0, description="size of that folder; the least recently used copies leave it"
    )
    rollout: Rollout = Rollout()

    @model_validator(mode="after")
    def _replicas(self) -> Serve:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())
