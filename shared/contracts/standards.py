"""Standards: an answer key with its questions, points and what counts as right."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .contract import Contract

__all__ = [
    "AnswerKey",
    "ListQuestion",
    "MultipleChoice",
    "Numeric",
    "Question",
    "ShortText",
    "SingleChoice",
    "Tolerance",
    "TrueFalse",
]

_Text = Annotated[str, Field(min_length=1, max_length=2000)]
_Label = Annotated[str, Field(min_length=1, max_length=8)]


class _QuestionBase(Contract):
    """``id`` is what the sheet prints before the question ("1", "2a"); points are positive."""

    id: Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[0-9A-Za-z][0-9A-Za-z.\-]*$")]
    prompt: Annotated[str, Field(max_length=4000)] = ""
    points: Annotated[float, Field(gt=0, le=1000)] = 1.0


class SingleChoice(_QuestionBase):
    """One letter out of ``options`` (label → text)."""

    kind: Literal["single_choice"]
    options: dict[_Label, _Text] = Field(min_length=2, max_length=26)
    answer: _Label

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> SingleChoice:
        if self.answer not in self.options:
            raise ValueError(f"answer {self.answer!r} is not one of the options {', '.join(self.options)}")
        return self


class MultipleChoice(_QuestionBase):
    """Several letters. ``partial``: each right letter earns its share, each wrong one costs a share."""

    kind: Literal["multiple_choice"]
    options: dict[_Label, _Text] = Field(min_length=2, max_length=26)
    answers: Annotated[tuple[_Label, ...], Field(min_length=1)]
    scoring: Literal["partial", "all_or_nothing"] = "partial"

    @model_validator(mode="after")
    def _answers_are_options(self) -> MultipleChoice:
        unknown = [a for a in self.answers if a not in self.options]
        if unknown:
            raise ValueError(f"answers {', '.join(unknown)} are not among the options {', '.join(self.options)}")
        if len(set(self.answers)) != len(self.answers):
            raise ValueError("answers must not repeat")
        return self


class TrueFalse(_QuestionBase):
    kind: Literal["true_false"]
    answer: bool


class Tolerance(Contract):
    """An answer within either bound is right: ``absolute`` in the key's unit, ``relative`` as a fraction."""

    absolute: Annotated[float, Field(ge=0)] = 0.0
    relative: Annotated[float, Field(ge=0, le=1)] = 0.0


class Numeric(_QuestionBase):
    """A number, with a unit where ``unit`` is set (any unit of the same dimension is converted)."""

    kind: Literal["numeric"]
    answer: float
    tolerance: Tolerance = Tolerance()
    unit: Annotated[str, Field(min_length=1, max_length=40)] | None = None
    # Share of the points for the right number with the unit missing or wrong.
    unit_credit: Annotated[float, Field(ge=0, le=1)] = 0.5


class ShortText(_QuestionBase):
    """A word or a sentence. Any of ``answers`` earns all; ``keywords`` earn their share where none matches."""

    kind: Literal["short_text"]
    answers: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=50)]
    keywords: Annotated[tuple[_Text, ...], Field(max_length=50)] = ()
    spelling: Literal["strict", "lenient"] = "lenient"


class ListQuestion(_QuestionBase):
    """Several items; each entry of ``items`` lists the accepted forms of one item."""

    kind: Literal["list"]
    items: Annotated[tuple[Annotated[tuple[_Text, ...], Field(min_length=1)], ...], Field(min_length=1, max_length=50)]
    ordered: bool = False
    # How many of the items are asked for ("name three of …"); all when None.
    required: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _required_fits(self) -> ListQuestion:
        if self.required is not None and self.required > len(self.items):
            raise ValueError(f"required is {self.required} but the key has only {len(self.items)} items")
        return self


Question = Annotated[
    SingleChoice | MultipleChoice | TrueFalse | Numeric | ShortText | ListQuestion, Field(discriminator="kind")
]


class AnswerKey(Contract):
    """The questions of a standard, in the order of the sheet. Ids are unique."""

    questions: Annotated[tuple[Question, ...], Field(min_length=1, max_length=300)]
    # Decimal comma ("de") or point ("en") first when a number could be read both ways.
    locale: Literal["en", "de", "fr", "es"] = "en"

    @model_validator(mode="after")
    def _ids_unique(self) -> AnswerKey:
        seen: set[str] = set()
        for q in self.questions:
            if q.id.casefold() in seen:
                raise ValueError(f"question id {q.id!r} is used twice")
            seen.add(q.id.casefold())
        return self

    @property
    def max_points(self) -> float:
        return sum(q.points for q in self.questions)
