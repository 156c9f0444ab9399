"""A registered winner predicts through MLflow alone: in a program, behind a URL, from a command."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from safe_ray.backbones.openclip import load_backbone
from safe_ray.data.images import decode_image
from safe_ray.data.prompts import render_prompts
from safe_ray.data.views import evaluation_view
from safe_ray.errors import InputError
from safe_ray.files import digest_json
from safe_ray.heads.artifact import save_head
from safe_ray.prediction.command import main as predict
from safe_ray.prediction.predictor import Predictor
from safe_ray.specs import BackboneSpec
from safe_ray.tracking.inputs import DataInput
from safe_ray.tracking.mlflow import Tracker
from safe_ray.tracking.models import Candidate, model_name
from safe_ray.tracking.packing import Package
from tests.conftest import SHAPES, draw_shape, write_backbone, write_weights
from tests.heads.test_artifact import card
from tests.mlflow_servers import end_server, free_port

NAME = model_name("tiny", "shapes", 2)
MODEL = f"models:/{NAME}@best"
TASK = "shapes-2shot-seed1"
INPUTS = (
    DataInput("shapes", "a" * 64, "train", "/data/shapes", 10, 5),
    DataInput("shapes", "b" * 64, "validation", "/data/shapes", 5, 5),
    DataInput("shapes", "c" * 64, "test", "/data/shapes", 30, 5),
)


@dataclass(frozen=True)
class Registered:
    """A winner in MLflow, whose head and backbone are gone from where they were."""

    folder: Path
    uri: str
    run_id: str
    expected: pd.DataFrame
    winner: Candidate


def write_head(folder: Path) -> tuple[Path, BackboneSpec]:
    """Return a head for a tiny backbone whose weights are a file, with the head moved a little."""
    spec = write_backbone(folder)
    spec = replace(spec, pretrained=str(write_weights(spec, folder)))
    backbone = load_backbone(spec)
    torch.manual_seed(1)
    state = {
        name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in backbone.state.items()
    }
    templates = ["a drawing of a {}."]
    save_head(
        folder / "head",
        state,
        card(
            backbone={
                "name": "tiny",
                "model": spec.model,
                "pretrained": spec.pretrained,
                "model_config": spec.model_config,
                "digest": backbone.digest,
            },
            class_names=list(SHAPES),
            templates=templates,
            prompts_digest=digest_json(render_prompts(SHAPES, templates)),
            calibration={"temperature": 1.5},
        ),
    )
    return folder / "head", spec


def contents() -> list[bytes]:
    return [draw_shape(name, 1) for name in SHAPES]


def said_by(predictor: Predictor) -> pd.DataFrame:
    pixels = torch.stack(
        [evaluation_view(decode_image(each), predictor.preprocessing) for each in contents()]
    )
    probability, place = predictor.probabilities(pixels).max(-1)
    names = [predictor.class_names[index] for index in place.tolist()]
    return pd.DataFrame({"class": names, "probability": probability.tolist()})


def finish(tracker: Tracker, winner: Candidate) -> str:
    return tracker.finish_task(
        TASK,
        {"validation_accuracy": 0.75, "test_accuracy": 0.5, "best_lr": 1e-3},
        {},
        winner.head,
        winner,
        inputs=INPUTS,
    )


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    folder = tmp_path_factory.mktemp("registered")
    made = folder / "made"
    made.mkdir()
    head, spec = write_head(made)
    expected = said_by(Predictor.load(head))
    uri = f"sqlite:///{folder}/mlflow.db"
    files = [Path(str(spec.pretrained)), Path(str(spec.model_config))]
    winner = Candidate(
        NAME,
        Package(head, {f"backbone/{file.name}": file for file in files}, 64, {"shots": "2"}),
        head,
        {"validation_accuracy": 0.75},
        tags={"sweep": "first"},
        note="what it is",
    )
    tracker = Tracker(uri, "shapes", "first")
    tracker.open()
    tracker.start_task(TASK, TASK, {"dataset": "shapes"}, {}, INPUTS[:2])
    run_id = finish(tracker, winner)
    for file in files:
        file.rename(file.with_suffix(".away"))
    return Registered(folder, uri, run_id, expected, winner)


@pytest.fixture
def tracking(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registered]:
    """Name the MLflow as a person does, for the whole process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri)
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    yield registered
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def test_it_says_of_bytes_and_of_paths_what_the_head_says(
    tracking: Registered, tmp_path: Path
) -> None:
    model = mlflow.pyfunc.load_model(MODEL)
    said = model.predict(pd.DataFrame({"image": contents()}))
    assert list(said.columns) == ["class", "probability", "error"]
    assert list(said["class"]) == list(tracking.expected["class"])
    assert list(said["probability"]) == pytest.approx(list(tracking.expected["probability"]))
    assert said["error"].isna().all()

    for number, content in enumerate(contents()):
        (tmp_path / f"{number}.png").write_bytes(content)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    paths = [str(tmp_path / f"{number}.png") for number in range(len(SHAPES))]
    paths += [str(tmp_path / "broken.png"), str(tmp_path / "missing.png")]
    of_paths = model.predict(pd.DataFrame({"path": paths}))
    assert list(of_paths["class"][: len(SHAPES)]) == list(tracking.expected["class"])
    broken, missing = of_paths["error"][len(SHAPES) :]
    assert "not an image" in broken
    assert "cannot be read" in missing
    assert of_paths["class"][len(SHAPES) :].isna().all()


