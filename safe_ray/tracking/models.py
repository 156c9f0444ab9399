"""Winners as models: packed, logged beside the runs, and registered under the name of their task.

A registered model is a backbone, a data set and a number of shots. Every winner of such a task is a
version of it, whatever its sweep, seed and method; none is deleted, and the alias `best` moves only
to what does better on validation.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_ray.specs import shots_in_name
from safe_ray.tracking.experiments import NOTE
from safe_ray.tracking.heads import (
    folder_digest,
    link_files,
    local_folder,
    mend_head,
    store_head,
)
from safe_ray.tracking.packing import Package, pack
from safe_ray.tracking.runs import HEAD_DIGEST, RUN, Known, pages, quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

BEST = "best"
_VERSIONS_A_PAGE = 100
_HEADS = "heads"


@dataclass(frozen=True)
class Candidate:
    """A winner that is to be registered.

    Attributes:
        name: of the registered model.
        package: what a model is packed of; None registers the head's files alone.
        head: the folder of the head.
        better: which versions are better, the figures compared in this order, all larger is better;
            each is the tag of a version.
        tags: of the version.
        about: tags of the registered model, when it is made.
        note: what MLflow's page of the version says.
    """

    name: str
    package: Package | None
    head: Path
    better: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def model_name(backbone: str, dataset: str, shots: int) -> str:
    """Return the name of a task's registered model, without what a `models:/` URI cannot hold."""
    name = f"safe_ray-{backbone}-{dataset}-{shots_in_name(shots)}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")


def log_model(
    client: MlflowClient, experiment_id: str, known: Known, candidate: Candidate
) -> str | None:
    """Return MLflow's id of the winner's model, which is logged unless the run has it already.

    None if nothing is packed.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    if candidate.package is None:
        return None
    digest = folder_digest(candidate.head)
    model = _logged(client, experiment_id, known.run_id, digest)
    if model is None:
        model = client.create_logged_model(
            experiment_id,
            name=candidate.name,
            source_run_id=known.run_id,
            tags={**candidate.tags, HEAD_DIGEST: digest, RUN: known.run_id, NOTE: candidate.note},
            params={key: str(value) for key, value in candidate.package.metadata.items()},
            model_type="classifier",
        )
    if model.status != LoggedModelStatus.READY:
        _upload(client, model, candidate.package, known.run_id)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = client.get_run(known.run_id).outputs
    there = {each.model_id for each in outputs.model_outputs} if outputs is not None else set()
    if model.model_id not in there:
        client.log_outputs(known.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def register(client: MlflowClient, known: Known, candidate: Candidate, model_id: str | None) -> str:
    """Store a winner's head with its run and register it, unless the run has done so before.

    Returns:
        The version.
    """
    digest = folder_digest(candidate.head)
    versions = _versions(client, candidate)
    own = [
        each
        for each in versions
        if each.tags.get(RUN) == known.run_id and each.tags.get(HEAD_DIGEST) == digest
    ]
    figures = {key: repr(float(value)) for key, value in candidate.better.items()}
    if own:
        version = str(own[0].version)
        mend_head(known, candidate.head)
    else:
        store_head(client, known, candidate.head)
        version = str(
            client.create_model_version(
                candidate.name,
                source=_source(client, known, candidate, digest, model_id),
                run_id=known.run_id,
                tags={**candidate.tags, **figures, RUN: known.run_id, HEAD_DIGEST: digest},
                description=candidate.note or None,
                await_creation_for=0,
                model_id=model_id,
            ).version
        )
    best = client.get_registered_model(candidate.name).aliases.get(BEST)
    tags = next((each.tags for each in versions if str(each.version) == str(best)), None)
    if str(best) != version and (tags is None or _is_better(candidate.better, tags)):
        client.set_registered_model_alias(candidate.name, BEST, version)
    return version


def _is_better(figures: Mapping[str, float], tags: Mapping[str, str]) -> bool:
    """Whether figures are better than those that a version's tags hold, compared in their order."""
    for key, value in figures.items():
        try:
            other = float(tags[key])
        except (KeyError, ValueError):
            # Registered by somebody else, who has not said how good it is.
            return True
        if value != other and not math.isnan(value):
            return value > other or math.isnan(other)
    return False


def _source(
    client: MlflowClient, known: Known, candidate: Candidate, digest: str, model_id: str | None
) -> str:
    """Return where the files of a version lie, which no later winner takes away."""
    if model_id is None:
        place = f"{_HEADS}/{digest}"
        store_head(client, known, candidate.head, place)
        return f"runs:/{known.run_id}/{place}"
    # A `models:/` source would be looked up by the address of the whole process.
    return str(client.get_logged_model(model_id).artifact_location)


def _logged(
    client: MlflowClient, experiment_id: str, run_id: str, digest: str
) -> LoggedModel | None:
    """Return the model that a run has logged of a head, a whole one if there is one."""
    found = client.search_logged_models(
        [experiment_id],
        f"tags.`{HEAD_DIGEST}` = {quoted(digest)} AND source_run_id = {quoted(run_id)}",
    )
    by_status = sorted(found, key=lambda each: str(each.status) != "READY")
    return by_status[0] if by_status else None


def _upload(client: MlflowClient, model: Any, package: Package, run_id: str) -> None:
    """Pack a model and put it where its artifacts belong, by links if that is on this disk."""
    place = local_folder(model.artifact_location, model.model_id)
    with tempfile.TemporaryDirectory(prefix="safe_ray-model-") as temporary:
        packed, scratch = Path(temporary, "model"), Path(temporary, "scratch")
        pack(package, packed, scratch, model.model_id, run_id)
        if place is None:
            client.log_model_artifacts(model.model_id, str(packed))
            return
        link_files(packed, place)
    # What MLflow has copied is replaced by links to the head's own files.
    link_files(package.head, place / "artifacts" / "head")


def _versions(client: MlflowClient, candidate: Candidate) -> list[Any]:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            candidate.name, tags=dict(candidate.about), description=_ABOUT
        )
        return []
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions: list[Any] = []
    token: str | None = None
    for _ in pages():
        page = client.search_model_versions(
            f"name = {quoted(candidate.name)}", max_results=_VERSIONS_A_PAGE, page_token=token
        )
        versions.extend(page)
        token = page.token
        if not token:
            break
    return versions


_ABOUT = """\
The winners of one task, whichever sweep, seed and method they come from. `best` is the one that did
best on its validation images: it moves only to what does better, and no version is deleted.
"""
