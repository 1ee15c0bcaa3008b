"""What the models, their losses and their sampling are told."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from worldvq.config.fields import Config, Depth, FrameSize, NonNegativeFloat, PositiveInt, Size
from worldvq.errors import UsageError
from worldvq.nn.config import QuantizerConfig

Blocks = Annotated[int, Field(gt=0, le=128)]


class TokenizerConfig(Config):
    """The frame-level VQ-VAE."""

    frame_size: FrameSize = (64, 64)
    """Height and width of a frame. Training takes them from the dataset; give them only to have others refused."""
    downsample: Literal[4, 8, 16] = 8
    """Pixels per token along each axis: 64 at 8 gives 8x8 tokens."""
    architecture: Literal["patches", "strided"] = "patches"
    """``patches``: patches of 4x4 through one matrix, nearly all work at token resolution; ``strided``: as in the paper
    (van den Oord et al. 2017, section 4.1), 4x4 convolutions of stride 2: about twice the work at ``downsample`` 4."""
    width: Annotated[int, Field(ge=8, le=2**16, multiple_of=8)] = 128
    """Channels at token resolution; at twice the resolution half as many, as many where ``strided``."""
    encoder_blocks: Depth = 2
    """Residual blocks at token resolution, before the codes."""
    decoder_blocks: Depth = 3
    """Residual blocks at token resolution, after the codes."""
    quantizer: QuantizerConfig = QuantizerConfig()

    @model_validator(mode="after")
    def _divisible(self) -> TokenizerConfig:
        if any(side % self.downsample for side in self.frame_size):
            height, width = self.frame_size
            fit = " or ".join(str(other) for other in (4, 8, 16) if height % other == width % other == 0)
            way_out = f"set tokenizer.downsample to {fit}" if fit else "record frames whose sides divide by 4"
            raise ValueError(f"frame_size {height}x{width} is not divisible by downsample {self.downsample}: {way_out}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token grid."""
        return self.frame_size[0] // self.downsample, self.frame_size[1] // self.downsample


class TokenizerLossConfig(Config):
    """What the tokenizer's loss has besides reconstruction error and codebook; at weight 0 a term does not exist."""

    perceptual: NonNegativeFloat = 0.0
    """Weight of LPIPS (Zhang et al. 2018); needs the ``metrics`` extra, torchvision and its VGG16 weights."""
    adversarial: NonNegativeFloat = 0.0
    """Weight of what a patch discriminator (Isola et al. 2017) tells the tokenizer."""
    rare: NonNegativeFloat = 0.0
    """Weight of the error by how rare a pixel's colour is, so that small things of a colour of their own survive."""
    motion: NonNegativeFloat = 0.0
    """Weight of the error where a frame differs from the one before it, so that small moving things survive.
    Needs ``tokenizer_training.clip_frames`` of at least 2."""


def _heads_fit(config: Any) -> Any:
    step = 4 * config.num_heads  # rotary angles for two axes come in pairs
    if getattr(config, "kind", "") != "pixelcnn" and config.width % step:
        raise ValueError(f"width {config.width} is not divisible by 4 x num_heads = {step}")
    return config


class PriorConfig(Config):
    """The autoregressive model over the tokens of one frame."""

    kind: Literal["transformer", "pixelcnn"] = "transformer"
    """A small causal transformer, or a gated PixelCNN with two stacks (van den Oord et al. 2016)."""
    width: Size = 128
    """Channels of its layers; a transformer's must divide by 4 x ``num_heads``."""
    num_blocks: Blocks = 2
    """Blocks of the transformer, gated layers of the PixelCNN."""
    num_heads: Size = 4
    """Attention heads of the transformer; a PixelCNN has none."""

    _check_heads = model_validator(mode="after")(_heads_fit)


class ImagePriorConfig(PriorConfig):
    """The autoregressive model over the tokens of single frames, without past or action: what draws pictures."""

    classes: bool = True
    """Tell it what each frame shows, where the data hold more than one class: the label of an episode, else the id of
    its environment."""


MOST_MERGED = 8
"""Tokens a side of the squares that a context network works on, at most."""


