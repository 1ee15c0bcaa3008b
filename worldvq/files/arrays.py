"""Arrays that others have saved, read without unpickling anything."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from worldvq.files.reading import open_file


def read_array(path: Path) -> np.ndarray:
    """Read a .npy file of numbers; memory is taken only once the file was seen to be as long as it says.

    Raises:
        CorruptFileError: The file is missing or cannot be opened.
        ValueError: It holds something else; on a broken header NumPy raises errors of other types too.
    """
    with open_file(path) as (file, size):
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format {version} is not read")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.kind not in "iufb":
            raise ValueError(f"it holds {dtype}, not numbers; nothing is unpickled")
        count, left = math.prod(shape), size - file.tell()
        if count < 0 or count * dtype.itemsize != left:
            raise ValueError(f"{list(shape)} {dtype} are not its {left:,} bytes")
        return np.frombuffer(file.read(), dtype, count).reshape(shape, order="F" if fortran else "C")
