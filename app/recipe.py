"""The recipe: a TOML file that drives every stage, as typed models.

Every key has a default except the input files. An unknown key, a wrong type or two keys
at odds raise a RecipeError that names the key, the value and the remedy.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from app.errors import RecipeError
from app.features.base import Feature
from app.features.kinds import DEFAULT, feature_class, kind_names, settings_of

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's types of error
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # stands in a path


class Section(BaseModel):
    """A table of the recipe: unknown keys are refused, and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Outlier(Section):
    """A rule for a numeric column: values beyond the bounds of its training rows are dropped or clipped."""

    column: str = Field(description="numeric column that the rule is about")
    method: Literal["iqr", "zscore"] = Field(
        "iqr", description="iqr: bounds around the quartiles; zscore: around the mean"
    )
    threshold: float = Field(
        3.0, gt=0, description="width of the bounds, in interquartile ranges or standard deviations"
    )
    action: Literal["drop", "clip"] = Field(
        "drop", description="drop: reject the row; clip: move the value to the bound"
    )


class AttributeFile(Section):
    """Files of item or user attributes, a row for each id."""

    files: list[str] = Field(description="files, folders, globs or URIs")
    id: str = Field(description="column that holds the id")
    columns: list[str] = Field(default=[], description="columns to read as attributes; empty: all")


class Data(Section):
    """Where the events are, what their columns mean, and how they are cleaned."""

    events: list[str] = Field(
        default=[],
        description="files, folders, globs or URIs of events, or feedback (store:FOLDER, redis://HOST)",
    )
    format: Literal["auto", "csv", "jsonl", "parquet"] = Field(
        "auto", description="format of the event files; auto: by their ending and content"
    )
    delimiter: str = Field(",", description="character between the fields of a CSV file")
    encoding: str = Field("utf-8", description="encoding of CSV and JSON lines files")
    user: str = Field("user", description="column of the user id")
    item: str = Field("item", description="column of the item id")
    timestamp: str = Field(
        "timestamp", description="column of the time; empty: the order of rows is the order in time"
    )
    time_unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        "auto", description="unit of numeric times since 1970; auto: by their size"
    )
    time_format: str = Field("", description="strptime pattern of text times; empty: ISO 8601")
    event: str = Field("", description="column of the event type; empty: all events are alike")
    value: str = Field("", description="column of a number: rating, quantity, seconds; empty: 1")
    event_types: list[str] = Field(default=[], description="known event types; empty: all are known")
    positive: list[str] = Field(default=[], description="event types to predict; empty: all")
    where: str = Field("", description="rows to keep, e.g. \"Quantity > 0 and not InvoiceNo like 'C%'\"")
    missing: dict[str, str] = Field(
        default={},
        description="what becomes of missing values: column = 'drop', 'median', 'category' or 'constant:X'",
    )
    duplicates: Literal["keep", "exact", "key"] = Field(
        "exact",
        description="exact: rows equal in all columns count once; key: rows equal in duplicate_key do",
    )
    duplicate_key: list[str] = Field(
        default=[], description="columns of duplicates = 'key'; empty: user, item, event, timestamp"
    )
    outliers: list[Outlier] = Field(default=[], description="rules for values beyond bounds, see below")
    earliest: str = Field("", description="earlier events are rejected (ISO 8601); empty: none are")
    latest: str = Field("", description="later events are rejected (ISO 8601); empty: those after now")
    min_user_events: Positive = Field(1, description="users with fewer training events are left out")
    min_item_events: Positive = Field(1, description="items with fewer training events are left out")
    item_columns: list[str] = Field(default=[], description="columns of the event files that describe items")
    user_columns: list[str] = Field(default=[], description="columns of the event files that describe users")
    items: AttributeFile | None = Field(None, description="files of item attributes, see below")
    users: AttributeFile | None = Field(None, description="files of user attributes, see below")
    buckets: Count = Field(
        0, description="parts by user that are prepared one at a time; 0: by the size of the input"
    )


class Split(Section):
    """Which events train, which validate, which test."""

    method: Literal["time", "leave_last", "user", "random", "kfold", "given"] = Field(
        "leave_last", description="leave_last: each user's last event tests, the one before validates"
    )
    valid: Fraction = Field(
        0.1, description="validation share: of events (time, random) or users (user); 0: no such part"
    )
    test: Fraction = Field(
        0.1, description="test share: of events (time, random) or users (user); 0: no such part"
    )
    valid_days: float = Field(0, ge=0, description="time: days of the validation part; 0: by share")
    test_days: float = Field(0, ge=0, description="time: days of the test part; 0: by share")
    folds: int = Field(5, ge=2, description="kfold: number of parts")
    fold: Count = Field(0, description="kfold: the fold that tests, from 0; the next one validates")
    test_events: list[str] = Field(default=[], description="given: test files with the columns of [data]")
    negatives: str = Field("", description="given: column of the test files that lists negative items")
    new_items_only: bool = Field(False, description="test only pairs that training has not seen")


