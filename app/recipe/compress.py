"""[compress]: how a trained model shrinks before export, by which steps and with what settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.recipe.section import Count, Fraction, Positive, Section

Step = Literal["distill", "finetune", "low_rank", "neurons", "product", "prune", "svd"]
Share = Annotated[float, Field(ge=0, le=1)]


class Distill(Section):
    """[compress.distill]: a smaller model learns from the trained one, its teacher."""

    student: dict[str, Any] = Field(
        {}, description="hyperparameters of the student that differ from the teacher's"
    )
    teachers: list[str] = Field(
        [], description="folders of checkpoints that teach beside the trained model, of the same data set"
    )
    weight: Share = Field(0.5, description="share of the teacher in the loss; the rest is that of model.loss")


class Finetune(Section):
    """[compress.finetune]: training goes on with what is smaller, and learns what it will be stored as."""

    epochs: Positive = Field(
        6, description="passes over the training part; the best one on validation is kept"
    )
    rate: float = Field(1.0, gt=0, description="factor of train.learning_rate, which falls to 0 by a cosine")
    weight: Share = Field(
        1.0, description="share of the uncompressed model, as a teacher, in the loss; the rest is model.loss"
    )


class LowRank(Section):
    """[compress.low_rank]: dense layers as two narrower ones, where these hold fewer weights."""

    energy: float = Field(
        0.98,
        gt=0,
        le=1,
        description="share of the squared outputs of a layer, on training data, that its rank keeps",
    )


class Neurons(Section):
    """[compress.neurons]: hidden neurons that matter least are removed, and the graph shrinks."""

    share: Fraction = Field(0.5, description="share of the neurons of each hidden layer that are removed")


class Product(Section):
    """[compress.product]: rows as product codes, a byte for each run of columns."""

    codes: Positive = Field(
        16, description="codes of a row, each a byte that stands for a run of columns; at most one for two"
    )
    words: Annotated[int, Field(ge=2, le=256)] = Field(
        256, description="codewords that each code chooses from; a table with fewer rows keeps its numbers"
    )


class Prune(Section):
    """[compress.prune]: the smallest dense weights become zero."""

    share: Fraction = Field(0.5, description="share of the weights of each dense layer that are set to zero")


class Svd(Section):
    """[compress.svd]: rows of fewer columns, which the dense part multiplies back."""

    columns: Fraction = Field(
        0.5, gt=0, description="share of the columns that each table keeps: its leading singular vectors"
    )


class Compress(Section):
    """How the trained model shrinks before export."""

    steps: list[Step] = Field(
        [],
        description="what makes the model smaller, in the order listed, each at most once: distill (a smaller"
        " student), neurons (fewer hidden ones), low_rank (dense layers as factors), prune (dense weights to"
        " zero), svd (rows of fewer columns), product (rows as codes), finetune (train what will be stored)",
    )
    rows: Literal["float32", "float16", "int8", "int4", "int2"] = Field(
        "int8",
        description="precision of embedding rows that are no product codes; integers have a scale for each"
        " row or group",
    )
    group: Count = Field(
        0, description="columns of a row that share a scale, where rows are integers; 0: the whole row"
    )
    dense: Literal["float32", "int8"] = Field("float32", description="precision of the dense part")
    distill: Distill = Distill()
    finetune: Finetune = Finetune()
    low_rank: LowRank = LowRank()
    neurons: Neurons = Neurons()
    product: Product = Product()
    prune: Prune = Prune()
    svd: Svd = Svd()
