"""The main job from the command line to the summary: real images, real Ray, real MLflow."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient, artifacts
from open_clip.factory import add_model_config
from PIL import Image
from safetensors.torch import load_file, save_file

from safe_ray.comparison.command import main as compare
from safe_ray.config.sweep import EXPERIMENT
from safe_ray.prediction.command import main as predict
from safe_ray.report.confusion import read_confusions
from safe_ray.report.looks import read_looks
from safe_ray.specs import BackboneSpec, DatasetSpec
from safe_ray.sweep.page import make_page
from safe_ray.tracking.experiments import systems_of
from tests.conftest import SOME_SHAPES, TINY_MODEL
from tests.report.html.pages import check_accessible, read
from tests.sweep.commands import command, finished_banks, run, start, summary_of

pytestmark = pytest.mark.slow


def test_it_prints_a_table_and_where_everything_is(finished: tuple[Path, str]) -> None:
    storage, printed = finished
    assert "zero-shot" in printed
    assert "shapes" in printed
    assert f"mlflow ui --backend-store-uri sqlite:///{storage}/mlflow.db" in printed
    for name in ("summary.json", "results.parquet", "results.md", "optuna-journal.log"):
        assert (storage / "outputs" / "trial" / name).exists()


def last_line(printed: str, name: str) -> str:
    [line] = [line for line in printed.splitlines() if line.split()[:1] == [name]]
    return line.strip().removeprefix(name).strip()


def test_it_ends_with_a_page_of_its_results(finished: tuple[Path, str]) -> None:
    storage, printed = finished
    sweep = storage / "outputs" / "trial"
    assert last_line(printed, "report") == str(sweep / "report.html")
    text = (sweep / "report.html").read_text()
    page = read(text)
    check_accessible(page)
    assert len(text) < 500_000
    shown = [row.all("td") for row in page.all("tr")]
    cells = {tuple(cell.text for cell in row) for row in shown}
    for entry in summary_of(storage):
        for name in ("zero_shot", "safe"):
            figures = (entry["test"], entry["test_mean_per_class"], entry["test_ece"])
            assert tuple(f"{100 * figure[name]:.1f}" for figure in figures) in cells
    classes = ["figures", "matrix", "looks"]
    assert [text.count(f'class="{name}"') for name in classes] == [2, 2, 2]
    # Six images of each of five classes, of which four each fit.
    assert text.count('<figure class="look">') == 2 * 5 * 4
    assert "no picture" not in text


def test_the_page_counts_what_the_summary_says(finished: tuple[Path, str]) -> None:
    storage, _ = finished
    found = {(c.seed, c.method): c for c in read_confusions(storage / "outputs" / "trial")}
    for entry in summary_of(storage):
        for name in ("zero_shot", "safe"):
            counted = found[entry["seed"], name]
            assert int(counted.count.sum()) == entry["test_samples"]
            assert int(counted.right.sum()) / entry["test_samples"] == entry["test"][name]
    for one in read_looks(storage / "outputs" / "trial"):
        assert one.method == "safe"
        assert one.path.partition("/")[0].replace("_", " ") == one.label
        assert float(one.original.sum()) == pytest.approx(1, abs=1e-5)
        assert float(one.tuned.sum()) == pytest.approx(1, abs=1e-5)


def test_the_page_is_made_again_as_it_was(finished: tuple[Path, str], tmp_path: Path) -> None:
    storage, _ = finished
    sweep = storage / "outputs" / "trial"
    before = (sweep / "report.html").read_text()
    assert make_page(sweep, tmp_path / "again.html").read_text() == before
    assert compare([str(sweep), "--out", str(tmp_path), "--html", str(tmp_path / "b.html")]) == 0
    again = read((tmp_path / "b.html").read_text())
    check_accessible(again)
    assert "Comparison of methods" in [heading.text for heading in again.all("h2")]


def test_the_command_that_it_ends_with_predicts(finished: tuple[Path, str]) -> None:
    _, printed = finished
    done = subprocess.run(
        last_line(printed, "predict"),
        shell=True,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    header, row = done.stdout.splitlines()
    assert header == "path,class,probability,error"
    assert row.split(",")[0].endswith("example.png")


def test_predicting_says_what_the_test_report_says(
    finished: tuple[Path, str],
    tmp_path: Path,
    tiny_dataset: DatasetSpec,
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage, _ = finished
    for row in pq.read_table(tiny_dataset.path).to_pylist():
        if row["split"] == "test":
            file = tmp_path / "photos" / row["class_name"] / Path(row["path"]).name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(row["image"])
    (tmp_path / "photos" / "broken.png").write_bytes(b"nothing")
    out = tmp_path / "said.csv"
    for entry in summary_of(storage):
        task = f"{entry['dataset']}-{entry['shots']}shot-seed{entry['seed']}"
        sweep = storage / "outputs" / "trial"
        named = [str(sweep / task), str(tmp_path / "photos"), "--out", str(out), "--batch", "7"]
        assert predict([*named, "--top", "2"]) == 0
        said = json.loads(out.with_suffix(".report.json").read_text())
        assert said["accuracy"] == pytest.approx(entry["test"]["safe"])
        assert said["mean_per_class"] == pytest.approx(entry["test_mean_per_class"]["safe"])
        assert said["calibration_error"]["raw"] == pytest.approx(
            entry["test_ece"]["safe"], abs=1e-4
        )
        card = json.loads((sweep / entry["head"] / "head.json").read_text())
        assert 0.05 <= card["calibration"]["temperature"] <= 20
        assert predict([*named, "--alpha", "0"]) == 0
        original = json.loads(out.with_suffix(".report.json").read_text())
        assert original["accuracy"] == pytest.approx(entry["test"]["zero_shot"])
    rows = out.read_text().splitlines()
    assert rows[0] == "path,class,probability,error"
    assert sum(",not an image" in row or ',"not an image' in row for row in rows) == 1
    assert len(rows) == 1 + 30 + 1

    capsys.readouterr()
    assert predict([str(storage / "outputs" / "trial"), str(tmp_path)]) == 2
    assert "has 2 tasks: name one, such as" in capsys.readouterr().err


def test_on_a_terminal_it_shows_bars_and_prints_the_same_table(
    finished: tuple[Path, str], tmp_path: Path, tiny_config_dir: Path, weights: Path
) -> None:
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        command(tiny_config_dir, weights, tmp_path),
        stdout=subprocess.PIPE,
        stderr=side,
        env={**os.environ, "TERM": "xterm-256color"},
        text=True,
    )
    os.close(side)
    shown = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert process.stdout is not None
    printed = process.stdout.read()
    assert process.wait(60) == 0, shown.decode()[-3000:]
    assert "searching" in shown.decode()
    assert "━" in shown.decode()
    _, table = finished
    assert printed.partition("Done in")[0] == table.partition("Done in")[0]


def test_every_head_is_a_run_with_its_curves_and_its_artifact(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, _ = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{storage}/mlflow.db")
    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    kinds = [r.data.tags["safe_ray.kind"] for r in runs]
    assert (kinds.count("task"), kinds.count("candidate")) == (2, 12)
    for child in (r for r in runs if r.data.tags["safe_ray.kind"] == "candidate"):
        assert child.info.status == "FINISHED"
        losses = client.get_metric_history(child.info.run_id, "train_loss")
        assert len(losses) == int(child.data.params["epochs"])
        for metric in ("accuracy", "mean_per_class"):
            curve = f"validation_{metric}_over_alpha"
            assert len(client.get_metric_history(child.info.run_id, curve)) == 101
        files = {f.path for f in client.list_artifacts(child.info.run_id, "head")}
        assert files == {"head/head.safetensors", "head/head.json"}
    systems = client.get_experiment_by_name(systems_of(EXPERIMENT))
    [system] = client.search_runs([systems.experiment_id])
    assert [f.path for f in client.list_artifacts(system.info.run_id)] == ["report.html"]
    for entry in summary_of(storage):
        task = client.get_run(entry["mlflow_run_id"])
        metrics = task.data.metrics
        assert metrics["test_safe"] == entry["test"]["safe"]
        assert metrics["test_safe_mean_per_class"] == entry["test_mean_per_class"]["safe"]
        target = entry["targets"]["some_shapes"]["mean_per_class"]["zero_shot"]
        assert metrics["test_zero_shot_mean_per_class/some_shapes"] == target
        for name, value in entry["validation"].items():
            assert metrics[f"validation_{name}"] == value
    # Both seeds are versions of one task's model, and the better of them is the best.
    (model,) = client.search_registered_models()
    assert model.name == "safe_ray-tiny-shapes-2shot"
    versions = client.search_model_versions(f"name = '{model.name}'")
    said = {int(v.version): float(v.tags["validation_accuracy"]) for v in versions}
    best = client.get_model_version_by_alias(model.name, "best")
    assert sorted(said) == [1, 2]
    assert said[int(best.version)] == max(said.values())
    folder = Path(artifacts.download_artifacts(f"models:/{model.name}@best"))
    kept = {file.relative_to(folder).as_posix() for file in (folder / "artifacts").rglob("*.*")}
    assert kept == {
        "artifacts/head/backbone/tiny.safetensors",
        f"artifacts/head/backbone/{TINY_MODEL}.json",
        "artifacts/head/classifier.safetensors",
        "artifacts/head/head.json",
        "artifacts/head/head.safetensors",
    }


def test_runs_tell_when_and_by_whom_things_were_done(finished: tuple[Path, str]) -> None:
    storage, _ = finished
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_id = {each.info.run_id: each for each in runs}
    for each in runs:
        tags, info = each.data.tags, each.info
        assert tags["mlflow.source.name"] == "safe_ray.tune"
        assert tags["mlflow.user"]
        assert tags["sweep"] == "trial"
        if tags["safe_ray.kind"] != "candidate":
            assert "python -m safe_ray.predict models:/" in tags["mlflow.note.content"]
            assert "sweep=trial" in tags["mlflow.note.content"]
            contexts = [data.tags[0].value for data in each.inputs.dataset_inputs]
            assert sorted(contexts) == ["test", "train", "validation"]
            continue
        parent = by_id[tags["mlflow.parentRunId"]].info
        outcome = json.loads(
            (storage / "outputs/trial/banks" / tags["study"].removesuffix("-safe") / "safe")
            .joinpath(f"bank-{tags['bank']}", "outcome.json")
            .read_text()
        )
        assert info.start_time == round(1000 * outcome["began"])
        assert info.end_time == round(1000 * outcome["ended"])
        losses = client.get_metric_history(info.run_id, "train_loss")
        times = [point.timestamp for point in sorted(losses, key=lambda point: point.step)]
        assert times == [round(1000 * time) for time in outcome["epochs"]][: len(times)]
        assert info.start_time <= times[0] <= times[-1] <= info.end_time <= parent.end_time


def test_a_head_in_plain_open_clip_gives_the_summarys_accuracy(
    finished: tuple[Path, str],
    tiny_backbone: BackboneSpec,
    tiny_dataset: DatasetSpec,
    weights: Path,
) -> None:
    """Nothing of safe_ray is used here but the files that it wrote: equal to the sample."""
    storage, _ = finished
    add_model_config(tiny_backbone.model_config)
    rows = [row for row in pq.read_table(tiny_dataset.path).to_pylist() if row["split"] == "test"]
    for entry in summary_of(storage):
        folder = storage / "outputs" / "trial" / entry["head"]
        card = json.loads((folder / "head.json").read_text())
        model, _, preprocess = open_clip.create_model_and_transforms(
            TINY_MODEL, pretrained=str(weights)
        )
        model.eval()
        images = torch.stack([preprocess(Image.open(io.BytesIO(row["image"]))) for row in rows])
        labels = torch.tensor([card["class_names"].index(row["class_name"]) for row in rows])
        tokenizer = open_clip.get_tokenizer(TINY_MODEL)
        with torch.no_grad():
            prompts = [[t.format(c) for t in card["templates"]] for c in card["class_names"]]
            text = torch.stack(
                [model.encode_text(tokenizer(p), normalize=True).mean(0) for p in prompts]
            )
            text = torch.nn.functional.normalize(text, dim=-1)
            # The blend, in five lines.
            original = model.encode_image(images)
            model.visual.attnpool.load_state_dict(load_file(folder / "head.safetensors"))
            tuned = model.encode_image(images)
            blended = card["alpha"] * tuned + (1 - card["alpha"]) * original
            logits = card["logit_scale"] * torch.nn.functional.normalize(blended, dim=-1) @ text.T
        right = int((logits.argmax(-1) == labels).sum())
        assert right == round(entry["test"]["safe"] * entry["test_samples"])
        of_each = [(logits.argmax(-1) == labels)[labels == c].double().mean() for c in range(5)]
        per_class = entry["test_mean_per_class"]["safe"]
        assert per_class == pytest.approx(float(torch.stack(of_each).mean()))
        zero_shot = (torch.nn.functional.normalize(original, dim=-1) @ text.T).argmax(-1)
        assert int((zero_shot == labels).sum()) == round(
            entry["test"]["zero_shot"] * entry["test_samples"]
        )
        # The target's heads choose among its own three classes only.
        among = [card["class_names"].index(name) for name in SOME_SHAPES]
        of_target = torch.tensor([int(label) in among for label in labels])
        chosen = torch.tensor(among)[logits[of_target][:, among].argmax(-1)]
        target = entry["targets"]["some_shapes"]
        assert target["samples"] == int(of_target.sum())
        assert int((chosen == labels[of_target]).sum()) == round(
            target["accuracy"]["safe"] * target["samples"]
        )


SEALED = """
import sys
from safe_ray.cli import main
from safe_ray.sweep import begin
from safe_ray.sweep import run as sweep
from safe_ray.tune import COMMAND

