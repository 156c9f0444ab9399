"""Episodes are CoOp's: held against a literal restatement of its code on the global generator."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safe_ray.data.episodes import CONVENTIONS, draw_episode
from safe_ray.data.manifest import Manifest, load_manifest
from safe_ray.data.readers.base import FILES_SCHEMA
from safe_ray.errors import InputError
from safe_ray.specs import ALL_SHOTS
from tests.data.coop_tree import entries, write_coop


def split_dataset_by_label(data_source):
    """As in Dassl's `DatasetBase`."""
    output = defaultdict(list)
    for item in data_source:
        output[item[1]].append(item)
    return output


def generate_fewshot_dataset(data_source, num_shots, repeat=False):
    """As in Dassl's `DatasetBase`, and with `repeat=True` as in Tip-Adapter's."""
    tracker = split_dataset_by_label(data_source)
    dataset = []
    for items in tracker.values():
        if len(items) >= num_shots:
            sampled_items = random.sample(items, num_shots)
        else:
            sampled_items = random.choices(items, k=num_shots) if repeat else items
        dataset.extend(sampled_items)
    return dataset


def coop_episode(split, shots, seed):
    """As in CoOp's data sets, after `set_random_seed(seed)`."""
    random.seed(seed)
    train = generate_fewshot_dataset(split["train"], num_shots=shots)
    val = generate_fewshot_dataset(split["val"], num_shots=min(shots, 4))
    return train, val


def clip_lora_episode(split, shots, seed):
    """As in CLIP-LoRA's data sets, after `set_random_seed(seed)`."""
    random.seed(seed)
    val = generate_fewshot_dataset(split["val"], num_shots=min(shots, 4), repeat=True)
    train = generate_fewshot_dataset(split["train"], num_shots=shots, repeat=True)
    return train, val


def tip_adapter_episode(split, shots, seed):
    """As in Tip-Adapter's data sets; it chooses on more, so that the validation part is CoOp's."""
    random.seed(seed)
    train = generate_fewshot_dataset(split["train"], num_shots=shots, repeat=True)
    val = generate_fewshot_dataset(split["val"], num_shots=min(shots, 4))
    return train, val


def pairs(table):
    return list(
        zip(table.column("path").to_pylist(), table.column("label").to_pylist(), strict=True)
    )


class SealedTest(Mapping):
    """The tables of a manifest, except that nobody may look at the test split."""

    def __init__(self, tables):
        self.tables = tables

    def __getitem__(self, name):
        if name == "test":
            raise AssertionError("an episode looked at the test split")
        return self.tables[name]

    def __iter__(self):
        raise AssertionError("an episode went through all splits")

    def __len__(self):
        return 3


def manifest_of(split):
    tables = {
        name: pa.table(
            {
                "path": [path for path, _ in rows],
                "label": [label for _, label in rows],
                "file": [f"/images/{path}" for path, _ in rows],
            },
            schema=FILES_SCHEMA,
        )
        for name, rows in split.items()
    }
    classes = tuple(f"class {label}" for label in range(10))
    return Manifest("drawn", classes, ("a {}.",), SealedTest(tables))


labels = st.lists(st.integers(0, 9), max_size=60)


@st.composite
def splits(draw):
    return {
        name: [(f"{name}/{number}.png", label) for number, label in enumerate(draw(labels))]
        for name in ("train", "val")
    }


