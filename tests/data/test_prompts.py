from __future__ import annotations

import pytest

from safe_ray.data.prompts import canonical_class_name, check_templates, render_prompts
from safe_ray.errors import InputError


def test_underscores_become_spaces_and_every_class_gets_every_template():
    assert render_prompts(["apply_lipstick", "cat"], ["a photo of {}.", "{} texture."]) == [
        ["a photo of apply lipstick.", "apply lipstick texture."],
        ["a photo of cat.", "cat texture."],
    ]


def test_braces_and_percent_signs_in_class_names_are_text():
    assert render_prompts(["{0} 5%"], ["a {}."]) == [["a {0} 5%."]]


@pytest.mark.parametrize("template", ["a photo.", "{} or {}", "{name}", ""])
def test_a_template_has_exactly_one_slot(template):
    with pytest.raises(InputError, match="exactly one"):
        check_templates(["a {}.", template], "data set 'x'")


@pytest.mark.parametrize("templates", [(), [], "a photo of a {}."])
def test_templates_are_a_list_with_at_least_one(templates):
    with pytest.raises(InputError, match="at least one"):
        check_templates(templates, "data set 'x'")


def test_names_that_the_tokenizer_cannot_tell_apart_are_one():
    names = ["Sea_Lion", "sea lion", " sea  lion "]
    assert {canonical_class_name(name) for name in names} == {"sea lion"}
