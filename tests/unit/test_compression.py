"""Compressed tokens: nothing is lost, they take what the model says, and what cannot be decoded is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.token_stores import describe, fill, random_actions, random_tokens
from support.worlds import CODES, make_world

from worldvq.compression import coder, container
from worldvq.compression.coder import decode, encode, groups
from worldvq.data.tokens import TokenStore
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.stages import compress as stage
from worldvq.stages.compress import compress, decompress, zstd_sizes
from worldvq.types import Episode

world_of = functools.cache(make_world)


@functools.cache
def worlds() -> list:
    return [world_of("discrete"), world_of("multi_discrete", 1, "pixelcnn", False), world_of("box", 1, "pixelcnn")]


@settings(max_examples=25, deadline=None)
@given(
    which=st.integers(0, 2),
    lengths=st.lists(st.integers(2, 7), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    threads=st.sampled_from([1, 2]),
)
def test_decoding_undoes_encoding_and_the_stream_is_as_long_as_the_model_says(which, lengths, seed, threads):
    world, rng, lengths = worlds()[which], np.random.default_rng(seed), sorted(lengths, reverse=True)
    tokens = [random_tokens(world, length, rng) for length in lengths]
    actions = [random_actions(world.action_space, length - 1, rng) for length in lengths]
    stream, bits = encode(world, tokens, actions)
    try:
        torch.set_num_threads(threads)  # whoever decodes may have more: one is used
        decoded = decode(world, stream, lengths, actions)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    for one, other in zip(decoded, tokens, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    per_frame = tokens[0][0].size
    ideal = bits + len(lengths) * per_frame * math.log2(CODES)
    assert ideal - 1 < 32 * len(stream) < 1.001 * ideal + 64


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_cross_entropy_is_that_of_the_whole_episodes_in_parallel(which):
    """Dynamics.forward knows no cache: it sees all frames of an episode at once."""
    world, rng = worlds()[which], np.random.default_rng(which)
    lengths = [9, 9, 5]
    tokens = [random_tokens(world, length, rng) for length in lengths]
    actions = [random_actions(world.action_space, length - 1, rng) for length in lengths]
    nats = 0.0
    for row, taken in zip(tokens, actions, strict=True):
        known = torch.from_numpy(row.astype(np.int64))[None]
        out = np.concatenate([taken, taken[-1:]])  # the last frame's action leads nowhere
        with torch.no_grad():
            logits = world.dynamics(known, torch.from_numpy(out)[None]).logits
        nats += float(F.cross_entropy(logits.flatten(0, -2).double(), known[:, 1:].flatten(), reduction="sum"))
    assert encode(world, tokens, actions)[1] == pytest.approx(nats / math.log(2), rel=1e-5)


def test_groups_hold_every_episode_once_longest_first(monkeypatch):
    monkeypatch.setattr(coder, "ROWS", 3)
    assert groups([4, 9, 2, 9, 5]) == [[1, 3, 4], [0, 2]]


@pytest.fixture
def setting(tmp_path):
    """A world, its tokens, and the same compressed."""
    world = world_of("discrete")
    world.save(tmp_path / "world")
    store = fill(tmp_path / "tokens", world, [5, 3, 8, 4])
    report = compress(tmp_path / "world", tmp_path / "tokens", tmp_path / "tokens.wvq")
    return tmp_path, store, report


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_the_store_comes_back_to_the_byte(setting):
    root, _, report = setting
    back = decompress(root / "world", root / "tokens.wvq", root / "back")
    assert contents(root / "back") == contents(root / "tokens")  # tokens, actions, rewards, endings, labels, index
    assert back.verify() == [] and back.label(1) == "room 1"
    assert report.sizes.total == (root / "tokens.wvq").stat().st_size
    assert (report.num_episodes, report.num_frames, report.num_tokens) == (4, 20, 20 * 6)
    decompress(root / "world", root / "tokens.wvq", root / "back")  # again: it is there
    assert contents(root / "back") == contents(root / "tokens") and not list(root.glob("**/*.tmp"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> list[Path]:
    """The folders of ``worlds``."""
    folders = [tmp_path_factory.mktemp("world") for _ in worlds()]
    for world, folder in zip(worlds(), folders, strict=True):
        world.save(folder)
    return folders


NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.none() | st.booleans() | NUMBERS | st.text(max_size=4)

ENDINGS = ("terminated", "truncated", "interrupted")


@st.composite
def recorded(draw, world) -> tuple[np.ndarray, Episode]:
    """An episode that was recorded in a world with such actions, and its tokens."""
    steps, rng = draw(st.integers(1, 6)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rewards = draw(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=steps, max_size=steps))
    ending = draw(st.sampled_from(ENDINGS))
    label = draw(st.none() | st.text(max_size=5))
    episode = Episode(
        frames=np.zeros((steps + 1, 0, 0, 3), np.uint8),
        actions=random_actions(world.action_space, steps, rng),
        rewards=np.array(rewards, np.float32),
        seed=draw(st.integers(-(2**63), 2**64 - 1)),
        meta=draw(st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
        | ({} if label is None else {"label": label}),
        **{name: name == ending for name in ENDINGS},
    )
    return random_tokens(world, steps + 1, rng), episode


@settings(max_examples=10, deadline=None)
@given(data=st.data(), which=st.integers(0, 2), rows=st.sampled_from([2, 64]))
def test_every_store_comes_back_to_the_byte(saved, data, which, rows):
    world = worlds()[which]
    numbers = data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True))  # in any order
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder, "ROWS", rows)
        root = Path(name)
        with TokenStore.create(root / "tokens", describe(world)) as store:
            for number in numbers:
                store.write(number, *data.draw(recorded(world)))
        compress(saved[which], root / "tokens", root / "file")
        back = decompress(saved[which], root / "file", root / "back")
        there = contents(root / "tokens")  # the index, every episode, what the store is
        lines = there["index.jsonl"].splitlines(keepends=True)
        there["index.jsonl"] = b"".join(sorted(lines, key=lambda line: json.loads(line)["number"]))
        assert contents(root / "back") == there
        assert back.numbers() == sorted(numbers) and back.verify() == []


@pytest.mark.parametrize(("episodes", "numbers"), [("heldout", [2]), ("train", [0, 1, 3]), ("3,0,3", [0, 3])])
def test_some_episodes(setting, episodes, numbers, monkeypatch):
    root, store, _ = setting
    monkeypatch.setattr(coder, "ROWS", 2)
    assert compress(root / "world", root / "tokens", root / "some", episodes).num_episodes == len(numbers)
    back = decompress(root / "world", root / "some", root / "back")
    assert back.numbers() == numbers and back.entries == [store.entry(number) for number in numbers]


@pytest.mark.parametrize("episodes", ["4", "first", "", "1,-1"])
def test_episodes_that_are_not_there(setting, episodes):
    root, *_ = setting
    with pytest.raises(UsageError, match="episode"):
        compress(root / "world", root / "tokens", root / "none", episodes)
    assert not (root / "none").exists()


# ------------------------------------------------------------------------------------------------ what is refused


def test_damage_is_found_wherever_it_is(setting):
    root, *_ = setting
    file, good = root / "tokens.wvq", (root / "tokens.wvq").read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(8), len(good) - 1, *rng.integers(0, len(good), 150).tolist()]
    damaged = [good[:at] + bytes([good[at] ^ (1 << int(rng.integers(8)))]) + good[at + 1 :] for at in places]
    damaged += [good[:length] for length in (0, 1, 8, 100, len(good) // 2, len(good) - 1)] + [good + b"\0"]
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises((CorruptFileError, UsageError), match=r"tokens\.wvq") as caught:
            decompress(root / "world", file, root / "back")
        assert "\n" not in str(caught.value)
    assert not (root / "back").exists()
    file.write_bytes(good)
    decompress(root / "world", file, root / "back")


def test_other_worlds_and_other_stores_are_refused(setting):
    root, *_ = setting
    other = make_world(num_blocks=1)
    other.save(root / "other")
    with pytest.raises(
        UsageError, match=r"tokens\.wvq cannot be decoded here: world: it was compressed with '.*', here"
    ):
        decompress(root / "other", root / "tokens.wvq", root / "back")
    box = world_of("box", 1, "pixelcnn")
    box.save(root / "box")
    with pytest.raises(UsageError, match=r"does not fit .*action_space\.kind: the tokens have 'discrete'"):
        compress(root / "box", root / "tokens", root / "none")
    with pytest.raises(UsageError, match="is a folder"):
        compress(root / "world", root / "tokens", root / "tokens")
    with pytest.raises(UsageError, match="holds other files and no token store"):
        decompress(root / "world", root / "tokens.wvq", root / "world")
    for name in ("world/tokenizer.safetensors", "none"):
        with pytest.raises(UsageError, match="compressed tokens"):
            decompress(root / "world", root / name, root / "back")
    assert not (root / "back").exists() and not (root / "none").exists()


@pytest.mark.parametrize("name", ["worldvq", "torch", "constriction", "cpu"])
def test_other_versions_and_machines_are_refused(setting, name, monkeypatch):
    root, *_ = setting
    here = coder.settings(world_of("discrete")) | {name: "another"}
    monkeypatch.setattr(stage, "settings", lambda world: here)
    with pytest.raises(UsageError, match=f"{name}: it was compressed with '.*', here is 'another'"):
        decompress(root / "world", root / "tokens.wvq", root / "back")
    assert not (root / "back").exists()


def test_a_machine_that_computes_otherwise_is_found_out(setting, monkeypatch):
    root, *_ = setting
    probabilities, tilt = coder._probabilities, 1 + 0.01 * np.arange(CODES, dtype=np.float32)
    monkeypatch.setattr(coder, "_probabilities", lambda *given: probabilities(*given) * tilt)
    with pytest.raises(CorruptFileError, match=r"tokens\.wvq: (episode \d decodes to other tokens|.*invalid)"):
        decompress(root / "world", root / "tokens.wvq", root / "back")
    assert not (root / "back").exists()


def rewrite(path: Path, **changes) -> None:
    """Change what a file holds, hashes included, as somebody would who means harm."""
    path.write_bytes(container.to_bytes(dataclasses.replace(container.read(path), **changes))[0])


def test_claims_are_bounded_before_memory_is_taken(setting, monkeypatch):
    root, *_ = setting
    file, good = root / "tokens.wvq", container.read(root / "tokens.wvq")
    long = 2**30
    line = container._line
    monkeypatch.setattr(
        container, "_line", lambda *given: line(*given).replace(b'"num_frames": 8', b'"num_frames": %d' % long)
    )
    rewrite(file)
    monkeypatch.undo()
    with pytest.raises(CorruptFileError, match="bytes of tokens claim to be"):
        decompress(root / "world", file, root / "back")
    for changes, words in (
        ({"digests": good.digests[1:]}, "the episodes that it lists"),
        ({"numbers": [0, 0, 1, 2]}, "the episodes that it lists"),
        ({"streams": good.streams * 2}, "not those of its episodes"),
        ({"streams": [good.streams[0][:3]]}, "other tokens|invalid"),
        ({"streams": [good.streams[0] ^ 5]}, "other tokens|invalid"),
        (
            {"episodes": [dataclasses.replace(one, actions=one.actions + 7) for one in good.episodes]},
            "outside discrete",
        ),
        (
            {"episodes": [dataclasses.replace(one, actions=one.actions[:, None][:, [0, 0]]) for one in good.episodes]},
            "actions state",
        ),
    ):
        file.write_bytes(container.to_bytes(good)[0])
        rewrite(file, **changes)
        with pytest.raises((CorruptFileError, UsageError), match=words):
            decompress(root / "world", file, root / "back")
    assert not (root / "back").exists()


def test_what_is_interrupted_leaves_nothing(setting, monkeypatch):
    root, *_ = setting
    before = contents(root)
    walk, calls = coder._probabilities, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return walk(*arguments)

    for run in (
        lambda: compress(root / "world", root / "tokens", root / "new"),
        lambda: decompress(root / "world", root / "tokens.wvq", root / "back"),
    ):
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(coder, "_probabilities", stop)
            run()
    with monkeypatch.context() as patch, pytest.raises(RunError, match="disk is full"):
        patch.setattr("worldvq.files.atomic.free_space", lambda path: 0)
        compress(root / "world", root / "tokens", root / "new")
    assert contents(root) == before and not (root / "back").exists()


def test_what_is_missing_is_named(setting, monkeypatch):
    root, *_ = setting
    with (
        monkeypatch.context() as patch,
        pytest.raises(UsageError, match=r"constriction .*pip install 'worldvq\[codec\]'"),
    ):
        patch.setattr(coder, "constriction", None)
        compress(root / "world", root / "tokens", root / "new")


def test_zstd_is_given_the_tokens_and_nothing_else():
    """Random tokens cannot be compressed: so many bits a token are left, whatever the layout."""
    tokens = [np.random.default_rng(seed).integers(0, 512, (50, 8, 8), np.uint16) for seed in range(4)]
    sizes = zstd_sizes(tokens, 512)
    assert sizes["9 bits a token"] == pytest.approx(4 * 50 * 64 * 9 / 8, rel=0.01)
    assert all(4 * 50 * 64 * 9 / 8 < size < 4 * 50 * 64 * 2 for size in sizes.values())
    still = [np.repeat(one[:1], 50, axis=0) for one in tokens]
    assert max(zstd_sizes(still, 512).values()) < 4 * 64 * 9 / 8 * 3
