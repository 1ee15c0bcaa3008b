"""What the tests of the command line share."""

import pytest


@pytest.fixture
def here(root, tmp_path, monkeypatch):
    """An empty folder to work in, with links to what the module's own ``root`` holds."""
    for path in root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
