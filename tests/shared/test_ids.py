"""Public ids: prefixed, ordered, and never taken for another kind's."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import IdKind, InvalidId, decode, encode, new_uuid


@given(st.uuids(), st.sampled_from(IdKind))
def test_an_id_survives_the_round_trip(value: UUID, kind: IdKind) -> None:
    text = encode(kind, value)
    assert text.startswith(f"{kind.value}_")
    assert len(text) == 30
    assert decode(kind, text) == value


def test_the_typeid_specifications_example() -> None:
    # From the specification: prefix_00041061050r3gg28a1c60t3gf is this UUID.
    assert encode(IdKind.JOB, UUID("00010203-0405-0607-0809-0a0b0c0d0e0f")) == "job_00041061050r3gg28a1c60t3gf"


@given(st.text(max_size=40))
def test_any_other_text_is_refused(text: str) -> None:
    try:
        value = decode(IdKind.JOB, text)
    except InvalidId:
        return
    assert encode(IdKind.JOB, value) == text, "what is accepted is in the one form"


@pytest.mark.parametrize(
    "text", ["job_8zzzzzzzzzzzzzzzzzzzzzzzzz", "job_", "job", "", "doc_00041061050r3gg28a1c60t3gf", "job_0004106105"]
)
def test_out_of_range_short_and_foreign_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidId):
        decode(IdKind.JOB, text)


def test_ids_sort_by_their_time_of_creation() -> None:
    made = [encode(IdKind.JOB, new_uuid()) for _ in range(1000)]
    assert made == sorted(made)