searched = False

class Sealed:
    def __getattribute__(self, name):
        raise AssertionError(f"a test split was asked for {name}")

class SealedUntilSearched(dict):
    def __getitem__(self, name):
        assert searched, f"the test images of {name} were looked at before the search had ended"
        return super().__getitem__(name)

    def _all(self, *_):
        assert searched, "all test images were looked at before the search had ended"
        return super()

    def values(self): return self._all().values()
    def items(self): return self._all().items()
    def __iter__(self): return self._all().__iter__()

check_images, test = begin.check_images, sweep.run_final_test

def check_then_seal(config, manifests, *arguments):
    images = check_images(config, manifests, *arguments)
    for manifest in manifests.values():
        manifest.tables["test"] = Sealed()
    object.__setattr__(images, "tests", SealedUntilSearched(images.tests))
    return images

def unseal_then_test(*arguments):
    global searched
    searched = True
    return test(*arguments)

begin.check_images, sweep.run_final_test = check_then_seal, unseal_then_test
sys.exit(main(COMMAND))
"""


def test_nothing_that_chooses_touches_a_test_split(
    finished: tuple[Path, str], tmp_path: Path, tiny_config_dir: Path, weights: Path
) -> None:
    """After the check for bad images, test splits raise until the search has ended."""
    storage, _ = finished
    arguments = command(tiny_config_dir, weights, tmp_path, "tasks.seeds=[1]")
    done = run([sys.executable, "-c", SEALED, *arguments[3:]])
    assert done.returncode == 0, done.stderr[-3000:]
    for key in ("best", "validation", "test"):
        assert summary_of(tmp_path)[0][key] == summary_of(storage)[0][key]


def test_the_same_command_again_repeats_nothing(
    finished: tuple[Path, str], tiny_config_dir: Path, weights: Path
) -> None:
    storage, _ = finished
    before = summary_of(storage)
    again = run(command(tiny_config_dir, weights, storage))
    assert again.returncode == 0, again.stderr[-3000:]
    assert summary_of(storage) == before
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    candidates = [r for r in runs if r.data.tags["safe_ray.kind"] == "candidate"]
    assert len(candidates) == 12


def test_another_configuration_under_the_same_name_is_refused(
    finished: tuple[Path, str], tiny_config_dir: Path, weights: Path
) -> None:
    storage, _ = finished
    refused = run(command(tiny_config_dir, weights, storage, "training.batch_size=7"))
    assert refused.returncode == 2
    assert "training.batch_size was 8, is 7" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.timeout(900)
def test_a_name_is_taken_by_what_runs_and_goes_on_with_more(
    tmp_path: Path, tiny_config_dir: Path, weights: Path
) -> None:
    settings = ("tasks.seeds=[1]", "evaluation.targets=[]", "search.candidates=3")
    unfit = tmp_path / "unfit.safetensors"
    save_file({"weight": torch.zeros(1)}, unfit)
    refused = run(
        command(tiny_config_dir, weights, tmp_path, *settings, f"backbone.pretrained={unfit}")
    )
    assert refused.returncode == 2
    assert "does not fit the model" in refused.stderr
    assert not (tmp_path / "outputs").exists()

    corrected = run(command(tiny_config_dir, weights, tmp_path, *settings))
    assert corrected.returncode == 0, corrected.stderr[-3000:]
    (small,) = summary_of(tmp_path)
    assert small["targets"] == {}
    kept = finished_banks(tmp_path)
    assert len(kept) == 2

    more = ("tasks.seeds=[1]", "data.skip_bad=true", "tracking.heads=best", "search.candidates=7")
    grown = run(command(tiny_config_dir, weights, tmp_path, *more))
    assert grown.returncode == 0, grown.stderr[-3000:]
    assert "Going on with sweep trial: 1 task, 7 candidates each (3 before)" in grown.stderr
    assert kept.items() <= finished_banks(tmp_path).items()
    sizes = [
        len(json.loads(file.read_text())["candidates"]) for file in sorted(finished_banks(tmp_path))
    ]
    assert sizes == [2, 1, 2, 2]
    (large,) = summary_of(tmp_path)
    assert set(large["targets"]) == {"some_shapes"}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    latest = client.get_run(large["mlflow_run_id"]).data.metrics
    assert latest["test_safe"] == large["test"]["safe"]
    assert latest["best_lr"] == large["best"]["lr"]

    anew = run(command(tiny_config_dir, weights, tmp_path, *settings, "--restart", "--yes"))
    assert anew.returncode == 0, anew.stderr[-3000:]
    (again,) = summary_of(tmp_path)
    assert again["mlflow_run_id"] != small["mlflow_run_id"]
    assert {**again, "mlflow_run_id": ""} == {**small, "mlflow_run_id": ""}


@pytest.mark.timeout(900)
def test_a_sweep_interrupted_then_killed_ends_with_the_same_summary(
    finished: tuple[Path, str], tmp_path: Path, tiny_config_dir: Path, weights: Path
) -> None:
    storage, _ = finished
    arguments = command(tiny_config_dir, weights, tmp_path)

    interrupted = start(arguments, tmp_path, until=1)
    interrupted.send_signal(signal.SIGINT)
    _, told = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130, told
    assert "sweep=trial" in told
    assert "Traceback" not in told
    kept = finished_banks(tmp_path)
    assert 1 <= len(kept) < 6

    killed = start(arguments, tmp_path, until=len(kept) + 1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept |= finished_banks(tmp_path)
    assert len(kept) < 6

    resumed = run(arguments)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Going on with" in resumed.stderr
    assert kept.items() <= finished_banks(tmp_path).items()

    def comparable(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in e.items() if k != "mlflow_run_id"} for e in summary_of(folder)]

    assert comparable(tmp_path) == comparable(storage)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    kinds = [r.data.tags["safe_ray.kind"] for r in runs]
    assert (kinds.count("task"), kinds.count("candidate")) == (2, 12)


def test_two_ddp_workers_a_trial_find_the_same_heads(
    finished: tuple[Path, str], tmp_path: Path, tiny_config_dir: Path, weights: Path
) -> None:
    storage, _ = finished
    overrides = ("training.workers=2", "search.candidates=2", "tasks.seeds=[1]")
    done = run(command(tiny_config_dir, weights, tmp_path, *overrides))
    assert done.returncode == 0, done.stderr[-3000:]
    first = Path("outputs/trial/banks/shapes-2shot-seed1/safe/bank-000/outcome.json")
    one, two = (json.loads((folder / first).read_text()) for folder in (storage, tmp_path))
    for alone, shared in zip(one["candidates"], two["candidates"], strict=True):
        assert shared["values"] == alone["values"]
        assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-3)
