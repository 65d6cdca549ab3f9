"""[features]: what models see beside ids; the keys of a kind of feature are those of its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from app.features.base import Feature
from app.features.kinds import DEFAULT, feature_class, kind_names, settings_of
from app.recipe.section import Positive, Section


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

    history: Positive = Field(
        50,
        description="most recent events of a user that a model sees; models of sets see up to 1,000, whatever"
        " it is",
    )
    context: list[Literal["hour", "weekday", "recency", "session"]] = Field(
        default=["hour", "weekday", "recency"],
        description="features of the moment of the request; recency: how long ago the last event was;"
        " session: events since the last pause of data.session_gap",
    )
    item: list[AttributeFeature] = Field(
        default=[], description="features of items, a [[features.item]] table each, see below"
    )
    user: list[AttributeFeature] = Field(
        default=[], description="features of users, a [[features.user]] table each, see below"
    )