@settings(max_examples=150, deadline=None)
@given(split=splits(), shots=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_an_episode_is_coops_and_never_looks_at_the_test_split(split, shots, seed):
    manifest = manifest_of(split)
    before = random.getstate()
    episode = draw_episode(manifest, shots, seed)
    assert random.getstate() == before
    train, validation = coop_episode(split, shots, seed)
    assert pairs(episode.train) == train
    if split["val"]:
        assert pairs(episode.validation) == validation
    validation = pairs(episode.validation)

    again = draw_episode(manifest, shots, seed)
    assert (again.digest, again.train, again.validation) == (
        episode.digest,
        episode.train,
        episode.validation,
    )
    drawn = [path for path, _ in train + validation]
    assert len(set(drawn)) == len(drawn)
    parts = [(split["train"], train, shots)]
    if split["val"]:
        parts.append((split["val"], validation, min(shots, 4)))
    for rows, chosen, most in parts:
        for label in range(10):
            available = sum(each == label for _, each in rows)
            assert sum(each == label for _, each in chosen) == min(available, most)


@pytest.mark.parametrize(
    ("convention", "restated"),
    [("clip_lora", clip_lora_episode), ("tip_adapter", tip_adapter_episode)],
)
@settings(max_examples=60, deadline=None)
@given(split=splits(), shots=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_other_conventions_are_those_of_their_authors(convention, restated, split, shots, seed):
    assume(split["val"])
    episode = draw_episode(manifest_of(split), shots, seed, convention)
    train, validation = restated(split, shots, seed)
    assert pairs(episode.train) == train
    assert pairs(episode.validation) == validation


def test_an_unknown_convention_is_refused_with_the_nearest():
    manifest = manifest_of({"train": [("a", 0)], "val": []})
    with pytest.raises(InputError, match="Did you mean 'clip_lora'"):
        draw_episode(manifest, 1, 1, convention="clip-lora")


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=60, deadline=None)
@given(drawn=labels, shots=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_without_a_validation_split_the_shots_rest_validates_if_every_class_has_one(
    convention, drawn, shots, seed
):
    rows = [(f"{number}.png", label) for number, label in enumerate(drawn)]
    episode = draw_episode(manifest_of({"train": rows, "val": []}), shots, seed, convention)
    train, validation = pairs(episode.train), pairs(episode.validation)
    assert not set(train) & set(validation)
    counts = {label: drawn.count(label) for label in set(drawn)}
    if drawn and all(count > shots for count in counts.values()):
        assert episode.source == "train"
        for label, count in counts.items():
            rest = sum(each == label for _, each in validation)
            assert rest == min(count - shots, shots, 4)
    else:
        assert (episode.source, validation) == ("none", [])


def test_the_whole_validation_split_is_taken_in_its_order_when_asked():
    split = {
        "train": [("a.png", 1), ("b.png", 0)],
        "val": [("c.png", 0), ("d.png", 1), ("e.png", 0)],
    }
    episode = draw_episode(manifest_of(split), shots=1, seed=1, full=True)
    assert pairs(episode.validation) == split["val"]
    sampled = draw_episode(manifest_of(split), shots=1, seed=1)
    assert episode.train_digest == sampled.train_digest
    assert episode.digest != sampled.digest


def test_digests_are_over_lines_of_path_tab_label():
    split = {"train": [("a.png", 1), ("b.png", 0)], "val": [("c.png", 0)]}
    episode = draw_episode(manifest_of(split), shots=1, seed=1)

    def digest(text):
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    assert episode.train_digest == digest("a.png\t1\nb.png\t0")
    assert episode.validation_digest == digest("c.png\t0")
    assert episode.digest == digest("a.png\t1\nb.png\t0\nc.png\t0")


def test_rows_carry_their_images_along(tmp_path):
    split = entries(["cat", "dog"], {"train": 5, "val": 5})
    manifest = load_manifest(write_coop(tmp_path, split), tmp_path)
    episode = draw_episode(manifest, shots=3, seed=2)
    for path, file in zip(
        episode.train.column("path").to_pylist(),
        episode.train.column("file").to_pylist(),
        strict=True,
    ):
        assert file == str(tmp_path / "tiny/images" / path)


@pytest.mark.parametrize(("shots", "seed"), [(0, 1), (-1, 1), (1, -1)])
def test_shots_and_seeds_that_make_no_sense_are_refused(shots, seed):
    with pytest.raises(InputError, match=r"-1|0"):
        draw_episode(manifest_of({"train": [("a", 0)], "val": []}), shots, seed)


def published_split_files():
    """Return CoOp's published split files, where somebody keeps them beside the checkout."""
    folder = Path(__file__).parents[3] / "shared" / "splits"
    return sorted(folder.glob("split_zhou_*.json"))


@pytest.fixture(params=published_split_files() or [None], ids=lambda f: f.stem if f else "small")
def coop_split_text(request):
    if request.param:
        return request.param.read_text()
    # As ragged as the published ones: few and many samples a class, labels in no order.
    rng = random.Random(0)
    split = {"train": [], "val": [], "test": []}
    for label in rng.sample(range(40), 40):
        for name, most in (("train", 60), ("val", 12), ("test", 9)):
            split[name] += [
                [f"{label}/{name}{number}.jpg", label, f"kind_{label}"]
                for number in range(rng.randint(1, most))
            ]
    return json.dumps(split)


def test_episodes_of_coops_own_split_files(tmp_path, coop_split_text):
    split = json.loads(coop_split_text)
    manifest = load_manifest(write_coop(tmp_path, coop_split_text), tmp_path)
    assert len(manifest.classes) == len({name for _, _, name in split["train"]})
    for shots in (1, 2, 4, 8, 16):
        for seed in (1, 2, 3):
            episode = draw_episode(manifest, shots, seed)
            train, validation = coop_episode(split, shots, seed)
            assert pairs(episode.train) == [(path, label) for path, label, _ in train]
            assert pairs(episode.validation) == [(path, label) for path, label, _ in validation]


UNEQUAL = {
    "train": [(f"{label}/{n}.png", label) for label in (1, 0) for n in range(35 - 20 * label)]
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_all_shots_are_the_whole_train_split_in_its_order(convention):
    split = {**UNEQUAL, "val": [("v.png", 0)]}
    episode = draw_episode(manifest_of(split), ALL_SHOTS, seed=1, convention=convention, full=True)
    assert pairs(episode.train) == split["train"]
    assert pairs(episode.validation) == split["val"]
    without = draw_episode(manifest_of({**UNEQUAL, "val": []}), ALL_SHOTS, 1, convention)
    assert (without.source, without.validation.num_rows) == ("none", 0)


@pytest.mark.parametrize(("shots", "train"), [(ALL_SHOTS, {0: 28, 1: 12}), (16, {0: 16, 1: 12})])
def test_a_fifth_of_each_class_is_held_out_and_the_shots_are_of_the_rest(shots, train):
    manifest = manifest_of({**UNEQUAL, "val": [("v.png", 0)]})
    episode = draw_episode(manifest, shots, seed=1, held_out=True)
    assert Counter(label for _, label in pairs(episode.validation)) == {0: 7, 1: 3}
    assert Counter(label for _, label in pairs(episode.train)) == train
    assert not set(pairs(episode.train)) & set(pairs(episode.validation))
    assert episode.source == "held_out"
    other = draw_episode(manifest, shots, seed=2, held_out=True)
    assert set(pairs(other.validation)) != set(pairs(episode.validation))


def test_a_class_of_one_image_keeps_it_for_training():
    split = {"train": [("a.png", 0), ("b.png", 1), ("c.png", 1)], "val": []}
    episode = draw_episode(manifest_of(split), ALL_SHOTS, seed=1, held_out=True)
    assert [label for _, label in pairs(episode.train)] == [0, 1]
    assert [label for _, label in pairs(episode.validation)] == [1]
