"""Validates the JSON documents of a storage: a matching checksum proves nothing about the values."""

import math
from base64 import b64decode
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1, lt=2**16)]


def _checked_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


class _Strict(BaseModel):
    """Keeps unknown keys: another version may have written them."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Epoch(BaseModel):
    """See history.EpochResult."""

    model_config = ConfigDict(strict=True, extra="forbid")

    epoch: int = Field(ge=1)
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    examples: int = Field(ge=0)
    epoch_seconds: float


_Time = Annotated[str, AfterValidator(_checked_time)]
_Deviation = Annotated[float, Field(gt=0, le=1)]


class _Normalization(_Strict):
    """Numbers for images of one channel, else lists of one per channel."""

    mean: Share | list[Share]
    std: _Deviation | list[_Deviation]


class _Validation(_Strict):
    """See validation.packed."""

    num_examples: int = Field(ge=1)
    correct: str

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        content, num_unused = b64decode(self.correct, validate=True), -self.num_examples % 8
        if 8 * len(content) != self.num_examples + num_unused or int.from_bytes(content[-1:]) % (1 << num_unused):
            raise ValueError(f"correct: not one bit for each of {self.num_examples} examples")
        return self


class GridDocument(_Strict):
    """Content of grid.json."""

    grid: str
    settings: dict[str, Any]
    search: dict[str, Any] | None
    samples: list[dict[str, Any]]
    runs: list[str]


class _Look(_Strict):
    """See looks.Look; `settled` has a bit for each pair, the second place varying fastest, in base64."""

    num_seeds: int = Field(ge=2)
    compared: list[str]
    can_be_best: list[str]
    settled: str


class LooksDocument(_Strict):
    """Content of looks.json."""

    margin: float
    seeds: list[int]
    settings: list[str]
    looks: list[_Look]

    @model_validator(mode="after")
    def _check_looks(self) -> Self:
        counts = [look.num_seeds for look in self.looks]
        if counts != sorted({*counts}) or max(counts, default=0) > len(self.seeds):
            raise ValueError(f"looks: at {counts} of {len(self.seeds)} seeds")
        num_bytes = (math.comb(len(self.settings), 2) + 7) // 8
        for look in self.looks:
            if unknown := {*look.compared, *look.can_be_best} - {*self.settings}:
                raise ValueError(f"looks: {min(unknown)!r} is not one of the settings")
            if len(b64decode(look.settled, validate=True)) != num_bytes:
                raise ValueError("settled: not one bit for each pair")
        return self


class _Lineage(_Strict):
    """See lineage.lineage."""

    command_line: str
    python: str
    libraries: dict[str, str]
    cpu: str
    num_cpus: int = Field(ge=1, lt=2**31)
    gpu: str | None
    os: str
    num_workers: int = Field(ge=1, lt=2**31)


class _Status(BaseModel):
    """See run_progress.RunStatus."""

    model_config = ConfigDict(strict=True, extra="forbid")

    status: Literal["finished", "stopped"]
    reason: str | None


class RunDocument(_Strict):
    """Content of config.json."""

    run: str
    config: dict[str, Any]
    config_hash: str
    data_sha256: str
    begun_at: _Time | None = None


class CheckpointDocument(RunDocument):
    """Content of checkpoint.json; in best/ it also holds the later epochs and how the run ended.

    An older version kept no validation.
    """

    epoch: int
    metrics: _Epoch
    history: list[_Epoch] = Field(min_length=1)
    validation: _Validation | None = None
    class_names: list[str] = Field(min_length=1)
    image_shape: tuple[Literal[1, 3], Size, Size] = Field((1, 28, 28), strict=False)
    normalization: _Normalization
    bright_ground_share: Share | None = None
    wide_bits: Literal[8, 10, 12, 14, 16] | None = None
    is_validation_given: bool = False
    files: dict[Literal["model.safetensors", "optimizer.safetensors"], str]
    code_version: str
    lineage: _Lineage
    stack_size: int = Field(ge=1)
    status: _Status | None = None
    trained_at: _Time | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if [row.epoch for row in self.history] != list(range(1, len(self.history) + 1)):
            raise ValueError("history: its epochs are not 1, 2, ...")
        if not 1 <= self.epoch <= len(self.history) or self.metrics != self.history[self.epoch - 1]:
            raise ValueError("epoch and metrics match no epoch in history")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("class_names: two classes have the same name")
        channels = self.image_shape[0]
        for values in (self.normalization.mean, self.normalization.std):
            if (len(values) if isinstance(values, list) else 1) != channels or isinstance(values, list) != (
                channels > 1
            ):
                raise ValueError(f"normalization: image_shape has {channels} channels")
        return self


def broken_rule(kind: type[RunDocument | GridDocument | LooksDocument], document: object) -> str | None:
    """Returns the first rule that a document breaks, in a few words; None if it breaks none."""
    try:
        kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        return f"{place}: {message}" if place else message
    return None
