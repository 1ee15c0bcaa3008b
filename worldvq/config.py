"""Every config type, and how an experiment is read from a YAML file with ``key.path=value`` overrides."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from worldvq.errors import UsageError, did_you_mean
from worldvq.yaml_loading import apply_override, build, read_yaml
from worldvq.yaml_loading import dump_yaml as dump_yaml
from worldvq.yaml_loading import parse_yaml as parse_yaml

PositiveInt = Annotated[int, Field(gt=0, lt=2**63)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63)]
Side = Annotated[int, Field(gt=0, le=4096)]
"""Pixels of a frame along one axis."""
Size = Annotated[int, Field(gt=0, le=2**16)]
"""Channels, codes, choices: what the size of a model depends on. A file cannot ask for more memory than that gives."""
Depth = Annotated[int, Field(ge=0, le=128)]
"""Blocks or layers."""
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EnvConfig(_Config):
    """Which environment, and how it becomes a stream of frames and actions."""

    id: str = "worldvq/Maze-v0"
    kwargs: dict[str, Any] = {}
    size: tuple[Side, Side] = (64, 64)
    """Height and width of a stored frame."""
    observation_key: str | None = None
    """Key of a Dict observation that holds the image; None finds the only image there is."""
    crop: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None
    """Pixels cut from the top, bottom, left and right before resizing."""
    frame_skip: PositiveInt = 1
    """Each action is repeated this often; rewards add up."""
    max_steps: PositiveInt | None = None
    """Truncate episodes after this many (skipped) steps; None leaves it to the environment."""


class RecordConfig(_Config):
    """How much is recorded, by whom, and which episodes are held out."""

    frames: PositiveInt | None = 20_000
    episodes: PositiveInt | None = None
    """Stop after this many episodes; overrides ``frames``."""
    workers: PositiveInt = 2
    policy: str = "held"
    """``random``, ``held`` (random, each action kept for a while), ``module:function`` or a path to a SB3 zip."""
    hold: PositiveInt = 8
    """Longest number of steps for which ``held`` keeps an action."""
    seed: NonNegativeInt = 0
    heldout_every: PositiveInt = 10
    """Episode n is held out when n % heldout_every == heldout_every - 1."""
    compression: Literal["none", "zstd"] = "none"
    timeout: PositiveFloat = 60.0
    """Seconds that an environment may take to be built, reset or stepped; then its worker is killed and replaced."""


class QuantizerConfig(_Config):
    """The codebook of the VQ-VAE, and how it is learned."""

    kind: Literal["ema", "sgd", "fsq"] = "sgd"
    """Codes by gradient (van den Oord et al. 2017, eq. 3), by moving averages (appendix A.1 there), or fixed: finite
    scalar quantization (Mentzer et al. 2023). docs/tokenizers.md compares them."""
    num_codes: Annotated[int, Field(gt=0, le=2**24)] = 512
    code_dim: Size = 32
    commitment_cost: NonNegativeFloat = 0.25
    decay: Fraction = 0.99
    revive_after: PositiveInt = 20
    """A code unused for about this many steps is replaced by an encoder output of the batch."""
    levels: Annotated[tuple[Annotated[int, Field(ge=3, le=2**16)], ...], Field(max_length=64)] = ()
    """``fsq`` only: levels of each dimension; they give ``num_codes``, their product, and ``code_dim``, their number.
    Not 2: bounded so that 0 is the middle of a level, a dimension of two levels would hardly leave that one."""
    initialize: Literal["batch", "kmeans"] = "batch"
    """Codes start at encoder outputs of the first batch, or at its means by Lloyd's iterations."""
    cosine: bool = False
    """Encoder outputs and codes have unit length, and the nearest code is the one at the smallest angle."""
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    """How the encoder learns through the code: copied, or by the rotation trick (Fifty et al. 2024)."""

    @model_validator(mode="before")
    @classmethod
    def _levels_give_sizes(cls, data: Any) -> Any:
        levels = data.get("levels") if isinstance(data, dict) else None
        if not isinstance(levels, list | tuple) or not levels or not all(isinstance(level, int) for level in levels):
            return data
        if len(levels) > 64 or max(levels) > 2**16:  # left to the fields, before their product is taken
            return data
        return {"num_codes": math.prod(levels), "code_dim": len(levels), **data}

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> QuantizerConfig:
        unused = {
            "ema": ("levels",),
            "sgd": ("levels", "decay"),
            "fsq": ("commitment_cost", "decay", "revive_after", "initialize", "cosine", "gradient"),
        }
        for name in unused[self.kind]:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise ValueError(f"{name} {value} means nothing to kind {self.kind}: leave it out, or {default}")
        if self.kind != "fsq":
            return self
        if not self.levels:
            raise ValueError("kind fsq needs levels, for instance levels [8, 8, 8] for 512 codes")
        size, dim = math.prod(self.levels), len(self.levels)
        if (self.num_codes, self.code_dim) != (size, dim):
            raise ValueError(
                f"levels {self.levels} make {size} codes of {dim} dimensions: set num_codes {size} and code_dim {dim}, "
                f"or leave both out (got {self.num_codes} and {self.code_dim})"
            )
        return self