def _feature(entry: Any) -> Any:
    """An entry of [[features.item]] or [[features.user]] as the feature of its kind.

    The kind is a file of `app/features/kinds`, whose class says which keys the entry may have.
    """
    if isinstance(entry, Feature):
        return entry
    if not isinstance(entry, Mapping):
        raise PydanticCustomError("feature", "write a table of settings with the key 'column'")
    kind = entry.get("kind", DEFAULT)
    if kind not in kind_names():
        message = "no such kind of feature; there are {known}"
        unknown = PydanticCustomError("feature_kind", message, {"known": ", ".join(kind_names())})
        problem = InitErrorDetails(type=unknown, loc=("kind",), input=kind)
        raise ValidationError.from_exception_data("feature", [problem])
    settings = {key: value for key, value in entry.items() if key != "kind"}
    return TypeAdapter(feature_class(kind)).validate_python(settings)


AttributeFeature = Annotated[Feature, PlainValidator(_feature), PlainSerializer(settings_of)]


class Features(Section):
    """What models see beside the ids of users and items."""

    history: Positive = Field(50, description="most recent events of a user that a model sees")
    context: list[Literal["hour", "weekday", "recency"]] = Field(
        default=["hour", "weekday", "recency"], description="features of the moment of the request"
    )
    item: list[AttributeFeature] = Field(
        default=[], description="features of items, a [[features.item]] table each, see below"
    )
    user: list[AttributeFeature] = Field(
        default=[], description="features of users, a [[features.user]] table each, see below"
    )


class ModelSection(BaseModel):
    """Which model is trained, and its own hyperparameters, which the model's Config checks."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(
        "mlp", description="which model: the name of a file in app/models; with `file` a name for the reports"
    )
    file: str = Field(
        "", description="a Python file of your own that defines the model and is run; empty: `name` chooses"
    )

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_file(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and content.get("file") and "name" not in content:
            return {**content, "name": Path(str(content["file"])).stem}
        return content

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """All keys but `name` and `file`."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def source(self) -> str:
        """What defines the model: the path of the user's file, or the name of a file in app/models."""
        return self.file or self.name


class Train(Section):
    """How the model is trained."""

    epochs: Positive = Field(10, description="passes over the training part at most")
    batch_size: Positive = Field(1024, description="rows of a step; a row has a positive and its negatives")
    negatives: Count = Field(
        4, description="negatives that are sampled for a positive; 0: the logged labels alone"
    )
    negative_sampling: Literal["uniform", "popularity"] = Field(
        "uniform", description="uniform: all items alike; popularity: by their number of positive events"
    )
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="optimizer of the dense part")
    learning_rate: float = Field(1e-3, gt=0, description="of the dense part")
    table_optimizer: Literal["rowwise_adagrad", "same"] = Field(
        "rowwise_adagrad", description="optimizer of the embedding tables; same: that of the dense part"
    )
    table_learning_rate: float = Field(0.05, gt=0, description="of the tables' own optimizer")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of all weights; 0: none")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="how the learning rates fall, to 0 at the last epoch, or not at all"
    )
    warmup_steps: Count = Field(0, description="first steps, in which the learning rates rise to their value")
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the gradients; 0: no clipping")
    id_dropout: Fraction = Field(
        0.02, description="share of ids replaced by the unknown one, which trains its row"
    )
    patience: Count = Field(
        3, description="epochs without a better validation figure before it stops; 0: never"
    )
    metric: str = Field("ndcg@10", description="validation figure that chooses the best epoch")
    valid_users: Positive = Field(2000, description="users that the validation after each epoch ranks")
    workers: Count = Field(1, description="processes that train together; 0: this one, without Ray Train")
    gpu: bool = Field(False, description="whether each worker uses a GPU")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of the dense part's arithmetic")
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="time between checkpoints within an epoch, in minutes"
    )
    max_failures: Count = Field(3, description="how often workers that died are replaced")
    refit: bool = Field(
        False,
        description="after the evaluation, train once more on all parts, for as many epochs as were best;"
        " the report stays that of the model trained without the parts held out",
    )


class Evaluate(Section):
    """The protocol of the reported figures."""

    k: list[Positive] = Field(
        default=[5, 10, 20], description="lengths of the lists for which figures are computed"
    )
    candidates: Literal["all", "listed"] = Field(
        "all", description="targets are ranked among all items, or among the negatives of the test part"
    )
    exclude_seen: bool = Field(
        True, description="items of the user's earlier events are not ranked, unless one of them is a target"
    )
    bootstrap: Count = Field(200, description="resamples of users for confidence intervals; 0: no intervals")
    baselines: list[str] = Field(
        default=["popularity", "item_knn"],
        description="models in closed form that the report compares with, popularity or item_knn",
    )
    max_users: Count = Field(0, description="users drawn at random to be ranked; 0: all")


