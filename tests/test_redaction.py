"""Passwords and tokens do not stand in what is printed, written down or recorded."""

from __future__ import annotations

import pytest

from safe_ray.redaction import redacted, redacted_values

PLANTED = "pl4nted-S3cret"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"http://me:{PLANTED}@host:1/x is away", "http://me:***@host:1/x is away"),
        (f"postgresql+psycopg2://me:{PLANTED}@db/mlflow", "postgresql+psycopg2://me:***@db/mlflow"),
        (f"http://:{PLANTED}@host", "http://:***@host"),
        ("http://me:p@ss@host/x", "http://me:***@host/x"),
        (f"http://{PLANTED}{PLANTED}@host/x", "http://***@host/x"),
        (f"s3://bucket/list?token={PLANTED}&a=1", "s3://bucket/list?token=***&a=1"),
        (
            f"https://bucket/x?X-Amz-Signature={PLANTED}&X-Amz-Date=2",
            "https://bucket/x?X-Amz-Signature=***&X-Amz-Date=2",
        ),
        (f"(http://h/?api_key={PLANTED}): no", "(http://h/?api_key=***): no"),
        ("http://host:5000/#/experiments/1", "http://host:5000/#/experiments/1"),
        ("sqlite:////data/mlflow.db?mode=rw", "sqlite:////data/mlflow.db?mode=rw"),
        ("hf://owner/name@main", "hf://owner/name@main"),
        ("a photo of a {}: token, key, password", "a photo of a {}: token, key, password"),
    ],
)
def test_what_a_uri_hides_is_known_by_its_place(text: str, expected: str):
    assert redacted(text) == expected
    assert redacted(expected) == expected


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "RAY_AUTH_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "DATABRICKS_TOKEN",
        "HF_TOKEN",
    ],
)
def test_values_of_variables_that_hold_secrets_are_known_anywhere(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, PLANTED)
    assert redacted(f"Authorization: Bearer {PLANTED}.") == "Authorization: Bearer ***."


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_TOKEN_PATH", "/root/token"), ("API_KEY", "abc"), ("PATH", "/usr/bin")],
)
def test_paths_and_short_values_stay(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    assert redacted(f"in {value} there") == f"in {value} there"


def test_json_values_lose_what_is_named_like_a_secret():
    values = {
        "path": f"https://me:{PLANTED}@host/list.csv",
        "options": {"secret": PLANTED, "columns": ["key", "token"], "aws.secret_access_key": "x"},
        "tokens": 49,
        "classes": {"key": "a key", "lock": "a lock"},
    }
    assert redacted_values(values) == {
        "path": "https://me:***@host/list.csv",
        "options": {"secret": "***", "columns": ["key", "token"], "aws.secret_access_key": "***"},
        "tokens": 49,
        "classes": {"key": "a key", "lock": "a lock"},
    }
