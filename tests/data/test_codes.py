"""Codes are told from words, and said only where most names are such."""

from __future__ import annotations

import pytest

from safe_ray.data.codes import codes_among, looks_like_code


@pytest.mark.parametrize(
    "name",
    [
        "n01440764",
        "c12",
        "0",
        "007",
        "IMG_A",
        "class_3",
        "Label-2",
        "k",
        "id 7",
        "3fa94c01",
        "3-12",
    ],
)
def test_codes(name: str) -> None:
    assert looks_like_code(name)


@pytest.mark.parametrize(
    "name",
    ["cat", "red circle", "T-shirt", "BMW", "Boeing 737", "defaced", "ox", "class act", "日本"],
)
def test_words(name: str) -> None:
    assert not looks_like_code(name)


def test_a_few_codes_among_words_are_names() -> None:
    assert codes_among(["cat", "dog", "mp3"]) == []
    assert codes_among(["cat", "c1", "c2"]) == ["c1", "c2"]
    assert codes_among([]) == []