def test_parameters_give_more_classes_and_another_blend(tracking: Registered) -> None:
    model = mlflow.pyfunc.load_model(MODEL)
    table = pd.DataFrame({"image": contents()})
    said = model.predict(table, params={"top": 2})
    assert list(said.columns) == ["class", "probability", "error", "class_2", "probability_2"]
    assert (said["probability"] >= said["probability_2"]).all()
    original, tuned = (model.predict(table, params={"alpha": alpha}) for alpha in (0.0, 1.0))
    assert list(original["probability"]) != pytest.approx(list(tuned["probability"]))
    for params, words in (({"top": 0}, "top is 0"), ({"alpha": 1.5}, "alpha is 1.5")):
        with pytest.raises(InputError, match=words):
            model.predict(table, params=params)
    with pytest.raises(InputError, match="neither an image"):
        model.predict(pd.DataFrame({"image": [None]}, dtype=object))


def test_the_model_is_code_and_plain_files_and_names_what_it_needs(tracking: Registered) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(MODEL))
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert names >= {
        "MLmodel",
        "model_code.py",
        "requirements.txt",
        "input_example.json",
        "artifacts/head/head.json",
        "artifacts/head/head.safetensors",
    }
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt"))]
    # What MLflow stores on the same disk is the sweep's own file.
    stored = folder / "artifacts" / "head" / "head.safetensors"
    assert stored.samefile(tracking.winner.head / "head.safetensors")
    required = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in required} >= {"safe-ray", "mlflow", "torch"}
    assert all("==" in line and "+" not in line for line in required)
    example = mlflow.models.Model.load(str(folder)).load_input_example(str(folder))
    said = mlflow.pyfunc.load_model(str(folder)).predict(example)
    assert said["class"][0] in SHAPES


def test_metrics_of_the_model_are_linked_with_the_data_that_they_were_measured_on(
    registered: Registered,
) -> None:
    client = MlflowClient(registered.uri)
    run = client.get_run(registered.run_id)
    used = {
        (each.dataset.name, each.dataset.digest, each.tags[0].value)
        for each in run.inputs.dataset_inputs
    }
    assert used == {("shapes", each.digest[:36], each.context) for each in INPUTS}
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    linked = {metric.key: metric.dataset_digest for metric in model.metrics}
    assert linked == {"validation_accuracy": "b" * 36, "test_accuracy": "c" * 36}
    version = client.get_model_version_by_alias(NAME, "best")
    assert version.run_id == registered.run_id
    assert version.tags["sweep"] == "first"
    assert version.description == "what it is"


def test_recorded_again_it_is_the_same_model_even_if_it_was_half_made(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(registered.folder / "mlflow.db", tmp_path / "mlflow.db")
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "shapes", "second")
    tracker.open()
    tracker.start_task(TASK, TASK, {}, {})
    # The backbone's files are gone: what could not be packed would fail.
    package = Package(registered.winner.head)
    winner = replace(registered.winner, package=package)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "finalize_logged_model", die)
        with pytest.raises(KeyboardInterrupt):
            finish(tracker, winner)
    client = MlflowClient(tracker.uri)
    for _ in range(2):
        run_id = finish(tracker, winner)
        (model,) = client.get_run(run_id).outputs.model_outputs
        assert client.get_logged_model(model.model_id).status == "READY"
    of_run = f"source_run_id = '{run_id}'"
    assert len(client.search_logged_models([tracker.experiment_id], of_run)) == 1
    versions = client.search_model_versions(f"name = '{NAME}'")
    assert len([each for each in versions if each.run_id == run_id]) == 1


def test_the_command_takes_a_registered_model(tracking: Registered, tmp_path: Path) -> None:
    for number, content in enumerate(contents()):
        (tmp_path / f"{number}.png").write_bytes(content)
    out = tmp_path / "said.csv"
    assert predict([MODEL, str(tmp_path), "--out", str(out)]) == 0
    with out.open() as file:
        said = [row["class"] for row in csv.DictReader(file)]
    assert said == list(tracking.expected["class"])


def ask(port: int, body: object) -> tuple[int, str]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


_GUARDED = """
import socket, sys
own = socket.socket.connect
def connect(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        sys.stderr.write(f"REACHED FOR {address}")
    return own(self, address)
socket.socket.connect = connect
import atexit, threading, time
def watch():
    while "ray" not in sys.modules:
        time.sleep(0.05)
    sys.stderr.write("IMPORTED RAY")
threading.Thread(target=watch, daemon=True).start()
"""


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_it_is_served_without_a_network_and_without_ray(
    registered: Registered, tmp_path: Path
) -> None:
    port = free_port()
    # Python runs this file in every process that serves.
    (tmp_path / "sitecustomize.py").write_text(_GUARDED)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")]), *sys.path]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", MODEL, "--port", str(port), "--host", "127.0.0.1"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": registered.uri,
                "PYTHONPATH": os.pathsep.join(paths),
                # MLflow starts uvicorn, by a shell.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
        rows = [[base64.b64encode(each).decode()] for each in [*contents(), b"nothing"]]
        split = {"columns": ["image"], "data": rows}
        status, text = ask(port, {"dataframe_split": split})
        assert status == 200, text
        said = json.loads(text)["predictions"]
        assert [row["class"] for row in said[:-1]] == list(registered.expected["class"])
        assert "not an image" in said[-1]["error"]
        top = ask(port, {"dataframe_split": split, "params": {"top": 3}})
        assert "class_3" in json.loads(top[1])["predictions"][0]
        refused, words = ask(
            port, {"dataframe_split": {"columns": ["path"], "data": [["/etc/passwd"]]}}
        )
        assert refused >= 400
        assert "A served model takes no path" in words
    finally:
        end_server(process)
    told = (tmp_path / "log").read_text()
    assert "REACHED FOR" not in told
    assert "IMPORTED RAY" not in told
