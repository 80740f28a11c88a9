"""The config object that passes from the command line through the job into the checkpoint and the tables."""

import hashlib
import json
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mnist_ray.config.names import check_name
from mnist_ray.config.own_settings import (
    MODELS,
    OF_BUILT_IN,
    OwnSettings,
    OwnSettingsField,
    argument_of,
    check_model,
    check_network_settings,
    is_own,
    nested,
    setting_named,
)
from mnist_ray.data.augmentation import AUGMENTATIONS
from mnist_ray.data.datasets import DATASETS, check_dataset
from mnist_ray.data.examples import Split
from mnist_ray.data.image_shape import Color, Fit, ImageForm, ImageOptions, parse_size
from mnist_ray.errors import ConfigError
from mnist_ray.optimizers.optimizers import SCHEDULES_OF_LENGTH, OptimizerConfig
from mnist_ray.setting import Setting, choices_of, did_you_mean_setting, one_of, setting_of, settings_where
from mnist_ray.text.suggestions import did_you_mean

MAX_COUNT = 2**31 - 1

Precision = Literal["bf16", "tf32", "float32", "float64"]
_Dataset = Annotated[str, AfterValidator(check_dataset)]


def _whole_size(value: Any) -> Any:
    """Returns a size as WIDTHxHEIGHT, so that 32 and 32x32 are the same setting."""
    if value is None or not isinstance(value, str | int):
        return value
    return "{}x{}".format(*parse_size(str(value)))


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would read true as 1 in a number's place.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be true or false")
        return value

    def canonical_json(self) -> str:
        """Returns the config as JSON with sorted keys and no spaces: equal configs give equal text."""
        return _json(self.model_dump(mode="json"))

    def config_hash(self) -> str:
        """Returns the SHA-256, in hexadecimal, of the canonical JSON of the settings that differ from the defaults.

        Adding a setting therefore changes no hash. A default must never change, since two configs would then share
        a hash; put a better value into a variant.
        """
        changed = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(_json(changed).encode()).hexdigest()


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


class _NetworkConfig(_Config):
    """The run's identity and network."""

    variant: Annotated[str, Setting(is_per_run=True)] = Field(
        "baseline", description="name of the preset that the other settings start from"
    )
    dataset: Annotated[
        _Dataset,
        # The column `dataset` holds the evaluated data set.
        Setting(is_of_data=True, may_hold_credentials=True, column="train_dataset"),
    ] = Field("mnist", description="data set: a name, idx:FOLDER, folder:URI or parquet:URI")
    seed: Annotated[int, Setting(is_per_run=True, group="Run")] = Field(
        0, ge=0, lt=2**63, description="seed of every random stream of the run"
    )

    model: Annotated[
        str,
        AfterValidator(check_model),
        Setting(group="Network", known=MODELS, metavar=f"[{'|'.join(MODELS)}|FILE.py:FUNCTION]"),
    ] = Field(
        "mlp",
        description=f"network: {', '.join(MODELS)}, or the function that makes your own, FILE.py:FUNCTION or "
        "package.module:FUNCTION",
    )
    hidden_sizes: Annotated[
        tuple[int, ...], Setting(short="hidden", is_on_page=True, group="Network", metavar="N,N,...")
    ] = Field((128, 64), description="units of each hidden layer (mlp), channels of each block (cnn, resnet)")
    dropout: Annotated[float, Setting(is_per_run=True, is_on_page=True, group="Network")] = Field(
        0.0, ge=0, lt=1, description="probability of zeroing a hidden unit in training"
    )
    dropout_layers: Annotated[int, Setting(group="Network")] = Field(
        2, ge=0, le=MAX_COUNT, description="number of leading hidden layers that dropout follows"
    )
    batch_norm: Annotated[bool, Setting(is_on_page=True, word="bn", group="Network")] = Field(
        False, description="batch normalization after each hidden layer, before ReLU"
    )

    model_settings: Annotated[
        OwnSettings, OwnSettingsField, Setting(is_later=True, group="Network", metavar="MAPPING")
    ] = Field(OwnSettings(), description="arguments of the function that makes your own network, such as {width: 64}")
    code_sha256: Annotated[str | None, Setting(is_later=True)] = Field(
        None, pattern="^[0-9a-f]{64}$", description="SHA-256 of the code of your own network; filled in by mnist-ray"
    )

    @property
    def is_own_network(self) -> bool:
        """Whether the network is the user's own; a built-in one has no code to give."""
        return is_own(self.model)

    def network_words(self) -> str:
        """Returns the network and its sizes, such as 'mlp 128-64' or 'nets.py:make_net width=64'."""
        sizes = "-".join(map(str, self.hidden_sizes))
        return f"{self.model} {self.model_settings.words() if self.is_own_network else sizes}".rstrip()


