"""A world model: tokenizer + dynamics + what the dataset was. Imagines in latent space, decodes at the border."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from worldvq.config.yaml_loading import build
from worldvq.errors import CorruptFileError, UsageError, plural
from worldvq.files.atomic import write_together
from worldvq.files.differences import require_same
from worldvq.files.reading import read_sealed, seal
from worldvq.files.weights import hash_module, module_bytes
from worldvq.models.config import DynamicsConfig, SamplingConfig, TokenizerConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.loading import dynamics_size, load_checked, tokenizer_size
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.devices import resolve_device
from worldvq.nn.symlog import expected_reward
from worldvq.types import ActionSpace, TokenClip, as_tensor
from worldvq.world.actions import stored_actions
from worldvq.world.dream import Dream
from worldvq.world.engine import Engine

FORMAT_VERSION = 3
WORLD_FILE = "world.json"
"""What a folder has that holds a world."""


class Imagined(NamedTuple):
    """N imagined frames of B worlds.

    Attributes:
        tokens: (B, N, h, w) int64.
        rewards: (B, N) predicted reward of the transition into each imagined frame.
        termination: (B, N) probability that this transition ended the task.
        passes: (B, N) passes through the prior that each frame took; h*w where it was drawn token by token.
    """

    tokens: Tensor
    rewards: Tensor
    termination: Tensor
    passes: Tensor


class Scores(NamedTuple):
    """How well recorded clips are predicted, teacher-forced, for frames ``context`` … T - 1.

    Attributes:
        nats: (B, N, h, w) negative log-likelihood of each token given all frames before, in nats.
        rewards: (B, N) predicted reward of the transition into each frame.
        rewards_true: (B, N) recorded.
        termination: (B, N) predicted probability that this transition ended the task.
        termination_true: (B, N) recorded, bool.
        mask: (B, N) True where the frame exists.
    """

    nats: Tensor
    rewards: Tensor
    rewards_true: Tensor
    termination: Tensor
    termination_true: Tensor
    mask: Tensor


class WorldModel:
    """What a user holds: load, imagine, step, score.

    Attributes:
        tokenizer: Frames to tokens and back.
        dynamics: Next tokens from past tokens and actions.
        action_space: What actions are.
        meta: JSON values that say what the dataset was (environment, sizes, versions), and how it was trained.
        engine: What dreams are made with.
        device: Where it runs. Tensors that go in may be anywhere; what comes out is on the CPU.
    """

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics, meta: dict[str, Any]):
        require_same(
            {"grid": tokenizer.grid, "num_codes": tokenizer.num_codes},
            {"grid": dynamics.grid, "num_codes": dynamics.num_codes},
            ("the tokenizer has", "the dynamics expects"),
            "tokenizer and dynamics do not fit together",
            "train the dynamics on this tokenizer's tokens",
        )
        self.engine = Engine(tokenizer, dynamics)
        self.tokenizer, self.dynamics = tokenizer, dynamics
        self.meta = meta
        self.action_space = dynamics.action_space
        self.device = self.engine.device

    def sampling_with(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return how the config that it was trained with has it sampled, but for what is given and not None."""
        own = build(SamplingConfig, self.meta.get("sampling", {}), "sampling")
        return own.model_dump() | {key: value for key, value in given.items() if value is not None}

    def _sampling(self, given: dict[str, Any]) -> SamplingConfig:
        """Likewise; here None is given too: no truncation."""
        return build(SamplingConfig, self.sampling_with({}) | given, "sampling")

    def hash(self) -> str:
        """Return the SHA-256 of all weights, as hex."""
        both = hash_module(self.tokenizer) + hash_module(self.dynamics)
        return hashlib.sha256(both.encode()).hexdigest()

    def description(self) -> dict[str, Any]:
        """Return, as JSON values, the configs of both models, hashes of their weights, the actions and ``meta``."""
        return {
            "tokenizer": self.tokenizer.config.model_dump(mode="json"),
            "tokenizer_hash": hash_module(self.tokenizer),
            "dynamics": self.dynamics.config.model_dump(mode="json"),
            "dynamics_hash": hash_module(self.dynamics),
            "action_space": self.action_space.to_json(),
            "meta": self.meta,
        }

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.tokenizer.config.frame_size

    def save(self, folder: Path | str) -> None:
        """Write the world; a half-written world is none, and where the disk is full an older one stays."""
        folder = Path(folder)
        write_together(
            {
                folder / "tokenizer.safetensors": module_bytes(self.tokenizer),
                folder / "dynamics.safetensors": module_bytes(self.dynamics),
                folder / WORLD_FILE: seal({"format_version": FORMAT_VERSION, **self.description()}),
            }
        )

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto") -> WorldModel:
        """Load a world.

        Args:
            folder: What ``worldvq train dynamics`` or :meth:`save` left.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

        Raises:
            UsageError: There is no world here, or of another format.
            CorruptFileError: A file is damaged.
        """
        folder = Path(folder)
        path = folder / WORLD_FILE
        if not path.is_file():
            raise UsageError(f"no world in {folder}: make one with `worldvq train dynamics` or `worldvq demo`")
        data = read_sealed(path)
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{path} is of format {version}, this version of worldvq reads format {FORMAT_VERSION}: use the "
                "version that wrote it, or train the world again"
            )
        where = resolve_device(device)
        try:
            config = build(TokenizerConfig, data["tokenizer"], str(path))
            dynamics_config = build(DynamicsConfig, data["dynamics"], str(path))
            action_space = ActionSpace.from_json(data["action_space"])
            meta = dict(data["meta"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from None
        shape = (config.grid, config.quantizer.num_codes, action_space)
        files = [folder / f"{name}.safetensors" for name in ("tokenizer", "dynamics")]
        tokenizer = load_checked(files[0], tokenizer_size(config), lambda: Tokenizer(config))
        size = dynamics_size(dynamics_config, *shape)
        dynamics = load_checked(files[1], size, lambda: Dynamics(dynamics_config, *shape))
        for file, module in zip(files, (tokenizer, dynamics), strict=True):
            if data.get(f"{file.stem}_hash") not in (None, hash_module(module)):
                raise CorruptFileError(f"{file} is damaged: its hash is not the one in {path}")
        return cls(tokenizer.to(where), dynamics.to(where), meta)

    def tokenize(self, frames: ArrayLike | Tensor) -> Tensor:
        """Return the tokens (B, T, h, w) int64 of frames (B, T, H, W, 3) uint8."""
        return self.engine.tokenize(as_tensor(frames))

    def render(self, tokens: ArrayLike | Tensor) -> Tensor:
        """Return the frames (B, T, H, W, 3) uint8 of tokens (B, T, h, w)."""
        return self.engine.render(as_tensor(tokens))

    def imagine(
        self,
        frames: ArrayLike | Tensor,
        actions: ArrayLike | Tensor,
        seed: int = 0,
        row_seeds: ArrayLike | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Imagine what follows C frames under given actions.

        Args:
            frames: (B, C, H, W, 3) uint8, the context; a tensor or an array.
            actions: (B, C - 1 + N, ...): those between the context frames, then those of the imagined steps.
            seed: Same seed, same video.
            row_seeds: (B,) integers, the rows' own seeds: with the same one, a row is the same in whatever batch it
                is. 0 … B - 1 where they are left out.
            **sampling: Fields of :class:`~worldvq.models.config.SamplingConfig`: ``temperature`` (0 takes the most
                probable token each time), ``top_k``, ``top_p``, ``method`` (``predictive`` and ``sequential`` draw the
                same, ``auto`` measures which is faster), ``compile``. What is left out is as the config says with which
                the world was trained.

        Returns:
            (B, N, H, W, 3) uint8.

        Raises:
            UsageError: Frames or actions do not fit this world.
        """
        imagined = self.imagine_tokens(self.tokenize(frames), actions, seed, row_seeds, **sampling)
        return self.render(imagined.tokens)

    @torch.no_grad()
    def imagine_tokens(
        self,
        tokens: ArrayLike | Tensor,
        actions: ArrayLike | Tensor,
        seed: int = 0,
        row_seeds: ArrayLike | None = None,
        **sampling: Any,
    ) -> Imagined:
        """As :meth:`imagine`, from tokens (B, C, h, w) to tokens, rewards and terminations."""
        known = as_tensor(tokens)
        batch, context = known.shape[:2]
        taken = self._check_actions(as_tensor(actions), batch, context)
        dream = Dream(self.engine, known, taken[:, : context - 1], seed, self._sampling(sampling), row_seeds)
        steps = [dream.step_tokens(taken[:, index]) for index in range(context - 1, taken.shape[1])]
        return Imagined(*(torch.stack(column, dim=1) for column in zip(*steps, strict=True)))

    def start(
        self,
        frames: ArrayLike | Tensor,
        actions: ArrayLike | Tensor,
        seed: int = 0,
        row_seeds: ArrayLike | None = None,
        **sampling: Any,
    ) -> Dream:
        """Start a dream that is stepped action by action, whose rows can be reset, forked and dropped.

        Args:
            frames: (B, C, H, W, 3) uint8, the context.
            actions: (B, C - 1, ...), those between the context frames.
            seed: See :meth:`imagine`, likewise the rest.
            row_seeds: See :meth:`imagine`.
            **sampling: See :meth:`imagine`.
        """
        return Dream(self.engine, self.tokenize(frames), actions, seed, self._sampling(sampling), row_seeds)

    @torch.no_grad()
    def score(self, clip: TokenClip, context: int) -> Scores:
        """Score recorded clips, teacher-forced, from frame ``context`` on."""
        clip = clip.to(self.device)
        prediction = self.dynamics(clip.tokens, clip.actions)
        target = clip.tokens[:, context:]
        logits = prediction.logits[:, context - 1 :].float()
        nats = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)
        into = slice(context - 1, -1)  # transition t leads into frame t + 1
        parts = (
            nats,
            expected_reward(prediction.rewards)[:, into],
            clip.rewards[:, into],
            prediction.termination.float().sigmoid()[:, into],
            clip.terminated[:, into],
            clip.mask[:, context:],
        )
        return Scores(*(part.cpu() for part in parts))

    def _check_actions(self, actions: Tensor, batch: int, context: int) -> Tensor:
        """Return actions of a context and the steps after it as they are stored."""
        shape = self.action_space.shape
        if actions.ndim < 2 or len(actions) != batch or actions.shape[2:] != shape or actions.shape[1] < context:
            raise UsageError(
                f"actions {list(actions.shape)} do not fit {plural(batch, 'context')} of {plural(context, 'frame')}: "
                f"this world takes (B, context - 1 + N{''.join(f', {side}' for side in shape)}) with N >= 1"
            )
        return stored_actions(actions, self.action_space, (batch, actions.shape[1]), "a clip")
