"""A world model: tokenizer + dynamics + what the dataset was. Imagines in latent space, decodes at the border."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldvq.config.yaml_loading import build
from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.atomic import write_together
from worldvq.files.differences import require_same
from worldvq.files.reading import read_sealed, seal
from worldvq.files.weights import hash_module, module_bytes
from worldvq.models.config import DynamicsConfig, SamplingConfig, TokenizerConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.loading import dynamics_size, load_checked, tokenizer_size
from worldvq.models.sampling import Pace
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.symlog import symexp
from worldvq.types import ActionSpace, TokenClip, frames_from_model, frames_to_model
from worldvq.world.dream import Session, Steps, make_steps

FORMAT_VERSION = 2


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


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; ``auto`` prefers CUDA, then MPS, then the CPU.

    Raises:
        UsageError: The name is unknown or the device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device '{device}' cannot be used ({str(error).splitlines()[0]}): try --device auto"
        ) from None


class WorldModel:
    """What a user holds: load, imagine, step, score.

    Attributes:
        tokenizer: Frames to tokens and back.
        dynamics: Next tokens from past tokens and actions.
        action_space: What actions are.
        meta: JSON values that say what the dataset was (environment, sizes, versions).
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
        self.tokenizer = tokenizer.eval()
        self.dynamics = dynamics.eval()
        self.meta = meta
        self.action_space = dynamics.action_space
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

    def sampling_with(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return how the config that it was trained with has it sampled, but for what is given and not None."""
        own = build(SamplingConfig, self.meta.get("sampling", {}), "sampling")
        return own.model_dump() | {key: value for key, value in given.items() if value is not None}

    def hash(self) -> str:
        """Return the SHA-256 of all weights, as hex."""
        both = hash_module(self.tokenizer) + hash_module(self.dynamics)
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.tokenizer.config.frame_size

    def save(self, folder: Path | str) -> None:
        """Write the world; a half-written world is none, and where the disk is full an older one stays."""
        folder = Path(folder)
        description = {
            "format_version": FORMAT_VERSION,
            "tokenizer": self.tokenizer.config.model_dump(mode="json"),
            "tokenizer_hash": hash_module(self.tokenizer),
            "dynamics": self.dynamics.config.model_dump(mode="json"),
            "dynamics_hash": hash_module(self.dynamics),
            "action_space": self.action_space.to_json(),
            "meta": self.meta,
        }
        write_together(
            {
                folder / "tokenizer.safetensors": module_bytes(self.tokenizer),
                folder / "dynamics.safetensors": module_bytes(self.dynamics),
                folder / "world.json": seal(description),
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
        path = folder / "world.json"
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

    @torch.no_grad()
    def tokenize(self, frames: Tensor, batch_size: int = 256) -> Tensor:
        """Return the tokens (B, T, h, w) of frames (B, T, H, W, 3) uint8."""
        height, width = self.frame_size
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (height, width, 3):
            raise UsageError(f"frames are {list(frames.shape)}, this world takes (B, T, {height}, {width}, 3)")
        flat = frames.flatten(0, 1)
        parts = [self.tokenizer.encode(frames_to_model(part.to(self.device))).cpu() for part in flat.split(batch_size)]
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def render(self, tokens: Tensor, batch_size: int = 256) -> Tensor:
        """Return the frames (B, T, H, W, 3) uint8 of tokens (B, T, h, w)."""
        flat = tokens.flatten(0, 1)
        parts = [
            frames_from_model(self.tokenizer.decode(part.to(self.device))).cpu() for part in flat.split(batch_size)
        ]
        return torch.cat(parts).unflatten(0, tokens.shape[:2])

    def imagine(
        self,
        frames: Tensor,
        actions: Tensor,
        seed: int = 0,
        **sampling: Any,
    ) -> Tensor:
        """Imagine what follows C frames under given actions.

        Args:
            frames: (B, C, H, W, 3) uint8, the context.
            actions: (B, C - 1 + N, ...): those between the context frames, then those of the imagined steps.
            seed: Same seed, same video.
            **sampling: Fields of :class:`~worldvq.config.SamplingConfig`: ``temperature`` (0 takes the most probable
                token each time), ``top_k``, ``top_p``, ``method`` (``predictive`` and ``sequential`` draw the same,
                ``auto`` measures which is faster), ``compile``.

        Returns:
            (B, N, H, W, 3) uint8.

        Raises:
            UsageError: Frames or actions do not fit this world.
        """
        imagined = self.imagine_tokens(self.tokenize(frames), actions, seed, **sampling)
        return self.render(imagined.tokens)

    @torch.no_grad()
    def imagine_tokens(
        self,
        tokens: Tensor,
        actions: Tensor,
        seed: int = 0,
        **sampling: Any,
    ) -> Imagined:
        """As :meth:`imagine`, from tokens (B, C, h, w) to tokens, rewards and terminations."""
        context = tokens.shape[1]
        self._check_actions(actions, tokens.shape[0], context)
        session = Session(self, tokens, actions[:, : context - 1], seed, build(SamplingConfig, sampling, "sampling"))
        steps = [session.step_tokens(actions[:, index]) for index in range(context - 1, actions.shape[1])]
        return Imagined(*(torch.stack(column, dim=1) for column in zip(*steps, strict=True)))

    def start(
        self,
        frames: Tensor,
        actions: Tensor,
        seed: int = 0,
        **sampling: Any,
    ) -> Session:
        """Start a dream that is stepped action by action.

        Args:
            frames: (B, C, H, W, 3) uint8, the context.
            actions: (B, C - 1, ...), those between the context frames.
            seed: See :meth:`imagine`, likewise the rest.
            **sampling: See :meth:`imagine`.
        """
        return Session(self, self.tokenize(frames), actions, seed, build(SamplingConfig, sampling, "sampling"))

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
            symexp(prediction.rewards.float())[:, into],
            clip.rewards[:, into],
            prediction.termination.float().sigmoid()[:, into],
            clip.terminated[:, into],
            clip.mask[:, context:],
        )
        return Scores(*(part.cpu() for part in parts))

    def _check_actions(self, actions: Tensor, batch: int, context: int) -> None:
        shape = self.action_space.shape
        if actions.ndim < 2 or len(actions) != batch or actions.shape[2:] != shape or actions.shape[1] < context:
            raise UsageError(
                f"actions {list(actions.shape)} do not fit {batch} contexts of {context} frames: this world takes "
                f"(B, context - 1 + N{''.join(f', {side}' for side in shape)}) with N >= 1"
            )

    def check_step(self, actions: Tensor, batch: int) -> None:
        """Refuse actions (B, ...) of another shape than the world's, or choices that are not there."""
        space = self.action_space
        if actions.shape != (batch, *space.shape):
            raise UsageError(f"actions {list(actions.shape)} of one step, this world takes {[batch, *space.shape]}")
        if space.kind == "box":
            return
        nvec = torch.tensor(space.nvec, device=actions.device).reshape(space.shape)
        wrong = (actions < 0) | (actions >= nvec)
        if wrong.any():
            raise UsageError(f"the action {actions[wrong][0].item()} is none of this world's choices {space.nvec}")
