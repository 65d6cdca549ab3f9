"""[model], [train] and [tune]: which model, how it is trained and searched for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.recipe.section import Count, Fraction, Positive, Section


class ModelSection(BaseModel):
    """Which model is trained, and its own hyperparameters, which the model's Config checks."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(
        "auto",
        description="which model: the name of a file in app/models, or auto: those that suit the log are"
        " compared on validation; with `file` a name for the reports",
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

    minutes: float = Field(
        4.0,
        gt=0,
        description="time that model.name = 'auto' may take to compare models; the first one always ends",
    )
    epochs: Positive = Field(20, description="passes over the training part at most")
    batch_size: Count = Field(
        0,
        description="size of a step: rows, of a positive and its negatives each, or, of a model that learns"
        " sequences or sets, positions, which are the events and the padding of the users in it; 0: by the"
        " number of events, 64 to 4096",
    )
    negatives: Count = Field(
        15,
        description="negatives that are sampled for a positive, or, of a model that learns sequences or sets,"
        " once a step for all positives; 0: the logged labels alone",
    )
    negative_sampling: Literal["uniform", "popularity"] = Field(
        "uniform", description="uniform: all items alike; popularity: by their number of positive events"
    )
    event_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="how much an event to predict counts, by its type, e.g. {purchase = 3.0, view = 1.0}; 1"
        " where it is not named, 0: it is history alone; of models that learn sequences or sets",
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
    patience_steps: Count = Field(
        200, description="steps without a better validation figure that it takes at least before it stops"
    )
    metric: str = Field("ndcg@10", description="validation figure that chooses the best epoch")
    valid_users: Positive = Field(
        2000, description="users that the validation after each epoch ranks at most"
    )
    valid_share: float = Field(
        0.2,
        gt=0,
        description="time of validation, as a share of that of training: fewer users are ranked where it"
        " would take longer",
    )
    workers: Count = Field(1, description="processes that train together; 0: this one, without Ray Train")
    gpu: bool = Field(False, description="whether each worker uses a GPU")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of the dense part's arithmetic")
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="time between checkpoints within an epoch, in minutes"
    )
    max_failures: Count = Field(3, description="how often workers that died are replaced")
    valid_too: bool = Field(
        False,
        description="once validation has chosen the epochs, train anew on the training and validation parts"
        " together, for as many: that model is compressed, evaluated on the test part and exported",
    )
    refit: bool = Field(
        False,
        description="after the evaluation, train once more on all parts, for as many epochs as were best;"
        " the report stays that of the model trained without the parts held out",
    )
