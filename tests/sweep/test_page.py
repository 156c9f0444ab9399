"""The page of a sweep: what is not there is left out, and damage costs a sentence."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from safe_ray.data.views import Preprocessing
from safe_ray.errors import InputError
from safe_ray.report.confusion import CONFUSION_FILE, write_confusions
from safe_ray.report.looks import write_looks
from safe_ray.report.summary import write_summary
from safe_ray.sweep.page import make_page, try_page
from safe_ray.sweep.pictures import example_image, small_copies
from tests.conftest import draw_shape
from tests.report.html.pages import check_accessible, confusion, look, read
from tests.report.results import result


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """What is left of a sweep whose banks were deleted."""
    folder = tmp_path / "first"
    write_summary([result(), result(dataset="birds")], folder)
    write_confusions([confusion("zero_shot"), confusion("safe")], folder)
    write_looks([look(0), look(1)], folder)
    return folder


def test_a_page_is_made_of_what_the_folder_has(sweep: Path) -> None:
    page = read(make_page(sweep).read_text())
    check_accessible(page)
    assert page.all("h1")[0].text == "Sweep first"
    assert [heading.text for heading in page.all("h2")][2:] == [
        "birds-2shot-seed1",
        "foods-2shot-seed1",
    ]
    assert len([f for f in page.all("figure") if f.attributes.get("class") == "look"]) == 2


def test_a_damaged_file_costs_the_page_and_one_sentence(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / CONFUSION_FILE).write_bytes(b"PAR1 and no more")
    assert try_page(sweep) is None
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("The report could not be made as a page (")
    assert said.endswith(f"`python -m safe_ray.report {sweep}` tries again.")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        make_page(sweep)


def test_small_copies_are_small_and_what_cannot_be_read_has_none(tmp_path: Path) -> None:
    file = tmp_path / "shape.png"
    file.write_bytes(draw_shape("red circle", 1))
    table = pa.table({"file": [str(file), str(tmp_path / "gone.png"), __file__]})
    preprocessing = Preprocessing(64, (0.5,) * 3, (0.5,) * 3)
    copy, gone, text = small_copies(table, preprocessing)
    assert gone is None
    assert text is None
    assert copy is not None
    assert len(copy) < 3000
    with Image.open(io.BytesIO(copy)) as image:
        assert (image.format, image.size) == ("WEBP", (96, 96))


def test_the_image_to_try_is_a_file_or_a_copy_of_what_is_in_a_table(tmp_path: Path) -> None:
    content = draw_shape("red circle", 1)
    inside = pa.table({"image": [content, b""]})
    assert example_image(inside, tmp_path) == str(tmp_path / "example.png")
    assert (tmp_path / "example.png").read_bytes() == content
    assert example_image(pa.table({"file": ["/photos/a.jpg"]}), tmp_path) == "/photos/a.jpg"
    assert example_image(pa.table({"image": [b"no image"]}), tmp_path) is None
    assert example_image(pa.table({"file": pa.array([], pa.string())}), tmp_path) is None
