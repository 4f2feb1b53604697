"""The samples are what samples/README.md says: keys valid, truths within the keys, files of the kind they claim."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shared.contracts import AnswerKey

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
FOLDERS = ("quiz", "photos", "typed")
MAGIC = {"PDF": b"%PDF-", "JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "JSON": b"{"}
BUDGET = 4_000_000  # bytes; the samples are in every clone

README = (SAMPLES / "README.md").read_text("utf-8")
LISTED: dict[str, str] = dict(re.findall(r"^\| `([a-z]+/[^`]+)` \| (\w+) \|", README, re.MULTILINE))


def _json(folder: str, name: str) -> Any:
    return json.loads((SAMPLES / folder / name).read_text("utf-8"))


def _key(folder: str) -> AnswerKey:
    return AnswerKey.model_validate(_json(folder, "standard.json")["key"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_standard_is_a_valid_answer_key_with_a_name(folder: str) -> None:
    standard = _json(folder, "standard.json")
    assert set(standard) == {"name", "key"}
    assert standard["name"].strip()
    assert len(_key(folder).questions) == 12


def test_the_keys_use_every_kind_of_question() -> None:
    kinds = {"single_choice", "multiple_choice", "true_false", "numeric", "short_text", "list"}
    for folder in FOLDERS:
        assert {q.kind for q in _key(folder).questions} == kinds


def test_scan_and_photos_are_of_the_same_quiz() -> None:
    assert (SAMPLES / "quiz/standard.json").read_bytes() == (SAMPLES / "photos/standard.json").read_bytes()


@pytest.mark.parametrize("folder", FOLDERS)
def test_expected_covers_the_key_in_order_with_points_in_range(folder: str) -> None:
    key, truth = _key(folder), _json(folder, "expected.json")
    assert [q["id"] for q in truth["questions"]] == [q.id for q in key.questions]
    for asked, marked in zip(key.questions, truth["questions"], strict=True):
        assert marked["max_points"] == asked.points
        assert 0 <= marked["points"] <= asked.points
        if not marked["given"]:
            assert marked["points"] == 0
    assert truth["max_points"] == key.max_points
    assert truth["points"] == sum(q["points"] for q in truth["questions"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_expected_names_the_student_and_files_that_exist(folder: str) -> None:
    truth = _json(folder, "expected.json")
    for field in ("student_name", "school", "grade_level", "class", "date"):
        assert truth[field].strip()
    assert truth["files"]
    assert all((SAMPLES / folder / name).is_file() for name in truth["files"])
    pages = [q["page"] for q in truth["questions"]]
    assert pages == sorted(pages)
    assert pages[0] == 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_readme_names_the_points_of_each_sheet(folder: str) -> None:
    truth = _json(folder, "expected.json")
    row = next(row for row in README.splitlines() if row.startswith(f"| `{folder}/expected.json`"))
    assert f" {truth['points']:g} of {truth['max_points']:g} |" in row


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_sheet_holds_right_and_wrong_answers(folder: str) -> None:
    shares = {q["points"] / q["max_points"] for q in _json(folder, "expected.json")["questions"]}
    assert {0.0, 1.0} < shares  # and some in between


@pytest.mark.parametrize(("name", "kind"), sorted(LISTED.items()))
def test_file_is_of_the_kind_the_readme_names(name: str, kind: str) -> None:
    data = (SAMPLES / name).read_bytes()
    if kind == "empty":
        assert data == b""
    elif kind == "text":
        assert data.decode("ascii").strip().isprintable()
    else:
        assert data.startswith(MAGIC[kind])


def test_readme_lists_every_sample_and_nothing_else() -> None:
    folders = [p for p in SAMPLES.iterdir() if p.is_dir() and p.name != "__pycache__"]
    present = {f"{folder.name}/{p.name}" for folder in folders for p in folder.iterdir()}
    assert present == set(LISTED)


def test_samples_stay_small() -> None:
    assert sum((SAMPLES / name).stat().st_size for name in LISTED) < BUDGET
