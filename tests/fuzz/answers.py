"""The answers of a tracking server, which a sweep meets as it meets any file."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safe_ray.tracking.mlflow import Tracker
from safe_ray.tracking.models import Candidate
from tests.fuzz.reader import Reader

TASK = "shapes-2shot-seed1"
RUN = "0123456789abcdef0123456789abcdef"
_ENDINGS = {
    "experiments/search": "experiments",
    "experiments/get-by-name": "experiment",
    "runs/search": "runs",
    "runs/create": "run",
    "runs/get": "run",
    "runs/update": "updated",
    "registered-models/create": "model",
    "model-versions/search": "versions",
    "model-versions/create": "version",
}
_serving: dict[str, Any] = {"folder": None, "address": ""}


class _Answers(BaseHTTPRequestHandler):
    """Every question is answered with the file of its kind, asked of once more or not."""

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        place = self.path.partition("?")[0].partition("/mlflow/")[2]
        file = Path(_serving["folder"], f"{_ENDINGS.get(place, 'nothing')}.json")
        content = file.read_bytes() if file.is_file() and file.stat().st_size < 2**24 else b"{}"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _answer

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def _address() -> str:
    if not _serving["address"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _serving["address"] = f"http://127.0.0.1:{server.server_port}"
    return _serving["address"]


def _make(folder: Path) -> None:
    """Write what MLflow's own protocol makes of a sweep's experiment, runs and models."""
    from mlflow.protos import model_registry_pb2 as registry
    from mlflow.protos import service_pb2 as service
    from mlflow.utils.proto_json_utils import message_to_json

    experiment = service.Experiment(
        experiment_id="1",
        name="it",
        lifecycle_stage="active",
        artifact_location="mlflow-artifacts:/1",
    )
    tags = {
        "safe_ray.task": TASK,
        "safe_ray.kind": "task",
        "safe_ray.sweep": "it",
        "safe_ray.candidate": "one",
    }
    run = service.Run(
        info=service.RunInfo(
            run_id=RUN,
            experiment_id="1",
            status=service.RUNNING,
            start_time=1_700_000_000_000,
            lifecycle_stage="active",
            artifact_uri=f"file:///FOLDER/artifacts/1/{RUN}/artifacts",
        ),
        data=service.RunData(
            tags=[service.RunTag(key=key, value=value) for key, value in tags.items()],
            params=[service.Param(key="lr", value="0.1")],
        ),
    )
    version = registry.ModelVersion(
        name="m",
        version="1",
        run_id=RUN,
        tags=[registry.ModelVersionTag(key="safe_ray.run", value=RUN)],
    )
    answers: Mapping[str, Any] = {
        "experiments": service.SearchExperiments.Response(experiments=[experiment]),
        "experiment": service.GetExperimentByName.Response(experiment=experiment),
        "runs": service.SearchRuns.Response(runs=[run]),
        "run": service.CreateRun.Response(run=run),
        "updated": service.UpdateRun.Response(run_info=run.info),
        "model": registry.CreateRegisteredModel.Response(
            registered_model=registry.RegisteredModel(name="m")
        ),
        "versions": registry.SearchModelVersions.Response(model_versions=[version]),
        "version": registry.CreateModelVersion.Response(model_version=version),
        "nothing": service.LogBatch.Response(),
    }
    for name, answer in answers.items():
        (folder / f"{name}.json").write_text(message_to_json(answer))
    (folder / "head").mkdir()
    (folder / "head" / "head.json").write_text("{}")
    (folder / "head" / "head.safetensors").write_bytes(b"weights")


def _read(folder: Path) -> None:
    os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT="2")
    for file in folder.glob("*.json"):
        if file.is_file() and file.stat().st_size < 2**24:
            content = file.read_bytes()
            file.write_bytes(content.replace(b"/FOLDER", os.fsencode(folder)))
    _serving["folder"] = folder
    tracker = Tracker(_address(), "it", "it")
    tracker.open()
    tracker.log_system({"torch": "2"})
    tracker.start_task(TASK, TASK, {"shots": "2"}, {"views": 3})
    head = folder / "head"
    tracker.log_candidate(TASK, "two", "two", {}, {"lr": 1}, {"a": 0.5}, {"b": [0.1]}, head)
    tracker.finish_task(TASK, {"test": 0.5}, {"lr": 1}, head, Candidate("m", None, head))
    tracker.close()


READERS = (Reader("mlflow", _make, _read, ("*.json",), own=False, share=2),)