class Compress(Section):
    """How the trained model shrinks before export."""

    rows: Literal["float32", "float16", "int8", "int4"] = Field(
        "int8", description="precision of embedding rows; integers have a scale for each row"
    )
    dense: Literal["float32", "int8"] = Field("float32", description="precision of the dense part")
    prune: Fraction = Field(0.0, description="share of the dense weights that are set to zero")


class Export(Section):
    """What goes into the bundle."""

    name: str = Field("", description="name of the model in answers; empty: the recipe's")
    version: str = Field("", description="version in answers; empty: the digest of the bundle")
    index: Literal["auto", "exact", "ivf_sq8", "ivf_pq", "hnsw"] = Field(
        "auto", description="index of the items nearest to a user; auto: exact up to 100,000 items"
    )
    recall: float = Field(
        0.98, gt=0, lt=1, description="least share of the exact best 20 items that the index finds"
    )
    candidates: Positive = Field(
        1000, description="items that a recommendation ranks at most, where the model has no index"
    )
    columns: list[str] = Field(
        default=[], description="item columns that filters and caps may name; empty: all but long texts"
    )


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


class Tune(Section):
    """How hyperparameters and compression are searched together."""

    trials: Positive = Field(20, description="finished trials at which the search ends")
    parallel: Count = Field(0, description="trials that run at a time; 0: one for each core")
    epochs: Count = Field(0, description="epochs of a trial at most; 0: those of [train]")
    max_users: Positive = Field(2000, description="validation users that a trial ranks")
    budget: str = Field("", description='limits of the choice, e.g. "p95_ms<=8, mb<=20"; empty: none')


class Recipe(Section):
    """A recipe, with the settings of every stage."""

    name: str = Field("model", description="name of the model")
    seed: int = Field(42, description="seed of everything that is random")
    data: Data = Data()
    split: Split = Split()
    features: Features = Features()
    model: ModelSection = ModelSection()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    compress: Compress = Compress()
    export: Export = Export()
    serve: Serve = Serve()
    tune: Tune = Tune()

    def part(self, *sections: str) -> dict[str, Any]:
        """The named sections as plain data, for a manifest and its cache key.

        In place of the path of a model's file stands the SHA-256 of its content; of the address of a
        Redis, user and password are left out.

        Raises:
            RecipeError: the file of the model cannot be read.
        """
        plain = {"seed": self.seed, **{s: getattr(self, s).model_dump(mode="json") for s in sections}}
        if "data" in plain:
            plain["data"]["events"] = [_without_password(entry) for entry in plain["data"]["events"]]
        if "model" in plain and (file := plain["model"].pop("file")):
            plain["model"]["file"] = _sha256(Path(file))
        return plain

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with dotted keys changed, e.g. {"train.epochs": 3}."""
        return parse(self.model_dump(mode="json", exclude_unset=True), "override", changes)


def parse(content: Mapping[str, Any], where: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Validate plain data as a recipe.

    Args:
        content: tables by name.
        where: the source of the content, for errors.
        changes: dotted keys that override the content, e.g. {"train.epochs": 3}.

    Raises:
        RecipeError: names the key, the value and the remedy.
    """
    content = _merge(content, changes or {})
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise _translate(error, where, content) from None


def _without_password(entry: str) -> str:
    scheme, mark, address = entry.partition("://")
    return f"{scheme}{mark}{address.rpartition('@')[2]}" if scheme in ("redis", "rediss") else entry


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RecipeError(
            f"the file cannot be read ({error.strerror})", where=str(path), remedy="correct model.file"
        ) from None


def _merge(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if not rest:
            merged[head] = value
            continue
        inner = merged.get(head, {})
        if not isinstance(inner, Mapping):
            raise RecipeError(
                f"{head!r} is not a section", where=key, remedy="see `rayrec init` for the keys"
            )
        merged[head] = _merge(inner, {rest: value})
    return merged


def _translate(error: ValidationError, where: str, content: Mapping[str, Any]) -> RecipeError:
    unknown = [e for e in error.errors() if e["type"] in _UNKNOWN_KEY]
    first = (unknown or error.errors())[0]  # a misspelt key explains a missing one
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if unknown:
        known = _keys(first["loc"][:-1], content)
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else "remove it; `rayrec init` lists all keys"
        return RecipeError(f"unknown key {key!r}{more}", where=where, remedy=remedy)
    value = repr(first["input"])
    what = f"{key} = {value if len(value) < 80 else value[:77] + '...'}: {first['msg']}{more}"
    return RecipeError(what, where=where, remedy="correct the value; `rayrec init` shows every key")


def _keys(path: tuple[int | str, ...], content: Any) -> list[str]:
    """The keys that the table at `path` of a recipe's content may have."""
    section: type[BaseModel] = Recipe
    for part in path:
        content = content[part]
        field = section.model_fields.get(str(part))
        types = [field.annotation, *get_args(field.annotation)] if field else []
        section = next((t for t in types if isinstance(t, type) and issubclass(t, BaseModel)), section)
    if section is Features and len(path) > 1:
        return ["kind", *(field.name for field in fields(feature_class(content.get("kind", DEFAULT))))]
    return list(section.model_fields)
