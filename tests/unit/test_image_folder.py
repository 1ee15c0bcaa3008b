"""A folder of images becomes a dataset, whatever else lies there, and after any stop."""

import hashlib
import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.images import bad_files, folder_of, picture

from worldvq.data.episodes import EpisodeStore
from worldvq.data.formats import images as module
from worldvq.data.formats.images import GROUP, LEAST, Source, import_images, make_groups
from worldvq.errors import RunError, UsageError
from worldvq.media.image_reading import read_image

# ------------------------------------------------------------------------------------------------ which episode


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(["", "a", "b", "c", "d"]), st.integers(1, 700), min_size=1), st.integers(1, 12))
def test_every_image_is_in_one_episode_of_its_class(counts, every):
    classes = {label: [Source(f"{label}/{n}", n) for n in range(count)] for label, count in sorted(counts.items())}
    if sum(counts.values()) == 1:
        with pytest.raises(UsageError, match="one image"):
            make_groups(classes, every)
        return
    groups = make_groups(classes, every)
    assert all(2 <= len(group.images) <= GROUP for group in groups)
    placed = Counter(image.path for group in groups for image in group.images)
    alone = {label for label, count in counts.items() if count == 1}
    lost = {f"{label}/{n}" for label, count in counts.items() for n in range(count)} - set(placed)
    assert set(placed.values()) == {1}
    # Only one that has nobody to be with, not even another that is alone, is in none.
    without = counts.get("", 0) + len(alone - {""})
    assert len(lost) == (without == 1)
    for label, count in counts.items():
        held = {True: 0, False: 0}
        for number, group in enumerate(groups):
            if group.label == label:
                held[number % every == every - 1] += len(group.images)
        if label and label not in alone:
            assert sum(held.values()) == count
            assert {image.path.split("/")[0] for g in groups if g.label == label for image in g.images} == {label}
        if label and count >= LEAST * every:  # of every class that is large enough one image in so many
            assert count / every - GROUP / every - 1 <= held[True] <= count / every + GROUP / every + 1
            assert held[True] > 0 and (every == 1 or held[False] > 0)
    assert make_groups(dict(reversed(classes.items())), every) == groups


def test_images_of_a_class_are_not_in_the_order_of_their_names():
    (first, *_) = make_groups({"a": [Source(f"a/{n:04d}", 1) for n in range(600)]}, 10)
    numbers = [int(image.path[2:]) for image in first.images]
    assert max(numbers) > 500 and min(numbers) < 100 and numbers != sorted(numbers)


# ------------------------------------------------------------------------------------------------ a folder


def test_a_folder_becomes_a_dataset(tmp_path, capsys):
    made = folder_of(tmp_path / "f", {"cat": 30, "dog/small": 5, "": 4})
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)) as store:
        assert store.verify() == [] and store.num_frames == 39 and len(store) == 1 + 10 + 1
        seen = Counter()
        for number in store.numbers():
            episode = store.read(number)
            for frame, name in zip(episode.frames, episode.meta["images"], strict=True):
                assert np.array_equal(frame, made[name])
                expected = name.split("/")[0] if "/" in name else ""
                assert episode.meta["label"] == expected and store.label(number) == (expected or "images:f")
                seen[name] += 1
            assert episode.truncated and not episode.actions.any() and not episode.rewards.any()
        assert seen == Counter(made.keys())
        assert store.action_space.nvec == (1,)
    assert "39 images of 2 classes in" in capsys.readouterr().out


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_other_shapes_are_made_to_fit(tmp_path, fit, capsys):
    (tmp_path / "f").mkdir()
    whole = picture(1, 32, 64)
    for name in "ab":
        Image.fromarray(whole).save(tmp_path / "f" / f"{name}.png")
    Image.fromarray(picture(2, 8, 8)).save(tmp_path / "f" / "small.png")
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16), fit=fit) as store:
        frames = dict(zip(store.mapped(0).meta["images"], store.frames(0), strict=True))
    if fit == "crop":  # the middle 32x32, each 2x2 one pixel
        expected = whole[:, 16:48].reshape(16, 2, 16, 2, 3).mean((1, 3))
    elif fit == "squash":
        expected = whole.reshape(16, 2, 16, 4, 3).mean((1, 3))
    else:  # 8x16 between bars
        expected = np.pad(whole.reshape(8, 4, 16, 4, 3).mean((1, 3)), ((4, 4), (0, 0), (0, 0)))
    assert np.abs(frames["a.png"] - expected).max() <= 1
    assert "1 image smaller than 16x16, enlarged" in capsys.readouterr().out