class TokenizerConfig(_Config):
    """The frame-level VQ-VAE."""

    frame_size: tuple[Side, Side] = (64, 64)
    downsample: Literal[4, 8, 16] = 8
    """Pixels per token along each axis: 64 at 8 gives 8x8 tokens."""
    width: Annotated[int, Field(ge=8, le=2**16, multiple_of=8)] = 128
    """Channels at token resolution; half as many at twice the resolution."""
    encoder_blocks: Depth = 2
    """Residual blocks at token resolution, before the codes."""
    decoder_blocks: Depth = 3
    """Residual blocks at token resolution, after the codes."""
    quantizer: QuantizerConfig = QuantizerConfig()

    @model_validator(mode="after")
    def _divisible(self) -> TokenizerConfig:
        if any(side % self.downsample for side in self.frame_size):
            raise ValueError(f"frame_size {self.frame_size} is not divisible by downsample {self.downsample}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token grid."""
        return self.frame_size[0] // self.downsample, self.frame_size[1] // self.downsample


def _heads_fit(config: Any) -> Any:
    step = 4 * config.num_heads  # rotary angles for two axes come in pairs
    if getattr(config, "kind", "") != "pixelcnn" and config.width % step:
        raise ValueError(f"width {config.width} is not divisible by 4 x num_heads = {step}")
    return config


class PriorConfig(_Config):
    """The autoregressive model over the tokens of one frame."""

    kind: Literal["transformer", "pixelcnn"] = "transformer"
    width: Size = 128
    num_blocks: Annotated[Depth, Field(gt=0)] = 2
    """Blocks of the transformer, gated layers of the PixelCNN."""
    num_heads: Size = 4
    """Of the transformer; a PixelCNN has none."""

    _check_heads = model_validator(mode="after")(_heads_fit)


class DynamicsConfig(_Config):
    """Context network over past frames and actions, and the prior over the next frame."""

    context_frames: PositiveInt = 8
    """Frames that temporal attention sees, the current one included; the size of the ring cache."""
    width: Size = 128
    num_blocks: Annotated[Depth, Field(gt=0)] = 3
    num_heads: Size = 4
    prior: PriorConfig = PriorConfig()

    _check_heads = model_validator(mode="after")(_heads_fit)


class OptimizerConfig(_Config):
    """The optimizer, with linear warm-up and decay to zero over the run."""

    kind: Literal["adamw", "muon"] = "adamw"
    """``muon`` (Jordan et al. 2024) for the matrices of hidden layers and convolutions, AdamW for the rest."""
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 100
    decay_fraction: Fraction = 1.0
    """The last fraction of the steps over which the rate falls linearly to zero."""
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    clip_norm: PositiveFloat = 1.0


class TrainConfig(_Config):
    """One training run. A step is one optimizer update on ``batch_size`` clips over all processes."""

    steps: PositiveInt = 5000
    batch_size: PositiveInt = 64
    clip_frames: PositiveInt = 1
    """Frames a clip: 1 for a tokenizer; for dynamics, more than ``context_frames`` trains the sliding window too."""
    accumulate: PositiveInt = 1
    """Forward passes a step; the global batch stays ``batch_size``."""
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """``auto`` is bf16 where the GPU or the CPU computes in it, and fp32 elsewhere."""
    seed: NonNegativeInt = 0
    log_every: PositiveInt = 50
    picture_every: PositiveInt = 1000
    save_every: PositiveInt = 1000
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Of the newest; two, so that one is whole whatever happens to the other."""


class TokenizerLossConfig(_Config):
    """What the tokenizer's loss has besides reconstruction error and codebook; at weight 0 a term does not exist."""

    perceptual: NonNegativeFloat = 0.0
    """Weight of LPIPS (Zhang et al. 2018); needs the ``metrics`` extra, torchvision and its VGG16 weights."""
    adversarial: NonNegativeFloat = 0.0
    """Weight of what a patch discriminator (Isola et al. 2017) tells the tokenizer."""
    motion: NonNegativeFloat = 0.0
    """Weight of the error where a frame differs from the one before it, so that small moving things survive.
    Needs ``tokenizer_training.clip_frames`` of at least 2."""


class SamplingConfig(_Config):
    """How tokens are drawn."""

    temperature: NonNegativeFloat = 1.0
    """0 takes the most probable token."""
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    method: Literal["auto", "predictive", "sequential"] = "auto"
    """All tokens at once until they agree, or one after the other: the same tokens; ``auto`` takes the faster."""
    compile: bool = False
    """Compile the steps of a dream (torch.compile; on a GPU mostly CUDA graphs): a minute or so at first."""


class EvaluateConfig(_Config):
    """The held-out protocol."""

    clips: PositiveInt = 256
    context: PositiveInt = 6
    horizon: PositiveInt = 10
    batch_size: PositiveInt = 64
    seed: NonNegativeInt = 0
    sampling: SamplingConfig = SamplingConfig()


class ExperimentConfig(_Config):
    """One YAML file: a whole road from an environment to an imagined video."""

    env: EnvConfig = EnvConfig()
    record: RecordConfig = RecordConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokenizer_training: TrainConfig = TrainConfig()
    tokenizer_loss: TokenizerLossConfig = TokenizerLossConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    dynamics_training: TrainConfig = TrainConfig(batch_size=8, clip_frames=16)
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _sizes_agree(self) -> ExperimentConfig:
        if self.env.size != self.tokenizer.frame_size:
            raise ValueError(f"env.size {self.env.size} and tokenizer.frame_size {self.tokenizer.frame_size} differ")
        return self

    @model_validator(mode="after")
    def _motion_needs_frames(self) -> ExperimentConfig:
        if self.tokenizer_loss.motion and self.tokenizer_training.clip_frames < 2:
            raise ValueError(
                f"tokenizer_loss.motion {self.tokenizer_loss.motion} compares a frame with the one before it: set "
                f"tokenizer_training.clip_frames to 2 or more, got {self.tokenizer_training.clip_frames}"
            )
        return self


def find_config(name: str | Path) -> Path:
    """Return the path of a config: a file, or the name of one that ships with worldvq (``maze``, ``doom`` …).

    Raises:
        UsageError: There is no such file or name; the known names are listed.
    """
    path = Path(name)
    if path.is_file():
        return path
    here = Path(__file__).resolve().parent
    folders = [here / "configs", here.parent / "configs"]
    for folder in folders:
        shipped = folder / f"{path.name.removesuffix('.yaml')}.yaml"
        if shipped.is_file() and path.parent in (Path(), Path("configs")):
            return shipped
    names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
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
    data = config.model_dump(mode="json")
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data
        for key in parents:
            node = node[key]
        node[last] = value
    for text in overrides:
        apply_override(data, text)
    return build(ExperimentConfig, data, "options")
