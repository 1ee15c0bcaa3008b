"""One YAML file a road: the sections of every stage, joined, and how they are read and overridden.

A stage is a class of sections here, a module beside this one, and a verb of the command line; nothing else knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from worldvq.config.env import EnvConfig
from worldvq.config.fields import Config, PositiveInt
from worldvq.config.yaml_loading import apply_override, build, read_yaml
from worldvq.errors import UsageError, did_you_mean
from worldvq.evaluation.config import EvaluateConfig
from worldvq.files.differences import require_same
from worldvq.models.config import (
    DynamicsConfig,
    ImagePriorConfig,
    SceneConfig,
    SoundTokenizerConfig,
    TokenizerConfig,
    TokenizerLossConfig,
    WaveNetConfig,
)
from worldvq.recording.config import RecordConfig
from worldvq.training.config import TrainConfig


class RecordSections(Config):
    """What :mod:`worldvq.recording` is told."""

    env: EnvConfig = EnvConfig()
    record: RecordConfig = RecordConfig()


class TokenizerSections(Config):
    """What :mod:`worldvq.stages.tokenizer` is told."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    tokenizer_training: TrainConfig = TrainConfig()
    tokenizer_loss: TokenizerLossConfig = TokenizerLossConfig()

    @model_validator(mode="after")
    def _motion_needs_frames(self) -> Self:
        if self.tokenizer_loss.motion and self.tokenizer_training.clip_frames < 2:
            raise ValueError(
                f"tokenizer_loss.motion {self.tokenizer_loss.motion} compares a frame with the one before it: set "
                f"tokenizer_training.clip_frames to 2 or more, got {self.tokenizer_training.clip_frames}"
            )
        return self


class DynamicsTrainConfig(TrainConfig):
    """A training run of the dynamics."""

    batch_size: PositiveInt = 8
    """Clips a step, over all processes."""
    clip_frames: Annotated[int, Field(ge=2)] = 16
    """Frames a clip: at least 2, or there is no next frame to predict, and at least ``dynamics.context_frames``; more
    trains the sliding window too."""
    rewarded_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Of the clips, how many are drawn among those that hold a reward; the others are drawn among all, which with 0 all
    are. Each counts by how often uniform sampling would have drawn it."""


class DynamicsSections(Config):
    """What :mod:`worldvq.stages.dynamics` is told."""

    dynamics: DynamicsConfig = DynamicsConfig()
    dynamics_training: DynamicsTrainConfig = DynamicsTrainConfig()

    @model_validator(mode="after")
    def _memory_is_trained(self) -> Self:
        memory, clip = self.dynamics.context_frames, self.dynamics_training.clip_frames
        if memory > clip:
            raise ValueError(
                f"dynamics.context_frames {memory} is more than dynamics_training.clip_frames {clip}: a dream would "
                "remember frames further back than it was ever trained on: lower the first or raise the second"
            )
        return self


class PriorTrainConfig(TrainConfig):
    """A training run of the image prior."""

    batch_size: PositiveInt = 64
    """Frames a step, over all processes."""
    clip_frames: Literal[1] = 1
    """An image prior sees single frames."""


class PriorSections(Config):
    """What :mod:`worldvq.stages.prior` is told."""

    prior: ImagePriorConfig = ImagePriorConfig()
    prior_training: PriorTrainConfig = PriorTrainConfig()


class SceneSections(Config):
    """What :mod:`worldvq.stages.scene` is told."""

    scene: SceneConfig = SceneConfig()
    scene_training: TrainConfig = TrainConfig()


class SoundTrainConfig(TrainConfig):
    """A training run of the VQ-VAE of sound."""

    batch_size: PositiveInt = 8
    """Pieces a step, over all processes."""
    clip_frames: Literal[1] = 1
    """A tokenizer of sound sees no frames."""
    crop_samples: PositiveInt = 4096
    """Samples of a piece; must divide by those of a token."""


class SoundSections(Config):
    """What :mod:`worldvq.stages.sound` is told."""

    sound: SoundTokenizerConfig = SoundTokenizerConfig()
    sound_training: SoundTrainConfig = SoundTrainConfig()

    @model_validator(mode="after")
    def _pieces_divide_into_tokens(self) -> Self:
        hop, length = self.sound.hop, self.sound_training.crop_samples
        if length % hop:
            raise ValueError(
                f"sound_training.crop_samples {length} does not divide into tokens of {hop} samples (sound.strides): "
                f"set it to {max(1, round(length / hop)) * hop}"
            )
        return self


class SoundPriorTrainConfig(TrainConfig):
    """A training run of the prior over codes of sound."""

    batch_size: PositiveInt = 32
    """Pieces a step, over all processes."""
    clip_frames: Literal[1] = 1
    """A prior over codes of sound sees no frames."""
    crop_tokens: PositiveInt = 128
    """Codes of a piece."""


class SoundPriorSections(Config):
    """What :mod:`worldvq.stages.sound_prior` is told."""

    sound_prior: WaveNetConfig = WaveNetConfig()
    sound_prior_training: SoundPriorTrainConfig = SoundPriorTrainConfig()


class EvaluateSections(Config):
    """What :mod:`worldvq.evaluation` is told."""

    evaluate: EvaluateConfig = EvaluateConfig()


class ExperimentConfig(
    EvaluateSections,
    SoundPriorSections,
    SoundSections,
    SceneSections,
    PriorSections,
    DynamicsSections,
    TokenizerSections,
    RecordSections,
):
    """A whole road from an environment to an imagined video."""

    @model_validator(mode="after")
    def _size_is_given_once(self) -> Self:
        """Where only ``tokenizer.frame_size`` is given, that is what is recorded."""
        given = "frame_size" in self.tokenizer.model_fields_set
        if given and "size" not in self.env.model_fields_set:
            vars(self)["env"] = self.env.model_copy(update={"size": self.tokenizer.frame_size})
            self.__pydantic_fields_set__.add("env")
        height, width = self.env.size
        if given and self.env.size != self.tokenizer.frame_size:
            other = "x".join(str(side) for side in self.tokenizer.frame_size)
            raise ValueError(f"env.size {height}x{width} and tokenizer.frame_size {other} differ: give one of them")
        if height % 4 or width % 4:
            raise ValueError(f"env.size {height}x{width}: a tokenizer takes sides that divide by 4, as 64 or 48x64 do")
        return self

    def sections(self, stage: type[Config]) -> dict[str, Any]:
        """Return the sections of a stage as plain data: what decides its run."""
        return self.model_dump(mode="json", include=set(stage.model_fields))

    def for_frames(self, size: tuple[int, int], source: str) -> Self:
        """Return the config whose tokenizer takes frames of this size.

        Args:
            size: Height and width.
            source: What has them, for messages.

        Raises:
            UsageError: ``tokenizer.frame_size`` was given and is another one, or ``tokenizer.downsample`` does not fit.
        """
        if "frame_size" in self.tokenizer.model_fields_set:
            require_same(
                {"frame_size": size},
                {"frame_size": self.tokenizer.frame_size},
                ("the dataset has", "the config's tokenizer expects"),
                f"{source} does not fit the config",
                "leave tokenizer.frame_size out, or record again",
            )
        settings = self.tokenizer.model_dump(exclude_unset=True) | {"frame_size": size}
        return self.model_copy(update={"tokenizer": build(TokenizerConfig, settings, source)})


def defaults(stage: type[Config]) -> dict[str, Any]:
    """Return the sections of a stage as plain data where nothing is given."""
    return stage().model_dump(mode="json")


MINUTES = {10: "maze", 60: "maze_hour"}
"""The demo's presets by how long they take on two CPU cores."""