def test_what_cannot_be_read_is_named_and_the_rest_is_there(tmp_path, capsys):
    made = folder_of(tmp_path / "f", {"a": 20})
    bad = bad_files(tmp_path / "f" / "a")
    Image.fromarray(np.dstack([picture(), picture()[..., 0]])).save(tmp_path / "f" / "a" / "alpha.png")
    (tmp_path / "f" / "notes.txt").write_text("hello")
    (tmp_path / "f" / ".hidden.png").write_bytes(b"")
    (tmp_path / "f" / ".cache").mkdir()
    (tmp_path / "f" / "link.png").symlink_to(tmp_path / "f" / "a" / "0.png")
    (tmp_path / "f" / "again").symlink_to(tmp_path / "f")
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)) as store:
        kept = [name for number in store.numbers() for name in store.mapped(number).meta["images"]]
        named = {name for number in store.numbers() for name in store.mapped(number).meta.get("unreadable", {})}
    out = capsys.readouterr().out
    assert "(left out: hidden 2, other files 1, symbolic links 2)" in out
    lost = [line for line in out.splitlines() if line.startswith("left out, as fewer than two")]
    assert set(kept) <= {*made, "a/alpha.png"} and (len(kept) == 21 or lost)
    assert named <= {f"a/{name}" for name in bad}
    assert all(f"left out: a/{name}: not a whole image" in out for name in bad)
    assert f"{len(bad)} images cannot be read, left out" in out and "1 image with transparent parts" in out


def test_an_import_goes_on_where_it_stopped(tmp_path, monkeypatch):
    folder_of(tmp_path / "f", {"a": 33, "b": 33, "": 3})
    (tmp_path / "f" / "a" / "0.png").write_bytes(b"broken")
    with import_images(tmp_path / "f", tmp_path / "whole", size=(16, 16)) as store:
        whole = store.fingerprint()
    commit, count = EpisodeStore.commit, 0

    def stop(self, number, episode):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return commit(self, number, episode)

    monkeypatch.setattr(EpisodeStore, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        import_images(tmp_path / "f", tmp_path / "d", size=(16, 16))
    monkeypatch.undo()
    assert len(EpisodeStore.open(tmp_path / "d")) == 7
    read = []
    monkeypatch.setattr(module, "read_image", lambda path: read.append(path) or read_image(path))
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)) as store:
        assert store.fingerprint() == whole
    assert 0 < len(read) < 50
    read.clear()
    import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)).close()
    assert not read


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "a" / "0.png").unlink(), "are not those that it was begun with"),
        (lambda folder: (folder / "a" / "0.png").rename(folder / "a" / "x.png"), "are not those that it was begun"),
        (lambda folder: Image.fromarray(picture(9, 40, 40)).save(folder / "a" / "0.png"), "are not those"),
        (lambda folder: folder.rename(folder.with_name("g")), "holds a dataset of 'images:f', not of the images in"),
    ],
)
def test_other_images_are_refused(tmp_path, change, words):
    folder_of(tmp_path / "f", {"a": 6})
    import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)).close()
    before = hashlib.sha256((tmp_path / "d" / "index.jsonl").read_bytes()).hexdigest()
    change(tmp_path / "f")
    folder = tmp_path / "f" if (tmp_path / "f").exists() else tmp_path / "g"
    with pytest.raises(UsageError, match=words) as caught:
        import_images(folder, tmp_path / "d", size=(16, 16))
    assert "import into another folder" in str(caught.value)
    assert hashlib.sha256((tmp_path / "d" / "index.jsonl").read_bytes()).hexdigest() == before


def test_another_size_is_refused(tmp_path):
    folder_of(tmp_path / "f", {"a": 6})
    import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)).close()
    with pytest.raises(UsageError, match="frame_size: the dataset has 16x16, you ask for 32x32"):
        import_images(tmp_path / "f", tmp_path / "d", size=(32, 32))


def test_folders_without_images(tmp_path):
    with pytest.raises(UsageError, match="no such folder of images"):
        import_images(tmp_path / "gone", tmp_path / "d")
    (tmp_path / "f" / "a").mkdir(parents=True)
    (tmp_path / "f" / "a" / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"holds no images: none .* \(left out: other files 1\)"):
        import_images(tmp_path / "f", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    (tmp_path / "f" / "a.png").write_bytes(b"")
    (tmp_path / "f" / "b.png").write_bytes(b"")
    with pytest.raises(RunError, match="no image can be read; delete"):
        import_images(tmp_path / "f", tmp_path / "d")


def test_compressed_frames_are_the_same(tmp_path):
    folder_of(tmp_path / "f", {"a": 6})
    plain = import_images(tmp_path / "f", tmp_path / "d", size=(16, 16))
    packed = import_images(tmp_path / "f", tmp_path / "z", size=(16, 16), compression="zstd")
    with plain, packed:
        assert packed.meta.compression == "zstd"
        for number in plain.numbers():
            assert np.array_equal(plain.frames(number), packed.frames(number))


def test_names_that_are_no_text(tmp_path):
    folder = tmp_path / "f" / os.fsdecode(b"\xff\xfe")
    folder.mkdir(parents=True)
    for index in range(3):
        Image.fromarray(picture(index)).save(folder / os.fsdecode(b"%d\xff.png" % index))
    with import_images(tmp_path / "f", tmp_path / "d", size=(16, 16)) as store:
        assert store.num_frames == 3 and store.label(0) == "\\udcff\\udcfe"
        assert store.verify() == []
