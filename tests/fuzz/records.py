"""Readers of what sweeps leave: records, heads, checkpoints, tables, and the feature store."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna
import pyarrow as pa
import torch
import xxhash
from safetensors.torch import save_file

from safe_ray.comparison.rows import merge, read_rows
from safe_ray.config import SweepConfig
from safe_ray.features.index import PartKeys, read_index, write_index
from safe_ray.features.inventory import take_inventory
from safe_ray.features.parts import DamagedPart, open_part, write_part
from safe_ray.features.store import FeatureStore, StoreKey
from safe_ray.features.verification import verify_stores
from safe_ray.files import digest_json, write_record
from safe_ray.heads.artifact import CARD_FILE, WEIGHTS_FILE, load_head, save_head
from safe_ray.heads.optimiser import Moments
from safe_ray.methods.base import make_method
from safe_ray.report.confusion import Confusion, count_pairs, read_confusions, write_confusions
from safe_ray.report.correct import Correct, read_correct, write_correct
from safe_ray.report.looks import LookedAt, read_looks, write_looks
from safe_ray.report.parquet import write_parquet
from safe_ray.report.summary import read_summary, write_summary
from safe_ray.search.choosing import choose
from safe_ray.search.journal import Journal
from safe_ray.search.searcher import JOB, read_candidates, size_of_first_bank
from safe_ray.sweep.claim import claimed
from safe_ray.sweep.driver_usage import USAGE, load_usage
from safe_ray.sweep.frozen import compare, freeze
from safe_ray.sweep.plan import decisions
from safe_ray.tracking.times import Load
from safe_ray.training.checkpoint import goes_on, load_state, save_state
from safe_ray.training.diary import Diary
from safe_ray.training.facts import TaskFacts, load_classifier, load_pooling
from safe_ray.training.members import MemberState, TrainingState
from safe_ray.usage import Sample
from tests.fuzz.reader import Reader, sha256_of, sign_records
from tests.heads.test_artifact import card
from tests.report.results import result
from tests.search.outcomes import SAFE, SPACE, outcome_of
from tests.training.tasks import TASK, write_task

STATE = {"q_proj.weight": torch.ones(3, 4), "q_proj.bias": torch.zeros(3)}
START = TrainingState(0, [MemberState(dict(STATE)) for _ in range(2)])
CANDIDATES = [
    {"lr": 1e-3, "weight_decay": 0.01, "epochs": 40},
    {"lr": 3e-4, "weight_decay": 0.1, "epochs": 7},
]
KEY = StoreKey("trunk", {"size": 96}, "fp32", "1")
FACTS = {"python": "3.11"}
TOKENS, WIDTH, SAMPLES = 4, 8, 6


def _make_head(folder: Path) -> None:
    save_head(folder, STATE, card())


def _sign_head(folder: Path) -> None:
    try:
        value = json.loads((folder / CARD_FILE).read_bytes())
        value["weights"]["sha256"] = sha256_of(folder / WEIGHTS_FILE)
        (folder / CARD_FILE).write_text(json.dumps(value))
    except (OSError, ValueError, TypeError, KeyError):
        return


def _read_head(folder: Path) -> object:
    state, read = load_head(folder)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    return read


def _make_task(folder: Path) -> None:
    write_task(folder)
    for part in (folder / "features").rglob("*.arrow"):
        part.unlink()


def _read_task(folder: Path) -> object:
    sweep = folder / "sweep"
    facts = TaskFacts.load(sweep / "tasks" / TASK.id)
    for spec in facts.group("safe").methods:
        make_method(spec.module, spec.options)
    facts.pool()
    return load_classifier(sweep / "tasks" / TASK.id), load_pooling(sweep)


def _make_bank(folder: Path) -> None:
    bank = folder / "banks" / "task" / "safe" / "bank-000"
    samples = (Sample(1e9, {"cpu_utilization_percentage": 50.0}),)
    timed = replace(
        outcome_of(CANDIDATES, failed=(1,)), began=1e9, ended=2e9, epochs=(1.5e9,), usage=samples
    )
    timed.save(bank)
    Diary("0" * 16, 1e9, (1.5e9,), ((1.0, None), (2.0,)), samples).save(bank)
    write_record(bank / JOB, {"candidates": CANDIDATES})


def _read_bank(folder: Path) -> object:
    from safe_ray.training.outcome import BankOutcome

    bank = folder / "banks" / "task" / "safe" / "bank-000"
    size_of_first_bank(folder)
    read_candidates(bank)
    Diary.load(bank)
    outcome = BankOutcome.load(bank)
    if outcome is None:
        return None
    choice = choose(str(folder), [outcome], SAFE)
    if choice is not None and choice.winner.folder is not None:
        assert os.path.normpath(choice.winner.folder).startswith(f"{folder}/banks/")
    return choice


def _make_usage(folder: Path) -> None:
    samples = (Sample(1e9, {"cpu_utilization_percentage": 50.0}),) * 2
    write_record(folder / USAGE, {"systems": {digest_json(FACTS): [asdict(s) for s in samples]}})


def _read_usage(folder: Path) -> object:
    return Load.of(load_usage(folder, FACTS))


def _make_journal(folder: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Journal(folder).record(SPACE, outcome_of(CANDIDATES))


def _read_journal(folder: Path) -> None:
    Journal(folder).record(SPACE, outcome_of(CANDIDATES, bank=1))


def _make_checkpoint(folder: Path) -> None:
    def state() -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in STATE.items()}

    def member() -> MemberState:
        return MemberState(state(), Moments(state(), state(), 9), [1.0, float("nan")])

    save_state(folder / "checkpoint.safetensors", TrainingState(3, [member(), member()]), "me")


def _read_checkpoint(folder: Path) -> bool:
    state = load_state(folder / "checkpoint.safetensors", "me")
    return state is not None and goes_on(state, START, list(STATE))


def _make_config(folder: Path) -> None:
    with claimed(_config(folder)) as claim:
        claim.take()


def _read_config(folder: Path) -> None:
    with claimed(_config(folder)):
        pass


_configs: dict[str, SweepConfig] = {}


def _config(folder: Path) -> SweepConfig:
    from safe_ray.compose import load_config

    if not _configs:
        _configs["it"] = load_config(["sweep=it", "storage=/nowhere"])
    return _configs["it"].model_copy(update={"storage": folder})


def _make_plan(folder: Path) -> None:
    write_record(_config(folder).outputs / "plan.json", {"bank": 8, "precision": "fp32"})


def _read_plan(folder: Path) -> None:
    known = decisions(_config(folder))
    assert isinstance(known.get("bank", 1), int)
    assert known.get("precision", "fp32") in ("fp32", "bf16", "fp16")


def _maps(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, TOKENS, WIDTH)).astype(np.float16)


def _make_part(folder: Path) -> None:
    samples = [f"sample-{number}" for number in range(SAMPLES)]
    write_part(folder, samples, [0] * SAMPLES, _maps(SAMPLES))


def _read_part(folder: Path) -> None:
    for file in folder.glob("part-*.arrow"):
        part = open_part(file, TOKENS * WIDTH)
        part.check(np.arange(len(part.maps)))


def _sign_part(folder: Path) -> None:
    """Give a part the checksums of its maps, and the name of its keys."""
    from safe_ray.features.parts import _name_of

    for file in folder.rglob("part-*.arrow"):
        try:
            with pa.ipc.open_file(file.read_bytes()) as reader:
                batch = reader.get_batch(0)
            batch.validate(full=True)
            keys = batch.column("sample").to_pylist(), batch.column("view").to_pylist()
            rows = batch.column("tokens").values.to_numpy().reshape(len(batch), -1)
            sums = np.array([xxhash.xxh3_64_intdigest(row.data) for row in rows], np.uint64)
            batch = batch.set_column(3, "checksum", pa.array(sums))
            with pa.ipc.new_file(str(file), batch.schema) as writer:
                writer.write_batch(batch)
            file.rename(file.with_name(_name_of(*keys)))
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, AttributeError):
            continue


def _make_store(folder: Path) -> None:
    store = FeatureStore(folder, KEY, TOKENS, WIDTH)
    for number in range(2):
        samples = [f"sample-{number}-{row}" for row in range(2)]
        store.write_part(samples, [0, 1], _maps(2))
    parts = {}
    for file in store.folder.glob("part-*.arrow"):
        part = open_part(file)
        parts[file.name] = PartKeys(file.stat().st_size, part.samples, part.views)
    write_index(store.folder, parts)


def _read_store(folder: Path) -> None:
    import safe_ray.features.store as module

    # Few parts are enough for the index to be read.
    with mock.patch.object(module, "_INDEX_AFTER_PARTS", 1):
        store = FeatureStore(folder, KEY, TOKENS, WIDTH)
        read_index(store.folder)
        wanted = [f"sample-{number}-{row}" for number in range(2) for row in range(2)]
        store.missing(wanted, [0, 1])
        store.check([(wanted, [0, 1])])
        verify_stores(folder)
        here = [sample for sample in wanted if not store.missing([sample], [0])]
        store.read(here, [0])


def _sign_index(folder: Path) -> None:
    """Give an index the checksum of what it holds."""
    for file in folder.rglob("index.arrow"):
        try:
            with pa.ipc.open_file(file.read_bytes()) as reader:
                batch = reader.get_batch(0)
            batch.validate(full=True)
            parts = batch.schema.metadata[b"parts"]
            digest = xxhash.xxh3_64(parts)
            digest.update(batch.replace_schema_metadata(None).serialize())
            sums = {"parts": parts, "checksum": str(digest.intdigest())}
            batch = batch.replace_schema_metadata(sums)
            with pa.ipc.new_file(str(file), batch.schema) as writer:
                writer.write_batch(batch)
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError):
            continue


def _images() -> pa.Table:
    from tests.data.coop_tree import png

    return pa.table({"path": ["a.png", "b.png"], "image": [png("red"), png("blue")]})


def _make_inventory(folder: Path) -> None:
    take_inventory(_images(), folder / "inventory.arrow")


def _read_inventory(folder: Path) -> None:
    take_inventory(_images(), folder / "inventory.arrow")


def _manifest() -> Any:
    from safe_ray.data.manifest import Manifest

    empty = pa.table({"path": pa.array([], pa.string()), "label": pa.array([], pa.int32())})
    train = pa.table({"path": ["a", "b"], "label": pa.array([0, 1], pa.int32())})
    return Manifest("pets", ("cat", "dog"), ("{}",), {"train": train, "val": empty, "test": empty})


def _make_frozen(folder: Path) -> None:
    from safe_ray.specs import DatasetSpec

    freeze(_manifest(), DatasetSpec("pets", "folder", "/pets"), folder)


def _read_frozen(folder: Path) -> None:
    from safe_ray.specs import DatasetSpec

    compare(_manifest(), DatasetSpec("pets", "folder", "/pets"), folder, redraw=True)


def _make_correct(folder: Path) -> None:
    right = np.array([True, False, True] * 7)
    rows = [Correct("foods", 1, 2, "safe", right), Correct("pets", 1, 2, "x", right)]
    write_correct(rows, folder)


def _make_confusions(folder: Path) -> None:
    pairs = count_pairs(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), 3)
    names = ("cat", "dog", "hen")
    write_confusions([Confusion("pets", 1, 2, m, names, *pairs) for m in ("safe", "x")], folder)


def _make_looks(folder: Path) -> None:
    weights = np.full((2, 2), 0.25, np.float32)
    said = ("dog", 0.5, "cat", 0.75)
    row = LookedAt("pets", 1, 2, "safe", "0.png", "cat", *said, weights, weights, b"RIFF")
    write_looks([row, row], folder)


def _make_results(folder: Path) -> None:
    results = [result(), result(dataset="pets", method="zero_shot", accuracy=0.5)]
    write_parquet(results, folder / "results.parquet")


def _make_summary(folder: Path) -> None:
    write_summary([result(), result(dataset="pets", method="gda")], folder)


def _make_tensors(folder: Path) -> None:
    save_file({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, folder / "model.safetensors")


def _read_weights(folder: Path) -> None:
    from safe_ray.backbones.files import check_files
    from safe_ray.specs import BackboneSpec

    check_files(BackboneSpec("tiny", "tiny", str(folder / "model.safetensors")))


READERS = (
    Reader("head", _make_head, _read_head, sign=_sign_head, share=10),
    Reader("task", _make_task, _read_task, ("sweep/**/*",), sign=sign_records, share=8),
    Reader("bank", _make_bank, _read_bank, sign=sign_records, share=8),
    Reader("usage", _make_usage, _read_usage, sign=sign_records, share=2),
    Reader("checkpoint", _make_checkpoint, _read_checkpoint, share=6),
    Reader("plan", _make_plan, _read_plan, sign=sign_records, share=2),
    Reader("config.json", _make_config, _read_config, ("outputs/it/config.json",), share=3),
    Reader("journal", _make_journal, _read_journal, ("*.log",), share=2),
    Reader("part", _make_part, _read_part, allowed=(DamagedPart,), sign=_sign_part, share=8),
    Reader("store", _make_store, _read_store, ("*/*.arrow",), sign=_sign_index, share=8),
    Reader("inventory", _make_inventory, _read_inventory, share=3),
    Reader("frozen split", _make_frozen, _read_frozen, share=3),
    Reader("correct.parquet", _make_correct, read_correct, share=3),
    Reader("confusion.parquet", _make_confusions, read_confusions, share=2),
    Reader("looks.parquet", _make_looks, read_looks, share=2),
    Reader("results.parquet", _make_results, lambda f: merge([(f, read_rows(f))]), share=3),
    Reader("summary.json", _make_summary, read_summary, share=4),
    Reader("weights", _make_tensors, _read_weights, own=False, share=2),
)