class DynamicsConfig(Config):
    """Context network over past frames and actions, and the prior over the next frame."""

    context_frames: PositiveInt = 8
    """Frames that temporal attention sees, the current one included; the size of the ring cache."""
    recall: bool = False
    """Attention to whole frames: what came before, or after, the last time one saw this and did that."""
    merge: Annotated[int, Field(ge=1, le=MOST_MERGED)] = 1
    """The context network works on squares of so many tokens a side, which must divide the sides of the grid, rows of
    sound included. The prior draws every token all the same, and sees what stood at its place. For fine grids: of 16x16
    tokens, 2 leaves 8x8 positions."""
    width: Size = 128
    """Channels of the context network; must divide by 4 x ``num_heads``."""
    num_blocks: Blocks = 3
    """Space-time blocks: attention within the frame, over time at each position, feed-forward."""
    num_heads: Size = 4
    """Attention heads of each block."""
    prior: PriorConfig = PriorConfig()

    _check_heads = model_validator(mode="after")(_heads_fit)

    def merged(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of a grid of tokens in squares of ``merge`` a side.

        Raises:
            UsageError: It does not divide into them.
        """
        height, width = grid
        if height % self.merge or width % self.merge:
            fitting = [side for side in range(1, MOST_MERGED + 1) if not (height % side or width % side)]
            raise UsageError(
                f"dynamics.merge {self.merge}: a grid of {height}x{width} tokens does not divide into squares of "
                f"{self.merge}x{self.merge}; set it to {' or '.join(map(str, fitting))}"
            )
        return height // self.merge, width // self.merge


class SceneQuantizerConfig(QuantizerConfig):
    """Each of the codebooks of a frame's codes."""

    kind: Literal["ema", "sgd", "fsq"] = "ema"
    """As of a tokenizer; ``ema``: by moving averages (van den Oord et al. 2017, appendix A.1)."""
    code_dim: Size = 16
    """Numbers in a code."""
    revive_after: PositiveInt = 100
    """A code unused for about this many steps is replaced by an encoder output of the batch. A step brings one row a
    frame, where a tokenizer has one a token: so it takes longer to know that a code is dead."""


class ScenePriorConfig(PriorConfig):
    """The autoregressive model over the tokens of a frame, given its codes."""

    kind: Literal["transformer", "pixelcnn"] = "pixelcnn"
    """A gated PixelCNN, as in the talk, or a small causal transformer."""
    width: Size = 64
    """Channels of its layers; a transformer's must divide by 4 x ``num_heads``."""
    num_blocks: Blocks = 2
    """Layers. Few of them see few neighbours: what they do not see, the codes have to say."""


class SceneConfig(Config):
    """The second-stage VQ-VAE: a few codes that say what a frame shows, and a prior that draws its tokens given them.

    The talk on the VQ-VAE (van den Oord et al. 2017) has 3 codes of 512 a frame: 27 bits.
    """

    num_codes_per_frame: Annotated[int, Field(ge=0, le=64)] = 3
    """Codes of a frame, each out of a codebook of its own; with 0 the prior is trained without any, to compare."""
    quantizer: SceneQuantizerConfig = SceneQuantizerConfig()
    width: Size = 128
    """Channels of encoder and decoder of the codes."""
    num_blocks: Depth = 1
    """Residual blocks of each of the two at every resolution below that of the tokens."""
    forecast_weight: NonNegativeFloat = 0.3
    """Weight of the loss of a head that names every token from the codes alone: drafts of samples, which then take
    fewer passes."""
    prior: ScenePriorConfig = ScenePriorConfig()


class WaveNetConfig(Config):
    """The autoregressive model over the samples of a sound (van den Oord et al. 2016, WaveNet)."""

    width: Size = 64
    """Channels of its layers and of their gates."""
    skip_width: Size = 128
    """Channels in which the layers' skip connections meet."""
    num_stacks: Annotated[int, Field(gt=0, le=16)] = 2
    """How often the dilations begin again at 1."""
    stack_layers: Annotated[int, Field(gt=0, le=16)] = 10
    """Layers of a stack, of dilations 1, 2, 4, ...: at 10 a stack looks 1,023 samples back."""


LEAST_STEP = 16
"""Samples between two spectra of an encoder of sound, at least."""


class SoundTokenizerConfig(Config):
    """The VQ-VAE of sound: strided convolutions, codes, and a WaveNet that is told the codes and the speaker."""

    features: Literal["waveform", "mfcc"] = "waveform"
    """What the encoder sees: the samples, or 13 mel-frequency cepstral coefficients of 25 ms, which say what is spoken
    and little of pitch and phase. Codes of these are better for speech; other sounds may live by what is left out."""
    strides: Annotated[tuple[Annotated[int, Field(ge=2, le=640)], ...], Field(min_length=1, max_length=16)] = (2,) * 6
    """Of the encoder's convolutions: a token stands for as many samples as their product, 64 for six of 2. With
    ``mfcc`` the first is how many samples lie between two looks at the spectrum."""
    width: Size = 128
    """Channels of the encoder, and of what the decoder is told."""
    quantizer: QuantizerConfig = QuantizerConfig()
    decoder: WaveNetConfig = WaveNetConfig()
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """In training, the share of codes that the decoder is told in the place of a neighbour, so that codes say what
    lasts longer than one of them."""

    @property
    def hop(self) -> int:
        """Samples that a token stands for."""
        return math.prod(self.strides)

    @model_validator(mode="after")
    def _spectrum_is_taken_now_and_then(self) -> SoundTokenizerConfig:
        if self.features == "mfcc" and self.strides[0] < LEAST_STEP:
            raise ValueError(
                f"with features mfcc the spectrum is taken every strides[0] = {self.strides[0]} samples: give "
                f"{LEAST_STEP} or more, for instance sound.strides=[64]"
            )
        return self


class SamplingConfig(Config):
    """How tokens are drawn."""

    temperature: NonNegativeFloat = 1.0
    """Divides the logits before a token is drawn; 0 takes the most probable token."""
    top_k: PositiveInt | None = None
    """Draw among so many most probable tokens; ``null`` draws among all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw among the most probable tokens that have this probability together; ``null`` draws among all."""
    method: Literal["auto", "predictive", "sequential"] = "auto"
    """All tokens at once until they agree, or one after the other: the same tokens; ``auto`` takes the faster."""
    precision: Literal["no", "bf16", "auto"] = "no"
    """Multiply in bf16; ``auto`` where the hardware does. Faster for many dreams at once, slower for one on a CPU; rows
    then depend a little on those beside them, as ties are wider."""
    compile: bool = False
    """Compile the steps of a dream (torch.compile; on a GPU mostly CUDA graphs): a minute or so at first."""
