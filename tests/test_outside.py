"""Files and contents from outside: bounded before they are allocated, plain, and never followed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from safe_ray.errors import InputError
from safe_ray.files import read_record, write_record
from safe_ray.outside import (
    DEEPEST,
    check_file,
    is_module_name,
    is_plain_name,
    parse_json,
    parse_yaml,
    read_file,
    read_json,
    read_yaml,
)

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)


def test_a_file_within_its_bound_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    assert read_file(file, 7) == b"content"
    check_file(file, 7)


@pytest.mark.parametrize("size", [8, 2**42])
def test_a_larger_file_is_refused_before_it_is_allocated(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    with file.open("wb") as stream:
        stream.truncate(size)
    for read in (read_file, check_file):
        with pytest.raises(OSError, match=f"it has {size} bytes, more than 7"):
            read(file, 7)


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused_and_blocks_nobody(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            read_file(place, 100)


def test_a_link_is_followed_only_where_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    assert read_json(link) == {}
    with pytest.raises(OSError, match="it is a symbolic link"):
        read_json(link, follow=False)


def test_a_name_that_no_file_can_have_is_an_error_of_files() -> None:
    for name in ("a\0b", "\ud800"):
        with pytest.raises(OSError, match="no file can have such a name"):
            read_file(name, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "NaN"),
        ("[1e999]", "not finite"),
        (str(2**64), "64 bits"),
        ("1" * 5000, "digits"),
        ('["\\ud800"]', "no Unicode"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting"),
    ],
)
def test_json_holds_plain_values_alone(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_of_ours_is_read_as_it_is() -> None:
    value = {"a": [1, -2.5, None, True, "grün"], "seed": 2**63}
    assert parse_json(json.dumps(value)) == value


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "values with its aliases written out"),
        ("!!python/object/apply:os.system [touch hacked]", "python/object"),
        ("&a [*a]", "nested|recursive|undefined alias|too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("a: [", "while parsing"),
        ("x" * 300_000, "characters"),
        ("a: \x00", "special characters|not allowed"),
    ],
)
def test_yaml_is_plain_and_of_the_size_that_people_write(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_yaml_with_aliases_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("first: &it [a, b]\nsecond: *it\n")
    assert read_yaml(file) == {"first": ["a", "b"], "second": ["a", "b"]}


def test_names_of_files_lead_nowhere_else() -> None:
    assert is_plain_name("candidate-00-safe")
    assert not any(map(is_plain_name, ("", ".", "..", "a/b", "/a", "..\\a", "a\0", None, 3)))


def test_names_of_modules_are_dotted_names() -> None:
    assert is_module_name("safe_ray.methods.tuned")
    assert not any(map(is_module_name, ("", ".", "a..b", "a/b", "os;x", "a-b", None)))


def test_a_record_that_is_a_link_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_record(tmp_path / "real.json", {"a": 1})
    (tmp_path / "record.json").symlink_to("real.json")
    with pytest.raises(InputError, match=r"record\.json cannot be read \(it is a symbolic link\)"):
        read_record(tmp_path / "record.json")


def test_an_error_is_one_line_that_a_terminal_does_not_obey() -> None:
    said = str(InputError("a\nb\x1b[2Jc" + "x" * 10_000))
    assert said.startswith("a b\\x1b[2Jc")
    assert len(said) < 5000