def preset(minutes: int) -> str:
    """Return the name of the largest preset that takes no longer than so many minutes on two CPU cores.

    Raises:
        UsageError: Even the smallest takes longer.
    """
    fitting = [least for least in MINUTES if least <= minutes]
    if not fitting:
        raise UsageError(f"--minutes {minutes}: the shortest demo takes {min(MINUTES)}; --config tiny takes seconds")
    return MINUTES[max(fitting)]


def built_in_configs() -> dict[str, Path]:
    """Return the configs that ship with worldvq by name: in the package as it is installed, or beside it."""
    package = Path(__file__).resolve().parents[1]
    files = [file for folder in (package.parent, package) for file in (folder / "configs").glob("*.yaml")]
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


def find_config(name: str | Path) -> Path:
    """Return the path of a config: a file, or the name of one that ships with worldvq (``maze``, ``doom`` …).

    Raises:
        UsageError: There is no such file or name; the known names are listed.
    """
    path = Path(name)
    if path.is_file():
        return path
    names = built_in_configs()
    stem = path.name.removesuffix(".yaml")
    if stem in names and path.parent in (Path(), Path("configs")):
        return names[stem]
    raise UsageError(
        f"no config '{name}'{did_you_mean(path.stem, names)}: give a YAML file or one of {', '.join(names)}"
    )


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read a YAML experiment and apply ``key.path=value`` overrides.

    Raises:
        UsageError: Missing file, malformed YAML, unknown key or wrong value.
    """
    file = find_config(path)
    data = read_yaml(file) or {}
    if not isinstance(data, dict):
        raise UsageError(f"{file}: expected keys and values, got {type(data).__name__}")
    overrides = list(overrides)
    for override in overrides:
        apply_override(data, override)
    return build(ExperimentConfig, data, f"{file}" + (f" with {' '.join(overrides)}" if overrides else ""))


def override(config: ExperimentConfig, changes: dict[str, Any], overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Return a config with values changed by key path, then by ``key.path=value`` texts.

    Raises:
        UsageError: An unknown key or a wrong value.
    """
    data = config.model_dump(mode="json", exclude_unset=True)  # what is not given stays so
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    for text in overrides:
        apply_override(data, text)
    return build(ExperimentConfig, data, "options")
