"""A world model: tokenizer + dynamics + what the dataset was. Imagines in latent space, decodes at the border."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from worldvq.config.env import SoundFormat
from worldvq.config.yaml_loading import build
from worldvq.errors import CorruptFileError, UsageError, plural
from worldvq.files.atomic import write_together
from worldvq.files.differences import require_same
from worldvq.files.reading import seal
from worldvq.files.weights import hash_module, module_bytes, require_hash
from worldvq.models.config import DynamicsConfig, SamplingConfig, TokenizerConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.layout import SoundTokens, TokenLayout
from worldvq.models.loading import dynamics_size, load_checked, read_description, tokenizer_size
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.devices import resolve_device
from worldvq.nn.symlog import expected_reward
from worldvq.types import ActionSpace, TokenClip, as_tensor
from worldvq.world.actions import stored_actions
from worldvq.world.codec import SoundCodec
from worldvq.world.dream import Dream
from worldvq.world.engine import Engine
from worldvq.world.results import Imagined, Scores

FORMAT_VERSION = 3
SOUND_VERSION = 4
"""Of a world with sound, which older versions cannot read."""
MAX_SOUND_TOKENS = 4096
"""Of a step, in a file that nobody vouches for."""
WORLD_FILE = "world.json"
"""What a folder has that holds a world."""


class WorldModel:
    """What a user holds: load, imagine, step, score.

    Attributes:
        tokenizer: Frames to tokens and back.
        dynamics: Next tokens from past tokens and actions.
        codec: Sound to tokens and back; None in a world without sound.
        action_space: What actions are.
        meta: JSON values that say what the dataset was (environment, sizes, versions), and how it was trained.
        engine: What dreams are made with.
        device: Where it runs. Tensors that go in may be anywhere; what comes out is on the CPU.
    """

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics, meta: dict[str, Any], codec: SoundCodec | None = None):
        layout = dynamics.layout
        require_same(
            {"grid": tokenizer.grid, "num_codes": tokenizer.num_codes},
            {"grid": layout.frame, "num_codes": layout.num_frame_codes},
            ("the tokenizer has", "the dynamics expects"),
            "tokenizer and dynamics do not fit together",
            "train the dynamics on this tokenizer's tokens",
        )
        require_same(
            {"sound_codes": codec and codec.tokenizer.num_codes},
            {"sound_codes": layout.sound and layout.sound.num_codes},
            ("the codec has", "the dynamics expects"),
            "codec and dynamics do not fit together",
            "give the codec of sound that made the dynamics' tokens",
        )
        self.engine = Engine(tokenizer, dynamics, codec)
        self.tokenizer, self.dynamics, self.codec = tokenizer, dynamics, codec
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
        models = [self.tokenizer, self.dynamics, *([self.codec.tokenizer] if self.codec else [])]
        return hashlib.sha256("".join(map(hash_module, models)).encode()).hexdigest()

    def description(self) -> dict[str, Any]:
        """Return, as JSON values, the configs of both models, hashes of their weights, the actions and ``meta``."""
        return {
            "tokenizer": self.tokenizer.config.model_dump(mode="json"),
            "tokenizer_hash": hash_module(self.tokenizer),
            "dynamics": self.dynamics.config.model_dump(mode="json"),
            "dynamics_hash": hash_module(self.dynamics),
            "action_space": self.action_space.to_json(),
            "meta": self.meta,
            **self._sound_description(),
        }

    def _sound_description(self) -> dict[str, Any]:
        if self.codec is None or self.dynamics.layout.sound is None:
            return {}
        return {
            "sound_tokens": self.dynamics.layout.sound.num_tokens,
            "codec": self.codec.tokenizer.config.model_dump(mode="json"),
            "codec_hash": hash_module(self.codec.tokenizer),
        }

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.tokenizer.config.frame_size

    @property
    def sound_format(self) -> SoundFormat | None:
        """What is heard in a step; None in a world without sound."""
        return SoundFormat(rate=self.codec.rate, samples=self.engine.samples) if self.codec else None

    def save(self, folder: Path | str) -> None:
        """Write the world; a half-written world is none, and where the disk is full an older one stays."""
        folder = Path(folder)
        version = FORMAT_VERSION if self.codec is None else SOUND_VERSION
        files = {
            folder / "tokenizer.safetensors": module_bytes(self.tokenizer),
            folder / "dynamics.safetensors": module_bytes(self.dynamics),
            folder / WORLD_FILE: seal({"format_version": version, **self.description()}),
        }
        write_together((self.codec.files(folder) if self.codec else {}) | files)

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
        missing = f"no world in {folder}: make one with `worldvq train dynamics` or `worldvq demo`"
        data = read_description(path, (FORMAT_VERSION, SOUND_VERSION), missing, "world")
        version = data["format_version"]
        where = resolve_device(device)
        try:
            config = build(TokenizerConfig, data["tokenizer"], str(path))
            dynamics_config = build(DynamicsConfig, data["dynamics"], str(path))
            action_space = ActionSpace.from_json(data["action_space"])
            meta = dict(data["meta"])
            codec = SoundCodec.load(folder, device) if version == SOUND_VERSION else None
            sound = codec and SoundTokens(int(data["sound_tokens"]), codec.tokenizer.num_codes)
            if sound and not 0 < sound.num_tokens <= MAX_SOUND_TOKENS:
                raise ValueError(f"sound_tokens {sound.num_tokens}: 1 to {MAX_SOUND_TOKENS}")
            layout = TokenLayout(config.grid, config.quantizer.num_codes, sound)
            dynamics_config.merged(layout.grid)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from None
        shape = (layout.frame, layout.num_frame_codes, action_space, sound)
        files = [folder / f"{name}.safetensors" for name in ("tokenizer", "dynamics")]
        tokenizer = load_checked(files[0], tokenizer_size(config), lambda: Tokenizer(config))
        size = dynamics_size(dynamics_config, layout.grid, layout.num_codes, action_space)
        dynamics = load_checked(files[1], size, lambda: Dynamics(dynamics_config, *shape))
        for file, module in zip(files, (tokenizer, dynamics), strict=True):
            if (expected := data.get(f"{file.stem}_hash")) is not None:
                require_hash(module, expected, file, path)
        if codec and data.get("codec_hash") != hash_module(codec.tokenizer):
            raise CorruptFileError(f"{folder}: the codec of sound in it is not the one that {path} names")
        return cls(tokenizer.to(where), dynamics.to(where), meta, codec)

    def tokenize(self, frames: ArrayLike | Tensor, sounds: ArrayLike | Tensor | None = None) -> Tensor:
        """Return the tokens (B, T, h, w) int64 of frames (B, T, H, W, 3) uint8.

        With those of what was heard before each of them, ``sounds`` (B, T, S) int16, in a world with sound: silence
        where that is left out.
        """
        return self.engine.tokenize(as_tensor(frames), None if sounds is None else as_tensor(sounds))

    def render(self, tokens: ArrayLike | Tensor) -> Tensor:
        """Return the frames (B, T, H, W, 3) uint8 of tokens (B, T, h, w)."""
        return self.engine.render(as_tensor(tokens))

    def hear(
        self,
        tokens: ArrayLike | Tensor,
        known: ArrayLike | Tensor | None = None,
        seed: int = 0,
        row_seeds: ArrayLike | None = None,
        **sampling: Any,
    ) -> np.ndarray:
        """Draw the sound of frames, one sample after the other.

        Args:
            tokens: (B, T, h, w) of frames that follow each other.
            known: (B, n) int16, samples with which it begins; what is drawn goes on from there without a jump.
            seed: See :meth:`imagine`, likewise ``row_seeds``.
            row_seeds: (B,) integers.
            **sampling: How samples are drawn; what is left out is as :class:`~worldvq.models.config.SamplingConfig` has
                it.

        Returns:
            (B, T * S) int16, of which the first n are ``known``: what is heard before each frame.

        Raises:
            UsageError: This is a world without sound.
        """
        if self.codec is None:
            raise UsageError("this world has no sound: record some (env.audio_key), and tokenize it with --codec")
        heard = self.dynamics.layout.heard(as_tensor(tokens)).flatten(1)
        nobody = torch.zeros(len(heard), dtype=torch.int64)
        return self.codec.decode(heard, nobody, seed, row_seeds, known, **sampling)

    def imagine(
        self,
        frames: ArrayLike | Tensor,
        actions: ArrayLike | Tensor,
        seed: int = 0,
        row_seeds: ArrayLike | None = None,
        sounds: ArrayLike | Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Imagine what follows C frames under given actions.

        Args:
            frames: (B, C, H, W, 3) uint8, the context; a tensor or an array.
            actions: (B, C - 1 + N, ...): those between the context frames, then those of the imagined steps.
            seed: Same seed, same video.
            row_seeds: (B,) integers, the rows' own seeds: with the same one, a row is the same in whatever batch it
                is. 0 … B - 1 where they are left out.
            sounds: See :meth:`tokenize`.
            **sampling: Fields of :class:`~worldvq.models.config.SamplingConfig`: ``temperature`` (0 takes the most
                probable token each time), ``top_k``, ``top_p``, ``method`` (``predictive`` and ``sequential`` draw the
                same, ``auto`` measures which is faster), ``compile``. What is left out is as the config says with which
                the world was trained.

        Returns:
            (B, N, H, W, 3) uint8.

        Raises:
            UsageError: Frames or actions do not fit this world.
        """
        imagined = self.imagine_tokens(self.tokenize(frames, sounds), actions, seed, row_seeds, **sampling)
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
        sounds: ArrayLike | Tensor | None = None,
        **sampling: Any,
    ) -> Dream:
        """Start a dream that is stepped action by action, whose rows can be reset, forked and dropped.

        Args:
            frames: (B, C, H, W, 3) uint8, the context.
            actions: (B, C - 1, ...), those between the context frames.
            seed: See :meth:`imagine`, likewise the rest.
            row_seeds: See :meth:`imagine`.
            sounds: See :meth:`tokenize`.
            **sampling: See :meth:`imagine`.
        """
        return Dream(self.engine, self.tokenize(frames, sounds), actions, seed, self._sampling(sampling), row_seeds)

    @torch.no_grad()
    def score(self, clip: TokenClip, context: int) -> Scores:
        """Score recorded clips, teacher-forced, from frame ``context`` on."""
        clip = clip.to(self.device)
        prediction = self.dynamics(clip.tokens, clip.actions)
        target = clip.tokens[:, context:]
        logits = prediction.logits[:, context - 1 :].float()
        nats = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)
        into = slice(context - 1, -1)  # transition t leads into frame t + 1
        layout = self.dynamics.layout
        parts = (
            layout.seen(nats),
            expected_reward(prediction.rewards)[:, into],
            clip.rewards[:, into],
            prediction.termination.float().sigmoid()[:, into],
            clip.terminated[:, into],
            clip.mask[:, context:],
            nats[:, :, layout.frame[0] :].flatten(2)[..., : layout.sound.num_tokens if layout.sound else 0],
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
