"""A real server, started once: its whole interface, under load, and while processes are killed."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from safe_ray.data.views import evaluation_view
from safe_ray.prediction.predictor import Predictor
from safe_ray.specs import BackboneSpec
from tests.browsers import browser, chromium
from tests.conftest import draw_shape
from tests.prediction.heads import CLASSES
from tests.serving.heads import TASKS, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE = 300.0
TASK, OTHER = TASKS[:2]
SEEDS = {"shapes": 1, "signs": 2}
AT_ONCE = 4
Part = tuple[str, str | None, bytes]


def until(condition: Callable[[], Any], what: str) -> Any:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {PATIENCE:.0f} s")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.value["error"])


@dataclass
class Server:
    """The server's process, its sweep, and one request at a time to it."""

    process: subprocess.Popen[str]
    port: int
    sweep: Path
    printed: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, parts: list[Part] | None = None, chunked: bool = False
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers, body = {}, b""
        if parts is not None:
            body, kind = form(parts)
            headers["Content-Type"] = kind
        try:
            content: Any = iter([body]) if chunked else body
            connection.request(method, path, content, headers, encode_chunked=chunked)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def predict(self, parts: list[Part], task: str = TASK) -> Answer:
        return self.ask("POST", f"/v1/tasks/{task}:predict", parts)

    def replica(self, deployment: str) -> int | None:
        """The process of a deployment's only replica."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if f"ServeReplica:safe-ray:{deployment}" in " ".join(child.cmdline()):
                    return child.pid
            except psutil.Error:
                continue
        return None

    def digests(self) -> dict[str, str]:
        tasks = self.ask("GET", "/v1/tasks").value["tasks"]
        return {one["task"]: one["digest"] for one in tasks}


def form(parts: list[Part]) -> tuple[bytes, str]:
    mark = uuid.uuid4().hex
    lines = []
    for name, file, content in parts:
        named = f'; filename="{file}"' if file is not None else ""
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        lines.append(head.encode() + content + b"\r\n")
    return b"".join(lines) + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"


def picture(number: int = 0) -> Part:
    return "images", f"{number}.png", draw_shape(CLASSES[number % 3], number)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: BackboneSpec
) -> Iterator[Server]:
    sweep = write_sweep(tmp_path_factory.mktemp("sweep"), tiny_backbone, SEEDS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = ["--most-megabytes", "1", "--most-megapixels", "1", "--timeout", "120"]
    command = [sys.executable, "-m", "safe_ray.serve", str(sweep), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--queue", str(AT_ONCE), "--cpus", "1", *limits],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    printed: list[str] = []
    reading = threading.Thread(target=lambda: printed.extend(process.stdout or ()), daemon=True)
    reading.start()
    try:
        until(
            lambda: process.poll() is not None or any("Ctrl-C ends it" in p for p in printed),
            "the server starts",
        )
        assert process.poll() is None, "".join(printed)
        yield Server(process, port, sweep, printed)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
    assert process.returncode == 130, "".join(printed)
    reading.join(PATIENCE)
    assert [line for line in printed[-1:] if line.strip() != "Stopped serving."] == []
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


# ---- what it says ----


def test_it_says_where_it_is_and_listens_nowhere_else(server: Server) -> None:
    said = "".join(server.printed)
    assert f"page       {server.url}\n" in said
    assert f"{server.url}/v1/tasks/{TASK}:predict" in said
    heard = set()
    driver = psutil.Process(server.process.pid)
    for process in [driver, *driver.children(recursive=True)]:
        try:
            connections = process.net_connections("inet")
        except psutil.Error:
            continue
        heard |= {one.laddr for one in connections if one.status == psutil.CONN_LISTEN}
    assert server.port in {place.port for place in heard}
    elsewhere = [
        place for place in heard if not place.ip.removeprefix("::ffff:").startswith("127.")
    ]
    assert [place for place in elsewhere if place.ip != "::1"] == []


def test_images_get_the_classes_and_probabilities_that_the_head_gives(server: Server) -> None:
    pictures = [picture(number) for number in range(3)]
    answer = server.predict([*pictures, ("top", None, b"2"), ("alpha", None, b"0.75")])
    assert answer.status == 200, answer.body
    said = answer.value
    assert (said["task"], said["method"], said["alpha"]) == (TASK, "SAFE", 0.75)
    alone = Predictor.load(server.sweep / "banks/shapes/1", alpha=0.75)
    views = [
        evaluation_view(Image.open(io.BytesIO(content)).convert("RGB"), alone.preprocessing)
        for _, _, content in pictures
    ]
    expected = alone.probabilities(torch.stack(views))
    for one, row in zip(said["predictions"], expected, strict=True):
        values, places = row.topk(2)
        assert [c["class"] for c in one["classes"]] == [alone.class_names[i] for i in places]
        assert [c["probability"] for c in one["classes"]] == pytest.approx(
            values.tolist(), abs=1e-3
        )
    assert [one["image"] for one in said["predictions"]] == ["0.png", "1.png", "2.png"]
    assert server.predict([picture()]).value["alpha"] == 0.4
    assert server.predict([picture()], OTHER).value["task"] == OTHER


def test_an_explanation_has_the_slider_and_the_pictures_of_one_image(server: Server) -> None:
    _, name, content = picture()
    answer = server.ask("POST", f"/v1/tasks/{TASK}:explain", [("image", name, content)])
    assert answer.status == 200, answer.body
    said = answer.value
    assert said["alpha"] == 0.4
    assert said["alpha"] in said["alphas"]
    assert len(said["probabilities"]) == len(said["alphas"])
    assert sorted(said["classes"]) == sorted(CLASSES)
    for row in said["probabilities"]:
        assert sum(row) == pytest.approx(1, abs=1e-4)
    for weights in (said["original"], said["tuned"]):
        assert sum(map(sum, weights)) == pytest.approx(1, abs=1e-4)
    assert said["resize_mode"] == "shortest"


def test_tasks_are_listed_with_their_classes(server: Server) -> None:
    tasks = server.ask("GET", "/v1/tasks").value["tasks"]
    assert [(one["task"], one["classes"], one["alpha"]) for one in tasks] == [
        (TASK, 3, 0.4),
        (OTHER, 3, 0.4),
    ]
    assert server.ask("GET", f"/v1/tasks/{TASK}").value["classes"] == list(CLASSES)
    assert server.ask("GET", "/v1/tasks/none").status == 404


# ---- what it refuses ----


def grey(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ([picture(), ("images", "b.jpg", b"nothing")], 422, "'b.jpg' cannot be used: not an image"),
        ([("images", "c.png", draw_shape(CLASSES[0], 0)[:200])], 422, "'c.png' .*: damaged"),
        ([("images", "d.png", b"")], 422, "'d.png' .*: the file is empty"),
        ([("images", "e.png", grey(1001))], 422, "'e.png' .* 1002001, and 1000000 at most"),
        ([picture(), ("alpha", None, b"2")], 422, "'alpha' is not right: input should be less"),
        ([picture(), ("alpha", None, b"nan")], 422, "'alpha' is not right"),
        ([picture(), ("top", None, b"0")], 422, "'top' is not right"),
        ([("top", None, b"1")], 422, "'images' is not right: field required"),
        ([("images", None, b"text")], 422, "'images"),
        ([picture(n) for n in range(33)], 413, "33 images, and 32 at most"),
        ([("images", "f.png", bytes(2**20))], 413, "more than 1048576 bytes"),
    ],
)
def test_a_mistake_is_a_sentence(
    server: Server, parts: list[Part], status: int, words: str
) -> None:
    answer = server.predict(parts)
    assert answer.status == status, answer.body
    assert re.search(words, answer.error), answer.error


def test_bytes_that_nobody_announced_are_counted(server: Server) -> None:
    path = f"/v1/tasks/{TASK}:predict"
    answer = server.ask("POST", path, [("images", "f.png", bytes(2**20))], chunked=True)
    assert answer.status == 413, answer.body


def test_an_unknown_task_is_told_with_the_nearest(server: Server) -> None:
    answer = server.predict([picture()], "shapes-2shot-seed3")
    assert answer.status == 404
    assert f"Did you mean '{TASK}'" in answer.error


def test_what_is_too_much_at_once_is_sent_away_and_the_rest_is_answered(server: Server) -> None:
    found: list[Answer] = []
    many = [picture(n) for n in range(30)]

    def ask() -> None:
        found.append(server.predict(many))

    clients = [threading.Thread(target=ask) for _ in range(10 * AT_ONCE)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(PATIENCE)
    counts = Counter(one.status for one in found)
    assert set(counts) == {200, 429}, counts
    assert counts[200] >= 2 * AT_ONCE
    assert all(one.headers["retry-after"] == "1" for one in found if one.status == 429)


# ---- while something happens ----


@dataclass
class Load:
    """Clients that ask again and again until it is over, each retry counted."""

    server: Server
    clients: int = 3
    done: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [
            threading.Thread(target=self._work, args=(n,)) for n in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        self.wait(3)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def wait(self, more: int) -> None:
        """Wait until so many more requests were answered."""
        wanted = self.done + more
        until(lambda: self.done >= wanted or self.lost, "requests are answered")

    def _work(self, number: int) -> None:
        while not self._over.is_set():
            limit = time.monotonic() + PATIENCE
            while True:
                try:
                    answer = self.server.predict([picture(number)], TASKS[number % 2])
                    problem = "" if answer.status == 200 else str(answer.status)
                except (OSError, http.client.HTTPException) as error:
                    problem = type(error).__name__
                if not problem:
                    self.done += 1
                    break
                self.retries[problem] += 1
                if time.monotonic() > limit:
                    self.lost.append(problem)
                    break
                time.sleep(0.2)


def test_better_heads_take_over_without_a_dropped_request(
    server: Server, tiny_backbone: BackboneSpec
) -> None:
    before = server.digests()
    with Load(server) as load:
        write_sweep(server.sweep, tiny_backbone, {"shapes": 5, "signs": 2})
        until(lambda: server.digests()[TASK] != before[TASK], "the new head is served")
        load.wait(6)
    assert (load.lost, load.retries) == ([], Counter())
    assert server.digests()[OTHER] == before[OTHER]
    expected = Predictor.load(server.sweep / "banks/shapes/5")
    content = picture()[2]
    view = evaluation_view(Image.open(io.BytesIO(content)).convert("RGB"), expected.preprocessing)
    said = server.predict([picture(), ("top", None, b"1")]).value["predictions"][0]["classes"][0]
    assert said["probability"] == pytest.approx(
        float(expected.probabilities(view.unsqueeze(0)).max()), abs=1e-3
    )


def test_a_sweep_that_is_half_written_changes_nothing_and_is_told(server: Server) -> None:
    summary = server.sweep / "summary.json"
    content = summary.read_text()
    summary.write_text(content[:100])
    try:
        said = until(
            lambda: server.ask("GET", "/healthz").value.get("remark"), "the damage is noticed"
        )
        assert "summary.json" in said
        assert server.predict([picture()]).status == 200
    finally:
        summary.write_text(content)
    until(lambda: "remark" not in server.ask("GET", "/healthz").value, "the repair is noticed")


def test_a_trunk_that_is_killed_loses_nothing_and_no_client_notices(server: Server) -> None:
    killed = server.replica("Trunk")
    assert killed is not None
    with Load(server) as load:
        os.kill(killed, signal.SIGKILL)
        load.wait(6)
    assert (load.lost, load.retries) == ([], Counter())
    assert server.replica("Trunk") not in (None, killed)


def test_a_front_that_is_killed_loses_nothing_of_a_client_that_tries_again(
    server: Server,
) -> None:
    killed = server.replica("Front")
    assert killed is not None
    with Load(server) as load:
        os.kill(killed, signal.SIGKILL)
        load.wait(6)
    assert load.lost == []
    print(f"{load.done} requests, tried again: {dict(load.retries)}")
    assert server.replica("Front") not in (None, killed)


def test_it_counts_what_it_does(server: Server) -> None:
    server.predict([picture(0), picture(1)])
    server.predict([picture(0)], "none")
    answer = server.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    counts = dict(re.findall(r"^(\S+) ([0-9.e+]+)$", answer.body.decode(), re.MULTILINE))
    route = 'route="/v1/tasks/{task}:predict"'
    assert float(counts[f'safe_ray_requests_total{{{route},status="200"}}']) >= 1
    assert float(counts[f'safe_ray_requests_total{{{route},status="404"}}']) >= 1
    assert float(counts["safe_ray_images_total"]) >= 2
    assert any(name.startswith("safe_ray_heads_in_memory{") for name in counts)
    health = server.ask("GET", "/healthz")
    assert (health.status, health.value["tasks"]) == (200, 2)


# ---- its pages ----


def test_the_interface_is_described(server: Server) -> None:
    described = server.ask("GET", "/openapi.json").value
    assert {"/v1/tasks", "/v1/tasks/{task}:predict", "/v1/tasks/{task}:explain"} <= set(
        described["paths"]
    )
    fields = described["components"]["schemas"]["Body_predict_v1_tasks__task__predict_post"]
    assert set(fields["properties"]) == {"images", "top", "alpha"}


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_bring_nothing_along_from_elsewhere(server: Server, path: str) -> None:
    answer = server.ask("GET", path)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(rb"https?://|@import|<link[^>]+stylesheet|src=\"", answer.body)


@pytest.mark.skipif(chromium() is None, reason="there is no Chromium on PATH")
def test_a_person_sees_what_a_head_sees(server: Server, tmp_path: Path) -> None:
    image = tmp_path / "shape.png"
    image.write_bytes(picture(1)[2])
    bars = "[...document.querySelectorAll('#classes li')].map((one) => one.innerText)"
    with browser(tmp_path / "profile") as page:
        page.open(f"{server.url}/#{OTHER}", 1000, 800)
        page.until("document.querySelectorAll('#task option').length === 2")
        assert page.run("document.getElementById('task').value") == OTHER
        page.choose("#file", image)
        page.until(f"{bars}.length === 3")
        chosen = page.run(bars)
        assert {line.split("\n")[0] for line in chosen} == set(CLASSES)
        drawn = "document.getElementById('{}').getContext('2d').getImageData(0, 0, 48, 48).data"
        for canvas in ("original", "tuned"):
            assert page.run(f"{drawn.format(canvas)}.some((one) => one > 0)")
        # The slider asks nobody.
        asked = len(page.requests)
        page.run(
            "{ const slider = document.getElementById('alpha'); slider.value = 0;"
            "slider.dispatchEvent(new Event('input')); }"
        )
        assert page.run("document.getElementById('value').textContent") == "0.00"
        assert page.run(bars) != chosen
        page.run("document.getElementById('chosen').click()")
        assert page.run(bars) == chosen
        assert len(page.requests) == asked
        # Dropped, and pasted.
        encoded = base64.b64encode(image.read_bytes()).decode()
        for event, where in (("drop", "dataTransfer"), ("paste", "clipboardData")):
            page.run("document.getElementById('classes').replaceChildren()")
            page.run(
                f"{{ const bytes = Uint8Array.from(atob('{encoded}'), (one) => one.charCodeAt());"
                "const moved = new DataTransfer();"
                "moved.items.add(new File([bytes], 'x.png', {type: 'image/png'}));"
                f"document.body.dispatchEvent(new {KINDS[event]}('{event}', "
                f"{{bubbles: true, cancelable: true, {where}: moved}})); }}"
            )
            page.until(f"{bars}.length === 3")
        # What is no image is told, and the answer goes.
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"nothing")
        page.choose("#file", broken)
        said = page.until("document.getElementById('problem').textContent")
        assert "'broken.png' cannot be used" in said
        page.choose("#file", image)
        page.until(f"!document.getElementById('answer').hidden && {bars}.length === 3")
        page.screenshot(SHOTS / "wide.png" if SHOTS else tmp_path / "wide.png")
        for name, width, dark in (("phone", 360, False), ("dark", 360, True)):
            page.open(f"{server.url}/?{name}", width, 740, dark)
            page.until("document.querySelectorAll('#task option').length === 2")
            page.choose("#file", image)
            page.until(f"{bars}.length === 3")
            assert page.run("document.documentElement.scrollWidth") <= width
            page.screenshot(SHOTS / f"{name}.png" if SHOTS else tmp_path / f"{name}.png")
        page.open(f"{server.url}/docs", 1000, 800)
        page.until("document.body?.innerText.includes('POST /v1/tasks/{task}:predict')")
        ours = (server.url, "blob:", "data:", "about:")
        assert all(one.startswith(ours) for one in page.requests), page.requests
        assert [one for one in page.problems if "422" not in one] == []


KINDS = {"drop": "DragEvent", "paste": "ClipboardEvent"}
SHOTS = Path(os.environ["SAFE_RAY_SCREENSHOTS"]) if "SAFE_RAY_SCREENSHOTS" in os.environ else None