# The bases determine the order of options and columns: network, optimizer, all others.
class TrainConfig(OptimizerConfig, _NetworkConfig):
    """All settings that a run's result depends on."""

    global_batch_size: Annotated[int, Setting(short="batch", usual_names=("batch_size",))] = Field(
        64, ge=1, le=MAX_COUNT, description="examples in one step, over all workers"
    )
    label_smoothing: Annotated[float, Setting(short="smoothing", is_per_run=True, is_on_page=True)] = Field(
        0.0, ge=0, lt=1, description="share of the target spread evenly over the classes"
    )
    augmentation: Annotated[str, one_of(AUGMENTATIONS), Setting(is_on_page=True)] = Field(
        "none", description="random distortion of the training images"
    )
    early_stopping_patience: Annotated[
        int | None, Setting(short="patience", is_per_run=True, usual_names=("patience",))
    ] = Field(None, ge=1, le=MAX_COUNT, description="epochs without a lower validation loss after which the run ends")
    precision: Precision = Field("float32", description="arithmetic: bf16 is mixed, tf32 acts on GPUs only")

    train_limit: Annotated[int | None, Setting(short="limit", is_of_data=True, none_word="all", group="Data")] = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="use only N training examples: the first of a named set; for your own data, the first of each "
        "class in proportion",
    )
    validation_fraction: Annotated[float, Setting(short="val", is_of_data=True, group="Data")] = Field(
        0.1, gt=0, lt=1, description="share of the training examples held out for validation, per class"
    )
    validation_seed: Annotated[int, Setting(short="val_seed", is_of_data=True, group="Data")] = Field(
        0, ge=0, lt=2**63, description="seed of the validation split"
    )
    image_size: Annotated[
        str | None,
        BeforeValidator(_whole_size),
        Setting(short="size", is_of_data=True, is_on_page=True, is_later=True, group="Data", metavar="N|WIDTHxHEIGHT"),
    ] = Field(
        None,
        description="size that your own images get: one side, such as 32, or WIDTHxHEIGHT, such as 40x60; by default "
        "their own, if all images have the same size of at most 96x96",
    )
    color: Annotated[Color | None, Setting(is_of_data=True, is_on_page=True, is_later=True, group="Data")] = Field(
        None, description="grey or rgb, for your own images; by default grey if all pixels are grey, else rgb"
    )
    fit: Annotated[Fit, Setting(is_of_data=True, is_on_page=True, is_later=True, group="Data")] = Field(
        "pad",
        description="what happens to images of other proportions, also in evaluation and prediction: pad, crop or "
        "stretch",
    )

    @field_validator("variant")
    @classmethod
    def _check_variant(cls, value: str) -> str:
        return check_name(value, "variant")

    @field_validator("hidden_sizes", mode="before")
    @classmethod
    def _split_hidden_sizes(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else (value,) if type(value) is int else value

    @field_validator("hidden_sizes")
    @classmethod
    def _check_hidden_sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or not all(1 <= size <= MAX_COUNT for size in value):
            raise ValueError(f"needs at least one hidden layer, each of 1 to {MAX_COUNT} units")
        return value

    def in_form(self, form: ImageForm) -> Self:
        """Returns a config that asks for images of this form; those of a named set have no other."""
        return self if self.dataset in DATASETS else self.model_copy(update=form.settings)

    def continues(self, shorter: Self) -> bool:
        """Tells whether this run begins with all epochs of a shorter one: it only has more."""
        return self.differs_in_length(shorter) and self.epochs > shorter.epochs and not self.has_schedule_of_length

    def differs_in_length(self, other: Self) -> bool:
        """Tells whether two configs differ in their epochs and in nothing else."""
        return self != other and self == other.model_copy(update={"epochs": self.epochs})

    @property
    def has_schedule_of_length(self) -> bool:
        """Whether the learning rate of each epoch depends on how many there are."""
        return self.schedule in SCHEDULES_OF_LENGTH

    @property
    def image_options(self) -> ImageOptions:
        """What the settings ask of the user's own images."""
        return ImageOptions(parse_size(self.image_size) if self.image_size else None, self.color, self.fit)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        others = {name: getattr(self, name) for name in OF_BUILT_IN}
        changed = {name: value for name, value in others.items() if value != type(self).model_fields[name].default}
        check_network_settings(self.model, self.model_settings, changed)
        if self.dataset in DATASETS:
            shape = DATASETS[self.dataset].image_shape
            for name, value in (("image_size", self.image_size), ("color", self.color)):
                if value is not None:
                    raise ValueError(
                        f"{name}={value!r}: is for your own images, those of {self.dataset} are {shape.words}; leave "
                        "it out"
                    )
        if self.batch_norm and self.model == "mlp" and self.global_batch_size == 1:
            raise ValueError("global_batch_size=1: batch norm needs the variance of a batch; use at least 2")
        return self


# Settings that all runs of a stack share: shapes, data, steps and the computation of each step.
STACK_SETTINGS = settings_where(TrainConfig, lambda setting: not setting.is_per_run)
# Settings that a run's examples depend on.
DATA_SETTINGS = settings_where(TrainConfig, lambda setting: setting.is_of_data)


class Range(_Config):
    """The values of a setting that a search chooses from."""

    kind: Literal["uniform", "loguniform", "randint"] = Field(description="distribution; randint includes both ends")
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")

    @model_validator(mode="after")
    def _check_ends(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"the low end {self.low:g} must lie below the high end {self.high:g}")
        if self.kind == "loguniform" and self.low <= 0:
            raise ValueError(f"the low end {self.low:g} of loguniform must lie above 0")
        if self.kind == "randint" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("the ends of randint must be whole numbers")
        return self


class GridConfig(_Config):
    """The runs of a grid: every combination of the axes' levels with every seed."""

    axes: dict[str, tuple[Any, ...]] = Field(description="setting -> its levels")
    ranges: dict[str, Range] = Field(description="setting -> the range that a search chooses from")
    fixed: dict[str, Any] = Field(description="settings of every run")
    seeds: tuple[Annotated[int, Field(strict=True, ge=0, lt=2**63)], ...] = Field(description="seeds")

    @field_validator("axes", "fixed")
    @classmethod
    def _freeze_lists(cls, value: dict[str, Any]) -> dict[str, Any]:
        # JSON has no tuples, which hidden_sizes needs: a grid read back must equal the grid written.
        return {name: _frozen(levels) for name, levels in value.items()}

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        for name, levels in self.axes.items():
            if not levels:
                raise ValueError(f"{name}: an axis needs at least one level")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: must be distinct, and at least one")
        return self


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


class EvaluationConfig(_Config):
    """All settings that an evaluation depends on besides the checkpoints and the data."""

    dataset: Annotated[_Dataset | None, Setting(may_hold_credentials=True)] = Field(
        None, description="data set: a name, idx:FOLDER, folder:URI or parquet:URI; by default the runs' own"
    )
    split: Split = Field("test", description="split of the data set")
    batch_size: int = Field(1000, ge=1, le=MAX_COUNT, description="images in one pass through the networks")
    shard_size: int = Field(10_000, ge=1, le=MAX_COUNT, description="images in one part file")
    num_bins: int = Field(15, ge=1, le=1000, description="bins of the calibration table")
    grid: str | None = Field(None, description="name of the grid that the runs belong to")


_AnyConfig = TypeVar("_AnyConfig", bound=_Config)


def make_config(kind: type[_AnyConfig], settings: Mapping[str, Any], source: str = "config") -> _AnyConfig:
    """Checks settings and returns a config with them.

    Args:
      kind: TrainConfig, EvaluationConfig, ...
      settings: field name -> value.

    Raises:
      ConfigError: a setting breaks a rule; the message names the first, in one line.
    """
    try:
        return kind.model_validate(dict(settings))
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: {_first_error(kind, error)}") from None


def check_setting(name: str, value: Any, source: str) -> Any:
    """Returns the value of a TrainConfig setting as pydantic converts it.

    Raises:
      ConfigError: the value breaks a rule; the message names it in one line.
    """
    try:
        # Some settings are for one's own images only.
        checked = getattr(
            TrainConfig.model_validate({"dataset": "folder:.", **nested({name: value})}), setting_named(name)
        )
    except pydantic.ValidationError as error:
        # An error without a location is from a rule about several settings; the others may satisfy it.
        if error.errors()[0]["loc"]:
            raise ConfigError(f"{source}: {_first_error(TrainConfig, error)}") from None
        return value
    argument = argument_of(name)
    return checked[argument] if argument else checked


def _first_error(kind: type[_Config], error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    setting = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"unknown setting {short(setting)}{did_you_mean_setting(kind, setting)}"
    if first["type"] == "missing":
        return f"{setting}: a value is needed"
    rule = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    rule = rule.replace("a valid tuple", "a list of whole numbers")
    if first["type"] == "literal_error":
        rule += did_you_mean(str(first["input"]), choices_of(kind, setting))
    # A URI may hold credentials; the setting's own message shows the rest of it.
    is_hidden = setting and setting_of(kind, setting).may_hold_credentials and ":" in str(first["input"])
    given = "" if is_hidden else f"={short(first['input'])}"
    return f"{setting}{given}: {rule}" if setting else rule


def short(value: Any) -> str:
    """Returns a value's repr, shortened if it is long."""
    limited = reprlib.Repr()
    limited.maxstring = limited.maxother = limited.maxlong = 100
    return limited.repr(value)
