"""What dreams need of a world: both models on their device, steps that are compiled once, and what was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from worldvq.errors import UsageError
from worldvq.models.dynamics import Dynamics, DynamicsOutput, DynamicsState
from worldvq.models.sampling import Pace
from worldvq.models.tokenizer import Tokenizer
from worldvq.types import ActionSpace
from worldvq.world.codec import SoundCodec


class Steps(NamedTuple):
    """The costly parts of a step, plain or compiled.

    Attributes:
        observe: As :meth:`Dynamics.observe`.
        logits: As :meth:`Prior.forward`, for passes of one fixed shape; None has the prior cache what is settled.
        decode: As :meth:`Tokenizer.decode`.
    """

    observe: Callable[[Tensor, Tensor, DynamicsState], DynamicsOutput]
    logits: Callable[[Tensor, Tensor], Tensor] | None
    decode: Callable[[Tensor], Tensor]


def make_steps(tokenizer: Tokenizer, dynamics: Dynamics, compile: bool) -> Steps:
    """Return the steps of a dream; compiled ones are compiled at their first call, and again for another batch.

    On a GPU the prior and the decoder run as CUDA graphs. ``observe`` writes into the rings, which a graph may not.
    """
    if not compile:
        return Steps(dynamics.observe, None, tokenizer.decode)
    on_gpu = next(dynamics.parameters()).is_cuda
    observe = torch.compile(dynamics.observe, dynamic=False)
    mode = "reduce-overhead" if on_gpu else None  # CUDA graphs
    logits = torch.compile(dynamics.prior, mode=mode, dynamic=False)
    decode = torch.compile(tokenizer.decode, mode=mode, dynamic=False)
    if not on_gpu:
        return Steps(observe, logits, decode)

    def owned(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Copy what a graph returns, which its next replay overwrites."""

        def call(*arguments: Tensor) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return part(*arguments).clone()

        return call

    return Steps(observe, owned(logits), owned(decode))


class Engine:
    """A tokenizer and dynamics that fit each other, ready to dream.

    Attributes:
        tokenizer: Frames to tokens and back.
        dynamics: Next tokens from past tokens and actions.
        codec: Sound to tokens and back; None in a world without sound.
        layout: Where in a grid of tokens stands what is seen and what is heard.
        action_space: What actions are.
        device: Where it runs. Tensors that go in may be anywhere; what comes out is on the CPU.
    """

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics, codec: SoundCodec | None = None):
        self.tokenizer, self.dynamics, self.codec = tokenizer.eval(), dynamics.eval(), codec
        self.layout = dynamics.layout
        self.action_space: ActionSpace = dynamics.action_space
        self.device = next(dynamics.parameters()).device
        self._paces: dict[int, Pace] = {}
        self._steps: dict[bool, Steps] = {}

    def pace(self, batch: int) -> Pace:
        """Return what was measured so far of drawing ``batch`` rows."""
        return self._paces.setdefault(batch, Pace())

    def steps(self, compiled: bool) -> Steps:
        """Return the steps of a dream, compiled at most once."""
        if compiled not in self._steps:
            self._steps[compiled] = make_steps(self.tokenizer, self.dynamics, compiled)
        return self._steps[compiled]

    @property
    def samples(self) -> int:
        """Samples of sound in a step."""
        return self.codec.hop * self.layout.sound.num_tokens if self.codec and self.layout.sound else 0

    def tokenize(self, frames: Tensor, sounds: Tensor | None = None) -> Tensor:
        """Return the tokens (B, T, h, w) of frames (B, T, H, W, 3) uint8.

        Args:
            frames: What is seen.
            sounds: (B, T, S) int16, what was heard before each of them, as in a :class:`~worldvq.types.Clip`; silence
                where left out. A world without sound does not listen.

        Raises:
            UsageError: They are no such frames or sounds, or of another size.
        """
        height, width = self.tokenizer.config.frame_size
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (height, width, 3) or frames.dtype != torch.uint8:
            dtype = str(frames.dtype).removeprefix("torch.")
            raise UsageError(
                f"frames are {dtype}{list(frames.shape)}, this world takes uint8 (B, T, {height}, {width}, 3)"
            )
        seen = self.tokenizer.tokenize(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.layout.join(seen, self._listen(frames, sounds))

    def _listen(self, frames: Tensor, sounds: Tensor | None) -> Tensor | None:
        """Return the tokens (B, T, A) of what was heard before frames; None in a world without sound."""
        if self.codec is None:
            return None
        shape = (*frames.shape[:2], self.samples)
        if sounds is None:
            sounds = torch.zeros(shape, dtype=torch.int16)
        if sounds.shape != shape or sounds.dtype != torch.int16:
            dtype = str(sounds.dtype).removeprefix("torch.")
            raise UsageError(f"sounds are {dtype}{list(sounds.shape)}, this world takes int16 {list(shape)} with them")
        return self.codec.encode(sounds.flatten(0, 1)).unflatten(0, shape[:2])

    def render(self, tokens: Tensor) -> Tensor:
        """Return the frames (B, T, H, W, 3) uint8 of tokens (B, T, h, w)."""
        return self.tokenizer.render(self.layout.seen(tokens).flatten(0, 1)).unflatten(0, tokens.shape[:2])
