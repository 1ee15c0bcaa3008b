"""The token store: it belongs to one tokenizer and one dataset, and continues where it stopped."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from safetensors import safe_open

from worldvq.config.env import EnvConfig
from worldvq.data.episodes import DatasetMeta
from worldvq.data.tokens import TokenMeta, TokenStore
from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.types import ActionSpace, Episode


def make_meta(**changes) -> TokenMeta:
    space = ActionSpace("multi_discrete", (3, 2))
    dataset = DatasetMeta(env=EnvConfig(), action_space=space.to_json(), frame_size=(8, 8), policy="random")
    return TokenMeta(**({"tokenizer_hash": "f" * 64, "dataset": dataset, "num_codes": 512, "grid": (2, 3)} | changes))


def make_episode(seed: int, steps: int = 9) -> Episode:
    rng = np.random.default_rng(seed)
    frames = np.zeros((steps + 1, 8, 8, 3), np.uint8)
    return Episode(
        frames, rng.integers(0, 2, (steps, 2)), rng.normal(size=steps).astype(np.float32), True, False, seed=seed
    )


def make_tokens(seed: int, num_codes: int = 512, frames: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_codes, (frames, 2, 3))


@pytest.mark.parametrize(("num_codes", "dtype"), [(512, np.uint16), (65_536, np.uint16), (65_537, np.int32)])
def test_round_trip(tmp_path, num_codes, dtype):
    with TokenStore.create(tmp_path / "t", make_meta(num_codes=num_codes)) as store:
        for number in (19, 3):
            tokens = make_tokens(number, num_codes)
            tokens[0, 0, 0] = num_codes - 1
            store.write(number, tokens, make_episode(number))
    store = TokenStore.open(tmp_path / "t")
    assert store.numbers("train") == [3] and store.numbers("heldout") == [19] and store.verify() == []
    held = store.read(19)
    assert held["tokens"].dtype == dtype and held["tokens"][0, 0, 0] == num_codes - 1
    np.testing.assert_array_equal(held["tokens"][1:], make_tokens(19, num_codes)[1:])
    np.testing.assert_array_equal(held["actions"], make_episode(19).actions)
    np.testing.assert_array_equal(held["rewards"], make_episode(19).rewards)
    assert store.entry(19).terminated and store.entry(19).seed == 19
    with safe_open(tmp_path / "t" / "episodes" / "000019.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("tokens"), held["tokens"])


def test_it_continues_and_skips_what_is_there(tmp_path):
    with TokenStore.create(tmp_path / "t", make_meta()) as store:
        first = store.write(0, make_tokens(0), make_episode(0))
        with pytest.raises(RunError, match="is writing to it"):
            TokenStore.create(tmp_path / "t", make_meta())
    with TokenStore.create(tmp_path / "t", make_meta()) as store:
        assert 0 in store and 1 not in store
        assert store.write(0, make_tokens(5), make_episode(0)) == first
        store.write(1, make_tokens(1), make_episode(1))
        np.testing.assert_array_equal(store.read(0)["tokens"], make_tokens(0))
    assert TokenStore.open(tmp_path / "t").numbers() == [0, 1]


def test_another_tokenizer_is_refused(tmp_path):
    TokenStore.create(tmp_path / "t", make_meta()).close()
    with pytest.raises(
        UsageError,
        match=r"tokenizer_hash: .* has 'ffff.*', you ask for '0000.*'; num_codes: .* has 512, you ask for 64",
    ):
        TokenStore.create(tmp_path / "t", make_meta(tokenizer_hash="0" * 64, num_codes=64))


def test_what_does_not_fit_is_refused(tmp_path):
    with TokenStore.create(tmp_path / "t", make_meta()) as store:
        for tokens, match in (
            (make_tokens(0, frames=9), r"integers \[10, 2, 3\], got int64\[9, 2, 3\]"),
            (make_tokens(0).astype(np.float32), "got float32"),
            (make_tokens(0) + 512, "not below 512"),
            (make_tokens(0) - 512, "not below 512"),
        ):
            with pytest.raises(UsageError, match=match):
                store.write(0, tokens, make_episode(0))
    with pytest.raises(UsageError, match="reading only"):
        TokenStore.open(tmp_path / "t").write(0, make_tokens(0), make_episode(0))
    with pytest.raises(UsageError, match="no token store"):
        TokenStore.open(tmp_path)


def test_damage_is_named(tmp_path):
    with TokenStore.create(tmp_path / "t", make_meta()) as store:
        entries = [store.write(number, make_tokens(number), make_episode(number)) for number in range(3)]
    file = tmp_path / "t" / entries[1].file
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # still a valid token
    with pytest.raises(CorruptFileError, match=r"000001\.safetensors: its hash"):
        TokenStore.open(tmp_path / "t").read(1)
    file.write_bytes(good)
    with TokenStore.open(tmp_path / "t") as store:
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        (problem,) = store.verify()
        assert problem.startswith(str(file))
    file.write_bytes(good[:-1] + b"\xff")  # token 65,2xx, and an index that says that it is right
    index = tmp_path / "t" / "index.jsonl"
    changed = entries[1].model_copy(update={"sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
    index.write_bytes(index.read_bytes().replace(entries[1].to_line(), changed.to_line()))
    with pytest.raises(CorruptFileError, match=r"000001\.safetensors: a token is not below"):
        TokenStore.open(tmp_path / "t").read(1)
    file.unlink()
    with pytest.raises(CorruptFileError, match=r"000001\.safetensors"):
        TokenStore.open(tmp_path / "t").read(1)


def test_another_split_changes_the_description_alone(tmp_path):
    """``record.heldout_every`` of the dataset was changed: its tokens are the same."""
    meta = make_meta()
    other = meta.model_copy(update={"dataset": meta.dataset.model_copy(update={"heldout_every": 2})})
    with TokenStore.create(tmp_path / "t", meta) as store:
        for number in range(2):
            store.write(number, make_tokens(number), make_episode(number))
    TokenStore.create(tmp_path / "t", other).close()
    store = TokenStore.open(tmp_path / "t")
    assert store.meta == other and store.numbers("heldout") == [1] and store.verify() == []
