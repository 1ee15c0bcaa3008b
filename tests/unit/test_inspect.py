"""What ``worldvq data`` prints and draws."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.episodes import write

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import DatasetMeta, EpisodeStore
from worldvq.data.inspect import info, open_store, preview
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.errors import UsageError, plural
from worldvq.media import tiles
from worldvq.media.videos import decode_times, probe_video
from worldvq.types import ActionSpace, Episode


@pytest.fixture
def dataset(tmp_path):
    space = ActionSpace("discrete", (2,), names=("left", "right"))
    env = EnvConfig(id="Some/World-v3", kwargs={"level": 7}, size=(16, 20))
    episodes = []
    for number in range(5):
        steps = 4 + 2 * number
        frames = np.full((steps + 1, 16, 20, 3), 40 * number, np.uint8)
        actions, rewards = np.arange(steps) % 2, np.full(steps, 0.5, np.float32)
        episodes.append(Episode(frames, actions, rewards, terminated=number == 2, truncated=number != 2))
    return write(tmp_path / "d", space, episodes, env=env, policy="held", seed=11, heldout_every=4).path


def text_of(table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_info_of_a_dataset(dataset):
    text = text_of(info(dataset))
    for part in (
        "Some/World-v3 (level=7)",
        "45 of 16x20",
        "held, seed 11",
        "5: 1 terminated, 4 truncated, 0 interrupted",
        "1 episode, 11 frames (1 in 4)",
        "5 to 13, mean 9.0",
        "2 to 6, mean 4",
        "left 50.0%, right 50.0%",
        "MiB",
    ):
        assert part in text, part


def test_info_and_verify_of_tokens(dataset, tmp_path):
    source = EpisodeStore.open(dataset)
    meta = TokenMeta(tokenizer_hash="0123456789abcdef", dataset=source.meta, num_codes=64, grid=(2, 2))
    with TokenStore.create(tmp_path / "t", meta) as store:
        assert "none" in text_of(info(tmp_path / "t"))
        store.write(0, np.zeros((5, 2, 2), np.int64), source.read(0))
    assert "2x2 a frame, 64 codes, tokenizer 0123456789ab" in text_of(info(tmp_path / "t"))
    assert open_store(tmp_path / "t").verify() == [] == open_store(dataset).verify()


def test_info_of_other_action_kinds(tmp_path):
    for name, space, text in (
        ("box", ActionSpace("box", low=(-1.0,), high=(float("inf"),)), "box of 1: [-1, inf]"),
        ("many", ActionSpace("multi_discrete", (3, 2)), "multi-discrete 3 x 2"),
    ):
        frames, actions = np.zeros((3, 4, 4, 3), np.uint8), np.zeros((2, *space.shape), space.dtype)
        write(tmp_path / name, space, [Episode(frames, actions, np.zeros(2, np.float32), True, False)])
        assert text in text_of(info(tmp_path / name))


def test_preview_draws_every_episode(dataset, tmp_path):
    sheet, video = preview(dataset, tmp_path / "out")
    assert [sheet.name, video.name] == ["contact_sheet.png", "preview.mp4"]
    with Image.open(sheet) as image:
        picture = np.asarray(image)
    for number in range(5):  # every episode's grey is somewhere on the sheet
        assert (picture == 40 * number).all(-1).sum() > 1000
    assert probe_video(video)[0] == 13  # the longest episode


def test_preview_shows_actions_and_rewards_at_the_scale_asked_for(dataset, tmp_path, monkeypatch):
    said, draw = [], tiles.text

    def heard(words, *rest, **options):
        said.append(words)
        return draw(words, *rest, **options)

    monkeypatch.setattr(tiles, "text", heard)
    sheet, video = preview(dataset, tmp_path / "out", fps=4, scale=9)
    # The first episode of frames 0 to 4, whose actions are left, right, left, right, each paid 0.5.
    row = ["start", "episode 0", "reward 0.5, sum 0.5", "left", "frame 1", "reward 0.5, sum 1", "right", "frame 2"]
    assert [words for words in said if words][: len(row)] == row
    assert "episode 3 (held out), frame 10" in said and "reward 0.5, sum 5" in said
    with Image.open(sheet) as image:
        columns = (np.asarray(image) == 160).all(-1).sum(axis=1)  # the last episode, of 13 frames: 12 are drawn
        assert columns.max() == 12 * 20 * 9 and (columns == 12 * 20 * 9).sum() == 16 * 9
    times = decode_times(video).times
    assert len(times) == 13 and times[1] - times[0] == pytest.approx(0.25)


def test_preview_of_nothing(tmp_path):
    with pytest.raises(UsageError, match="worldvq record"):
        preview(tmp_path / "missing", tmp_path / "out")
    meta = DatasetMeta(
        env=EnvConfig(), action_space=ActionSpace("discrete", (2,)).to_json(), frame_size=(4, 4), policy="random"
    )
    EpisodeStore.create(tmp_path / "d", meta).close()
    with pytest.raises(UsageError, match="no episodes yet"):
        preview(tmp_path / "d", tmp_path / "out")


def test_counts_are_in_words_that_fit():
    assert [plural(n, "frame") for n in (0, 1, 2, 1234)] == ["0 frames", "1 frame", "2 frames", "1,234 frames"]
