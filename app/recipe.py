"""The recipe: one TOML file that drives every stage, as typed models.

Every key has a default except the input files. An unknown key, a wrong type or two keys
at odds raise a RecipeError that names the key, the value and the remedy.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal

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
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # stands in a path


class Section(BaseModel):
    """A part of the recipe: no unknown keys, nothing changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Outlier(Section):
    """Values of a numeric column beyond its fences are dropped or clipped."""

    column: str
    method: Literal["iqr", "zscore"] = "iqr"
    threshold: float = Field(3.0, gt=0, description="IQRs beyond the quartiles, or standard deviations")
    action: Literal["drop", "clip"] = "drop"


class AttributeFile(Section):
    """A file of item or user attributes, one row an id."""

    files: list[str]
    id: str = Field(description="column that holds the id")
    columns: list[str] = Field(default=[], description="attribute columns; empty takes all")


class Data(Section):
    """Where the events are, what their columns mean, and how they are cleaned."""

    events: list[str] = Field(default=[], description="files, folders, globs or URIs")
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    delimiter: str = ","
    encoding: str = "utf-8"
    user: str = "user"
    item: str = "item"
    timestamp: str = Field("timestamp", description="empty: the order of rows is the order in time")
    time_unit: Literal["auto", "s", "ms", "us", "ns"] = Field("auto", description="of numeric times")
    time_format: str = Field("", description="strptime pattern of text times; empty: ISO 8601")
    event: str = Field("", description="column of the event type; empty: all events are alike")
    value: str = Field("", description="column of a number: rating, quantity, seconds; empty: 1")
    event_types: list[str] = Field(default=[], description="known event types; empty: all are")
    positive: list[str] = Field(default=[], description="event types to predict; empty: all")
    where: str = Field("", description="rows to keep, e.g. \"Quantity > 0 and not InvoiceNo like 'C%'\"")
    missing: dict[str, str] = Field(
        default={}, description="column -> 'drop', 'median', 'category' or 'constant:X'"
    )
    duplicates: Literal["keep", "exact", "key"] = "exact"
    duplicate_key: list[str] = Field(default=[], description="columns; empty: user, item, event, timestamp")
    outliers: list[Outlier] = []
    earliest: str = Field("", description="ISO 8601; earlier events are bad times")
    latest: str = Field("", description="ISO 8601; later events are bad times; empty: now")
    min_user_events: Positive = 1
    min_item_events: Positive = 1
    item_columns: list[str] = Field(default=[], description="item attributes in the event files")
    user_columns: list[str] = Field(default=[], description="user attributes in the event files")
    items: AttributeFile | None = None
    users: AttributeFile | None = None
    buckets: Count = Field(0, description="buckets of users; 0: by the size of the input")


class Split(Section):
    """Which events train, which validate, which test."""

    method: Literal["time", "leave_last", "user", "random", "kfold", "given"] = "leave_last"
    valid: Fraction = Field(0.1, description="share of events (time, random) or users (user)")
    test: Fraction = Field(0.1, description="share of events (time, random) or users (user)")
    valid_days: float = Field(0, ge=0, description="time: length of the validation part; 0: by share")
    test_days: float = Field(0, ge=0, description="time: length of the test part; 0: by share")
    folds: int = Field(5, ge=2)
    fold: Count = Field(0, description="kfold: the fold that tests; the next one validates")
    test_events: list[str] = Field(default=[], description="given: test files, columns as [data]")
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
    """What models see beside ids."""

    history: Positive = Field(50, description="most recent events of a user that a model sees")
    context: list[Literal["hour", "weekday", "recency"]] = Field(
        default=["hour", "weekday", "recency"], description="of the moment of the request"
    )
    item: list[AttributeFeature] = Field(
        default=[], description="features of items, a [[features.item]] table each, see below"
    )
    user: list[AttributeFeature] = Field(
        default=[], description="features of users, a [[features.user]] table each, see below"
    )


