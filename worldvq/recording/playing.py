"""One episode, played: what a worker process of the recorder does, from building the environment to the file."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from worldvq.config.code import import_named
from worldvq.config.env import EnvConfig, SoundFormat
from worldvq.data.episodes import write_episode
from worldvq.errors import DEBUG, UsageError, WorldVQError, one_line
from worldvq.recording.config import RecordConfig
from worldvq.recording.janitor import GROUP_FILE
from worldvq.recording.policies import Policy, Stream, check_action, make_policy
from worldvq.recording.spool import Ending, Phase, Spool
from worldvq.recording.undo import Undo
from worldvq.recording.undo_probe import MOST_STEPS, find_undo
from worldvq.types import Episode

PROBE = -1
"""The number of a job that only tries whether an episode can begin."""
UNDO_PROBE = -2
"""The number of a job that finds which action undoes which."""
LEAST_STEPS = 600
"""Steps of that job which even a short recording allows."""


def episode_seed(seed: int, number: int, use: int = 0) -> int:
    """Derive an independent 31-bit seed for one use in one episode."""
    return int(np.random.SeedSequence([seed, number, use]).generate_state(1)[0] >> 1)


def play(
    stream: Stream, config: RecordConfig, number: int, spool: Spool | None = None, sequence: int = 0, attempt: int = 0
) -> Episode:
    """Play one episode.

    Where the environment ends without showing a last frame, that transition is dropped; its reward and the way it
    ended move to the transition before it, the last one that can be seen. What is heard in it is dropped.

    Args:
        stream: The environment.
        config: The seed and who plays.
        number: Number of the episode; with the seed, it decides everything.
        spool: Where frames are kept while it is played.
        sequence: Number of the job, for the spool.
        attempt: 0, or 1 if it could not be begun before (the same seeds again), or 2 (other seeds).
    """
    if spool is None:
        with tempfile.TemporaryDirectory() as folder:
            spool = Spool(Path(folder) / "spool")
            try:
                return play(stream, config, number, spool, sequence, attempt)
            finally:
                spool.close()
    use = 2 * (attempt // 2)
    seed = episode_seed(config.seed, number, use)
    spool.begin(sequence, number, seed, Phase.RESETTING)
    frame = stream.reset(seed)
    spool.set_layout(stream.action_space, frame.shape[:2], stream.sound_format)
    spool.add(frame)
    policy = make_policy(config, stream, episode_seed(config.seed, number, use + 1))
    spool.set_phase(Phase.STEPPING)
    terminated = truncated = False
    while not (terminated or truncated):
        action = stream.as_played(ask(policy, stream, config, frame))
        frame, reward, terminated, truncated = stream.step(action)
        if stream.has_frame or not spool.num_steps:
            spool.add(frame, action, reward, stream.sound)
        else:
            spool.add_reward(reward)
    spool.set_phase(Phase.WRITING, Ending.TERMINATED if terminated else Ending.TRUNCATED)
    episode = spool.episode()
    assert episode is not None
    return episode


def ask(policy: Policy, stream: Stream, config: RecordConfig, frame: np.ndarray) -> np.ndarray:
    """Return the policy's action.

    Raises:
        UsageError: It failed, or returned no action of the space: that is no fault of the environment.
    """
    try:
        action = policy(frame)
    except WorldVQError:
        raise
    except Exception as error:
        raise UsageError(f"the policy {config.policy} failed: {describe(error)}") from error
    return check_action(stream.action_space, action)


def describe(error: BaseException) -> str:
    """Return kind and text of an error in one line, whatever its text does."""
    try:
        text = one_line(error)
    except Exception:
        text = "its text cannot be shown"
    return text if isinstance(error, WorldVQError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def work(pipe: Connection, scratch: str, stream: str, env: EnvConfig, config: RecordConfig, out: Path) -> None:
    """Body of a worker process. Messages are JSON both ways, each with the sequence number of its job.

    In come ``{sequence, number, attempt, undo}``. Out go ``{sequence, action_space, sound}`` once the environment is
    built, ``{sequence, lines}`` that say what is recorded for a probe, ``{sequence, undo}`` for one of which action
    undoes which, ``{sequence, entry}`` for an episode that is written, or ``{sequence, error, fatal, usage}``, the last
    one.
    """
    _settle(scratch)
    spool, world, sequence = Spool(Path(scratch) / "spool"), None, -1

    def send(**message: Any) -> None:
        pipe.send_bytes(json.dumps({"sequence": sequence, **message}).encode())

    try:
        spool.begin(-1, -1, episode_seed(config.seed, 0), Phase.BUILDING)
        world = import_named(stream)(env)
        send(action_space=world.action_space.to_json(), sound=_as_json(world.sound_format))
        while True:
            spool.begin(-1, -1, 0, Phase.IDLE)
            job = json.loads(pipe.recv_bytes())
            sequence, number = job["sequence"], job["number"]
            config = config.model_copy(update={"undo": job["undo"]})
            if number == UNDO_PROBE:
                send(undo=_probe_undo(world, config, spool, sequence))
                continue
            if number == PROBE:
                _probe(world, config, spool, sequence)
                send(lines=world.describe())
                continue
            episode = play(world, config, number, spool, sequence, job["attempt"])
            send(entry=write_episode(out, number, episode, config.compression).model_dump())
    except (EOFError, BrokenPipeError, SystemExit):
        return
    except BaseException as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        fatal = isinstance(error, WorldVQError)  # of the user's making, or of the disk's: nothing to go on with
        with suppress(OSError):  # the parent may have heard enough from another worker
            send(error=describe(error), fatal=fatal, usage=isinstance(error, UsageError))
    finally:
        if hasattr(signal, "SIGTERM"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if world is not None:  # an engine of its own, as ViZDoom's, would outlive this process
            world.close()


def _as_json(sound: SoundFormat | None) -> dict[str, int] | None:
    return None if sound is None else sound.model_dump()


def _settle(scratch: str) -> None:
    """Lead a session of its own, keep temporary files where they are cleaned up, and take one core."""
    import torch

    if hasattr(os, "setsid"):
        os.setsid()  # so that it can be killed with all that it starts, and Ctrl-C goes to the parent alone
        try:
            (Path(scratch) / GROUP_FILE).write_text(str(os.getpid()))
        except FileNotFoundError:
            sys.exit()  # the recorder has ended meanwhile
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # the way through ``finally``, which a bare SIGTERM skips


def _probe(stream: Stream, config: RecordConfig, spool: Spool, sequence: int) -> None:
    """Take the first step of the first episode, so that what is no environment is refused before anything is written.

    What its simulator does wrong there is met again when the episode is played, and costs no more than that.
    """
    seed = episode_seed(config.seed, 0)
    spool.begin(sequence, PROBE, seed, Phase.RESETTING)
    frame = stream.reset(seed)
    action = ask(make_policy(config, stream, episode_seed(config.seed, 0, 1)), stream, config, frame)
    spool.set_phase(Phase.STEPPING)
    try:
        stream.step(action)
    except ValueError as error:  # UsageError too
        raise UsageError(f"it cannot be recorded: {one_line(error)}") from None
    except Exception as error:
        print(f"worldvq: the first step of episode 0 failed: {describe(error)}", file=sys.stderr, flush=True)


def _probe_undo(stream: Stream, config: RecordConfig, spool: Spool, sequence: int) -> Undo:
    """Find which action undoes which, in episodes of its own; every step and reset moves the worker's deadline."""
    spool.begin(sequence, UNDO_PROBE, episode_seed(config.seed, 0, 4), Phase.RESETTING)
    return find_undo(
        stream,
        seed=episode_seed(config.seed, 0, 5),
        seed_of=lambda number: episode_seed(config.seed, number, 4),
        moving=lambda steps: spool.set_phase(Phase.STEPPING if steps else Phase.RESETTING),
        most_steps=undo_steps(config),
    )


def undo_steps(config: RecordConfig) -> int:
    """How many steps may go into finding which action undoes which: a fifth of the recording, within limits."""
    return min(MOST_STEPS, max(LEAST_STEPS, (config.frames or 20_000) // 5))
