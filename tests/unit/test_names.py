"""What docs, docstrings and comments name is there."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "pyproject.toml", ".ci/run")),
    *ROOT.glob("docs/*.md"),
    *(path for folder in ("worldvq", "envs", "tools", "configs") for path in (ROOT / folder).rglob("*.[py][ya]*")),
]
FILE = re.compile(r"(?<![\w/.$}])(?:worldvq|envs|tools|tests|docs|configs)/[\w/.]+\.(?:py|md|png|gif|yaml)\b")
NAME = re.compile(r"(?<![\w/.-])worldvq(?:_envs)?(?:\.[A-Za-z_]\w*)+(?![\w/])")


def is_there(name):
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_exists(path):
    text = path.read_text()
    assert [name for name in FILE.findall(text) if not (ROOT / name).exists()] == []
    assert [name for name in sorted(set(NAME.findall(text))) if not is_there(name)] == []


def test_what_is_not_there_is_found():
    assert is_there("worldvq.files.atomic.write_atomic") and not is_there("worldvq.files.atomic.write_atom")
    assert not is_there("worldvq.pipeline") and FILE.findall("see `worldvq/train.py`") == ["worldvq/train.py"]