class ModelSection(BaseModel):
    """Which model, and its own hyperparameters, which the model's Config checks."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "mlp"

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.__pydantic_extra__ or {})


class Train(Section):
    """How the model is fitted."""

    epochs: Positive = 10
    batch_size: Positive = Field(1024, description="rows; each has one positive and its negatives")
    negatives: Count = Field(4, description="sampled per positive; 0: the logged labels alone")
    negative_sampling: Literal["uniform", "popularity"] = "uniform"
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="of the dense part")
    learning_rate: float = Field(1e-3, gt=0)
    table_optimizer: Literal["rowwise_adagrad", "same"] = Field(
        "rowwise_adagrad", description="of the embedding tables"
    )
    table_learning_rate: float = Field(0.05, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Count = 0
    clip_norm: float = Field(0.0, ge=0, description="0: no clipping")
    id_dropout: Fraction = Field(0.02, description="share of users hidden, so that row 0 is trained")
    patience: Count = Field(3, description="epochs without a better validation figure; 0: never stop early")
    metric: str = "ndcg@10"
    valid_users: Positive = Field(2000, description="users that the validation after each epoch ranks")
    workers: Count = Field(1, description="0: in this process, without Ray Train")
    gpu: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_minutes: float = Field(10.0, gt=0)
    max_failures: Count = Field(3, description="times that dead workers are replaced")
    refit: bool = Field(
        False,
        description="after the evaluation, train once more on all parts, for as many epochs as were best;"
        " the report stays that of the model trained without the parts held out",
    )


class Evaluate(Section):
    """The protocol of the reported figures."""

    k: list[Positive] = [5, 10, 20]
    candidates: Literal["all", "listed"] = "all"
    exclude_seen: bool = Field(True, description="do not rank what the user has in the training part")
    bootstrap: Count = Field(200, description="resamples of users for confidence intervals")
    baselines: list[str] = ["popularity", "item_knn"]
    max_users: Count = Field(0, description="users drawn to be ranked; 0: all")


class Compress(Section):
    """How the trained model shrinks before export."""

    rows: Literal["float32", "float16", "int8", "int4"] = Field(
        "int8", description="precision of embedding rows; integers have a scale a row"
    )
    dense: Literal["float32", "int8"] = Field("float32", description="precision of the dense part")
    prune: Fraction = Field(0.0, description="share of dense weights set to zero")


class Export(Section):
    """What goes into the bundle."""

    name: str = Field("", description="of the model in answers; empty: the recipe's")
    version: str = Field("", description="empty: from the digest of the bundle")
    index: Literal["auto", "exact", "ivf_sq8", "ivf_pq", "hnsw"] = Field(
        "auto", description="of the nearest items to a user; auto: exact up to 100,000 items"
    )
    recall: float = Field(0.98, gt=0, lt=1, description="share of the exact best 20 that an index must find")
    candidates: Positive = Field(
        1000, description="items that a recommendation ranks where the model has no index; at most"
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

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    min_replicas: Count = Field(1, description="0: none while nobody calls; a first call waits for one")
    max_replicas: Positive = 2
    cpus: Positive = Field(1, description="cores that a replica owns, and threads of one call")
    target_ongoing_requests: Positive = 8
    scale_up_s: float = Field(10.0, ge=0, description="the load asks for more replicas for so long first")
    scale_down_s: float = Field(120.0, ge=0, description="or for fewer")
    max_ongoing_requests: Positive = 64
    max_queued_requests: Positive = Field(256, description="of a replica; what exceeds them gets a 429")
    max_batch_candidates: Positive = Field(2048, description="candidates scored in one go")
    request_timeout_s: float = Field(10.0, gt=0)
    max_body_bytes: Positive = 1 << 20
    max_candidates: Positive = 1000
    max_k: Positive = 100
    max_bulk_lines: Positive = Field(1_000_000, description="of one /v1/batch_rank")
    max_bulk_streams: Positive = Field(8, description="of /v1/batch_rank at a time in a replica")
    budget_ms: float = Field(0.0, ge=0, description="of a recommendation, then it degrades; 0: none")
    cache_mb: float = Field(64.0, ge=0, description="recommendations kept in a replica; 0: none")
    states_mb: float = Field(16.0, ge=0, description="user vectors kept in a replica; 0: none")
    cache_s: float = Field(10.0, ge=0, description="both serve for so long; never after a new event")
    store: str = Field(
        "", description="folder of the feedback log, or redis://HOST:PORT/0; empty: beside the bundle"
    )
    max_new_items: Count = Field(10_000, description="that may come or change between two trainings")
    models: dict[ModelName, str] = Field(
        {}, description='further bundles, {news = "runs/news/bundle"}: /v1/models/news/rank'
    )
    models_mb: float = Field(
        1024.0, gt=0, description="of further bundles loaded at a time in a replica; the least used go"
    )
    cache_dir: str = Field("", description="copies of bundles from s3:// and the like; empty: in ~/.cache")
    cache_gb: float = Field(20.0, gt=0, description="of these copies; the least used go")
    rollout: Rollout = Rollout()

    @model_validator(mode="after")
    def _replicas(self) -> Serve:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Tune(Section):
    """How settings are searched."""

    trials: Positive = 20
    parallel: Count = Field(0, description="trials at a time; 0: as many as cores allow")
    epochs: Count = Field(0, description="epochs of a trial; 0: as [train]")
    max_users: Positive = Field(2000, description="validation users that a trial ranks")
    budget: str = Field("", description='of the choice, e.g. "p95_ms<=8, mb<=20"')


class Recipe(Section):
    """The whole recipe."""

    name: str = "model"
    seed: int = 42
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
        """The named sections as plain data, for a manifest and its cache key."""
        return {"seed": self.seed, **{s: getattr(self, s).model_dump(mode="json") for s in sections}}

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with dotted keys changed, e.g. {"train.epochs": 3}."""
        return parse(_merge(self.model_dump(mode="json", exclude_unset=True), changes), "override")


