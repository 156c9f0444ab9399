"""What MLflow's pages say of a task."""

from __future__ import annotations

from urllib.parse import unquote

from safe_ray.specs import ALL_SHOTS
from safe_ray.sweep.notes import task_note
from tests.report.results import result


def test_candidates_of_a_task_are_found_by_the_shots_of_their_tags() -> None:
    for shots, tag in ((4, "4"), (ALL_SHOTS, "all")):
        note = unquote(task_note(result(shots=shots), "first", "", "7", None, None))
        assert f'tags.shots = "{tag}" AND tags.seed = "1"' in note
