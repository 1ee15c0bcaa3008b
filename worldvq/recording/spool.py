"""The episode that is being played, in a file that outlives the process which plays it.

What a worker saw until it crashed, hung or was killed is then an interrupted episode and not lost. The file is never
flushed to disk: it is to survive its process, not the machine.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from worldvq.config.env import SoundFormat
from worldvq.files.atomic import disk_errors
from worldvq.types import ActionSpace, Episode

_HEADER = struct.Struct("<qqqii")


class Phase(IntEnum):
    """What a worker is doing, for its deadline and for the message when it fails there."""

    STARTING = 0
    BUILDING = 1
    IDLE = 2
    RESETTING = 3
    STEPPING = 4
    WRITING = 5


class Ending(IntEnum):
    """How the episode in the file ended, if it did."""

    NONE = 0
    TERMINATED = 1
    TRUNCATED = 2


@dataclass(frozen=True)
class Header:
    """Which job the file belongs to, and how far that is."""

    sequence: int
    number: int
    seed: int
    phase: Phase
    ending: Ending


class Spool:
    """One worker's file: a header, then a record for every frame with the action and reward that led to it.

    Records are written whole, one after the other; what was cut off in the middle is not counted.
    """

    def __init__(self, path: Path) -> None:
        """Open, or make, the file."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._record: np.dtype | None = None
        self._count = 0

    def set_layout(self, space: ActionSpace, frame_size: tuple[int, int], sound: SoundFormat | None = None) -> None:
        """Say what a record is: an action of ``space``, a reward and a frame (H, W, 3), and the sound between both."""
        fields = [("action", space.dtype, space.shape), ("reward", "<f4"), ("frame", "u1", (*frame_size, 3))]
        if sound is not None:
            fields.append(("sound", "<i2", (sound.samples,)))
        self._record = np.dtype(fields)
        self._row = np.zeros(1, self._record)

    # -------------------------------------------------------------------------------------------- the worker's side

    def _write(self, data: bytes | memoryview, where: int) -> None:
        with disk_errors(self.path):
            if os.pwrite(self._file, data, where) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def begin(self, sequence: int, number: int, seed: int, phase: Phase) -> None:
        """Forget what is in the file; another job begins, or none (sequence -1)."""
        os.ftruncate(self._file, 0)
        self._write(_HEADER.pack(sequence, number, seed, phase, Ending.NONE), 0)
        self._count = 0

    def set_phase(self, phase: Phase, ending: Ending = Ending.NONE) -> None:
        """Say what comes next."""
        self._write(struct.pack("<ii", phase, ending), _HEADER.size - 8)

    def add(
        self,
        frame: np.ndarray,
        action: np.ndarray | None = None,
        reward: float = 0.0,
        sound: np.ndarray | None = None,
    ) -> None:
        """Append a frame, and what led to it; the first frame of an episode has nothing before it."""
        assert self._record is not None
        self._row["frame"], self._row["reward"] = frame, reward
        self._row["action"] = 0 if action is None else action
        if sound is not None:
            self._row["sound"] = sound
        self._write(self._row.view(np.uint8).data, _HEADER.size + self._count * self._record.itemsize)
        self._count += 1

    def add_reward(self, reward: float) -> None:
        """Add to the reward of the last transition."""
        assert self._record is not None and self._record.fields is not None
        where = _HEADER.size + (self._count - 1) * self._record.itemsize + self._record.fields["reward"][1]
        before = np.frombuffer(os.pread(self._file, 4, where), "<f4")
        self._write((before + np.float32(reward)).tobytes(), where)

    @property
    def num_steps(self) -> int:
        """Transitions written so far."""
        return max(0, self._count - 1)

    # ------------------------------------------------------------------------------------------------- both sides

    def header(self) -> Header:
        """Read the header; of an empty file, one without a job."""
        data = os.pread(self._file, _HEADER.size, 0)
        if len(data) < _HEADER.size:
            return Header(-1, -1, 0, Phase.STARTING, Ending.NONE)
        sequence, number, seed, phase, ending = _HEADER.unpack(data)
        return Header(sequence, number, seed, Phase(phase), Ending(ending))

    def touched(self) -> int:
        """Return when the file was last written to: it changes with every step and every change of phase."""
        return os.fstat(self._file).st_mtime_ns

    def num_frames(self) -> int:
        """Return how many frames are in the file; 0 before the layout is known."""
        if self._record is None:
            return 0
        return max(0, os.fstat(self._file).st_size - _HEADER.size) // self._record.itemsize

    def episode(self, meta: dict | None = None, most: int | None = None) -> Episode | None:
        """Return what was played: interrupted, unless the header says how it ended; None without a transition.

        Args:
            meta: Of the episode.
            most: Frames at which it is truncated, if it has more.
        """
        count = self.num_frames()
        if count < 2:
            return None
        assert self._record is not None
        if most is not None and most < count:
            count, cut = most, True
        else:
            cut = False
        header = self.header()
        records = np.fromfile(self.path, self._record, count, offset=_HEADER.size)
        return Episode(
            frames=np.ascontiguousarray(records["frame"]),
            actions=np.ascontiguousarray(records["action"][1:]),
            rewards=np.ascontiguousarray(records["reward"][1:]),
            terminated=header.ending == Ending.TERMINATED and not cut,
            truncated=header.ending == Ending.TRUNCATED or cut,
            interrupted=header.ending == Ending.NONE and not cut,
            seed=header.seed,
            meta=meta or {},
            sounds=np.ascontiguousarray(records["sound"][1:]) if "sound" in (self._record.names or ()) else None,
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