def load(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are "section.key=value" with TOML values.

    Relative input paths count from the recipe's folder; $NAME is taken from the environment.

    Raises:
        RecipeError: names the key, the value and the remedy.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), remedy="`rayrec init DIR` writes one") from None
    except IsADirectoryError:
        raise RecipeError(
            "is a folder, not a recipe", where=str(path), remedy="name the .toml file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not valid TOML: {error}", where=str(path), remedy="mend that line") from None
    changes = dict(parse_override(text) for text in overrides)
    recipe = parse(_merge(content, changes), str(path))
    return _resolve(recipe, path.resolve().parent)


def parse(content: Mapping[str, Any], where: str) -> Recipe:
    """Validate plain data as a recipe."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise _translate(error, where, content) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Split "train.epochs=3" into key and typed value; a bare word counts as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{text!r} is no override", where="--set", remedy="write section.key=value")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


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


def _resolve(recipe: Recipe, folder: Path) -> Recipe:
    def place(name: str) -> str:
        expanded = os.path.expandvars(name)
        if "$" in expanded:
            raise RecipeError(
                f"{name!r} names an environment variable that is not set", where="data", remedy="export it"
            )
        return expanded if "://" in expanded else str(folder / expanded)

    def attributes(source: AttributeFile | None) -> AttributeFile | None:
        return source and source.model_copy(update={"files": [place(f) for f in source.files]})

    data = recipe.data.model_copy(
        update={
            "events": [place(f) for f in recipe.data.events],
            "items": attributes(recipe.data.items),
            "users": attributes(recipe.data.users),
        }
    )
    split = recipe.split.model_copy(update={"test_events": [place(f) for f in recipe.split.test_events]})
    return recipe.model_copy(update={"data": data, "split": split})


def _translate(error: ValidationError, where: str, content: Mapping[str, Any]) -> RecipeError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
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
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    if section is Features and len(path) > 1:
        return ["kind", *(field.name for field in fields(feature_class(content.get("kind", DEFAULT))))]
    return list(section.model_fields)


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML with every key written out and explained."""
    lines = [f"name = {_toml(recipe.name)}", f"seed = {recipe.seed}"]
    for name in Recipe.model_fields:
        section = getattr(recipe, name)
        if isinstance(section, BaseModel):
            lines += _table_lines(name, section)
    return "\n".join(lines) + "\n"


def _table_lines(name: str, section: BaseModel) -> list[str]:
    """A table, and after it those within."""
    values = {key: getattr(section, key) for key in type(section).model_fields}
    inner = {key: value for key, value in values.items() if isinstance(value, BaseModel)}
    lines = ["", f"[{name}]", *_section_lines(section, inner)]
    if isinstance(section, Features):
        lines += _kind_lines()
    for key, value in inner.items():
        lines += _table_lines(f"{name}.{key}", value)
    return lines


def _section_lines(section: BaseModel, left_out: Collection[str]) -> list[str]:
    lines = []
    extra = dict(section.__pydantic_extra__ or {})
    for key, value in [*((k, getattr(section, k)) for k in type(section).model_fields), *extra.items()]:
        if key in left_out:
            continue
        field = type(section).model_fields.get(key)
        note = f"  # {field.description}" if field and field.description else ""
        # An empty list beside the tables that a user adds would define the key twice.
        if value is None or (isinstance(section, Features) and value == [] and key in ("item", "user")):
            lines.append(f"# {key} ={note}")
        else:
            lines.append(f"{key} = {_toml(value)}{note}")
    return lines


def _kind_lines() -> list[str]:
    """Comments that show an entry of each kind of feature with every key."""
    lines = []
    for kind in kind_names():
        feature = feature_class(kind)
        summary = (feature.__doc__ or "").splitlines()[0]
        lines += [f"# {summary}", "# [[features.item]]", f"# kind = {_toml(kind)}"]
        for field in fields(feature):
            default = "" if field.default is MISSING else field.default
            lines.append(f"# {field.name} = {_toml(default)}  # {field.metadata.get('description', '')}")
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, Feature):
        value = settings_of(value)
    if isinstance(value, BaseModel):
        value = {k: v for k, v in value.model_dump(mode="json").items() if v is not None}
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)
