"""A method is found by its module, and what is wrong with it is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_ray.errors import InputError
from safe_ray.methods.base import make_method


def test_a_method_of_ones_own_is_a_module_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_method_of_my_own.py").write_text(
        "class Mine:\n    def __init__(self, strength=1.0):\n        self.strength = strength\n"
        "METHOD = Mine\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_method("a_method_of_my_own", {"strength": 2.0}).strength == 2.0


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        ("no_such_module_here", {}, "cannot be imported"),
        ("json", {}, "makes no method"),
        ("safe_ray.methods.tuned", {"blend": "colours"}, "blend is 'colours'"),
        ("safe_ray.methods.tuned", {"strength": 1}, "refuses its options"),
    ],
)
def test_what_is_no_method_is_refused(module: str, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_method(module, options)
