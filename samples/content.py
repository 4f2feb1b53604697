"""The quizzes, their answer keys and what three students wrote: the truth every sample file is drawn from.

Points under ``Sheet.given`` are marked by hand against the key, so that a test compares the grader with a person and
not with itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["GEOGRAPHY", "MAYA", "SCIENCE", "SHEETS", "TOBIAS", "ZOE", "Answer", "Quiz", "Sheet"]


@dataclass(frozen=True)
class Quiz:
    """A printed quiz: its key and how it is set."""

    title: str
    subtitle: str
    instructions: str
    key: dict[str, Any]
    new_page_at: tuple[str, ...]  # question ids that begin a page
    beside: tuple[str, ...] = ()  # "Answer:" stands at the right of the prompt, not below
    two_columns: tuple[str, ...] = ()  # options in two columns
    figures: dict[str, str] = field(default_factory=dict)  # question id -> figure in sheet.py
    answer_lines: dict[str, int] = field(default_factory=dict)  # default 1

    @property
    def max_points(self) -> float:
        return float(sum(q["points"] for q in self.key["questions"]))

    def page_of(self, question_id: str) -> int:
        """1-based page on which ``question_id`` is printed."""
        page = 1
        for q in self.key["questions"]:
            page += q["id"] in self.new_page_at
            if q["id"] == question_id:
                return page
        raise KeyError(question_id)


@dataclass(frozen=True)
class Answer:
    """``text`` as written; ``points`` a teacher gives for it. ``breaks``: lines it was written on, if several."""

    text: str
    points: float
    breaks: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        return self.breaks or ((self.text,) if self.text else ())


@dataclass(frozen=True)
class Sheet:
    """One student's filled-in quiz."""

    quiz: Quiz
    name: str
    school: str
    grade_level: str
    class_name: str
    date: str
    given: dict[str, Answer]


SCIENCE = Quiz(
    title="Year 8 Science – Unit 3 quiz",
    subtitle="Forces, materials and energy",
    instructions="Write each answer on its line. For questions with options, write the letter or letters only.",
    new_page_at=("5", "10"),
    beside=("4", "5"),
    two_columns=("2",),
    figures={"8": "spring", "9": "gears"},
    answer_lines={"11": 2},
    key={
        "locale": "en",
        "questions": [
            {
                "id": "1",
                "kind": "single_choice",
                "prompt": "What is the unit of force?",
                "points": 1,
                "options": {"A": "joule", "B": "newton", "C": "watt", "D": "pascal"},
                "answer": "B",
            },
            {
                "id": "2",
                "kind": "single_choice",
                "prompt": "In which part of a plant cell does photosynthesis take place?",
                "points": 1,
                "options": {"A": "nucleus", "B": "vacuole", "C": "chloroplast", "D": "cell wall"},
                "answer": "C",
            },
            {
                "id": "3",
                "kind": "multiple_choice",
                "prompt": "Which of these are mixtures? Write down every letter that is right.",
                "points": 2,
                "options": {"A": "sea water", "B": "pure gold", "C": "air", "D": "distilled water"},
                "answers": ["A", "C"],
                "scoring": "partial",
            },
            {
                "id": "4",
                "kind": "true_false",
                "prompt": "True or false? Sound travels faster in water than in air.",
                "points": 1,
                "answer": True,
            },
            {
                "id": "5",
                "kind": "true_false",
                "prompt": "True or false? A moving object on which no force acts slows down and stops.",
                "points": 1,
                "answer": False,
            },
            {
                "id": "6",
                "kind": "numeric",
                "prompt": "A cyclist rides 150 m in 12 s at a steady pace. What is her speed? Give the unit.",
                "points": 2,
                "answer": 12.5,
                "unit": "m/s",
                "tolerance": {"absolute": 0.05},
            },
            {
                "id": "7",
                "kind": "numeric",
                "prompt": "How large is the acceleration of a falling stone near the ground, to one decimal place? "
                "Give the unit.",
                "points": 2,
                "answer": 9.8,
                "unit": "m/s^2",
                "tolerance": {"absolute": 0.05},
            },
            {
                "id": "8",
                "kind": "numeric",
                "prompt": "A spring is 18 cm long. A mass hung from it stretches it by 7 cm. "
                "How long is the spring now? Give the unit.",
                "points": 2,
                "answer": 25,
                "unit": "cm",
                "tolerance": {"relative": 0.01},
                "unit_credit": 0.5,
            },
            {
                "id": "9",
                "kind": "numeric",
                "prompt": "A wheel with 35 teeth is driven by a wheel with 10 teeth. What is the gear ratio, "
                "as a decimal number?",
                "points": 2,
                "answer": 3.5,
            },
            {
                "id": "10",
                "kind": "short_text",
                "prompt": "What do we call it when a liquid slowly turns into a gas at its surface?",
                "points": 1,
                "answers": ["evaporation", "evaporating", "it evaporates"],
            },
            {
                "id": "11",
                "kind": "short_text",
                "prompt": "A metal spoon and a wooden spoon lie in the same room. Why does the metal one feel colder?",
                "points": 2,
                "answers": [
                    "metal is a better conductor and takes heat away from the hand",
                    "metal conducts heat away from the hand faster than wood",
                ],
                "keywords": ["conductor", "heat"],
            },
            {
                "id": "12",
                "kind": "list",
                "prompt": "Name three renewable energy sources.",
                "points": 3,
                "items": [
                    ["solar", "sun", "sunlight", "solar energy", "solar power"],
                    ["wind", "wind energy", "wind power"],
                    ["water", "hydro", "hydroelectric", "hydropower", "water power"],
                    ["tides", "tidal", "tidal power"],
                    ["waves", "wave power"],
                    ["geothermal", "geothermal energy"],
                    ["biomass", "biofuel", "wood"],
                ],
                "required": 3,
            },
        ],
    },
)

GEOGRAPHY = Quiz(
    title="Year 8 Geography – Homework 4",
    subtitle="Rivers and coasts",
    instructions="Type your answer after the word “Answer:”. Hand in as PDF.",
    new_page_at=("6",),
    key={
        "locale": "en",
        "questions": [
            {
                "id": "1",
                "kind": "single_choice",
                "prompt": "What is the place called where a river begins?",
                "points": 1,
                "options": {"A": "mouth", "B": "source", "C": "delta", "D": "confluence"},
                "answer": "B",
            },
            {
                "id": "2",
                "kind": "single_choice",
                "prompt": "Which landform is left when a meander is cut off?",
                "points": 1,
                "options": {"A": "oxbow lake", "B": "estuary", "C": "gorge", "D": "sand bar"},
                "answer": "A",
            },
            {
                "id": "3",
                "kind": "multiple_choice",
                "prompt": "Which of these are processes of erosion? Give every letter that is right.",
                "points": 3,
                "options": {"A": "abrasion", "B": "deposition", "C": "hydraulic action", "D": "attrition"},
                "answers": ["A", "C", "D"],
                "scoring": "partial",
            },
            {
                "id": "4a",
                "kind": "true_false",
                "prompt": "True or false? A river drops its load where it slows down.",
                "points": 1,
                "answer": True,
            },
            {
                "id": "4b",
                "kind": "true_false",
                "prompt": "True or false? Sediment is laid down on the outside of a meander.",
                "points": 1,
                "answer": False,
            },
            {
                "id": "5",
                "kind": "numeric",
                "prompt": "A cliff retreats by 1.8 m every year. By how much does it retreat in 25 years? "
                "Give the unit.",
                "points": 2,
                "answer": 45,
                "unit": "m",
            },
            {
                "id": "6",
                "kind": "numeric",
                "prompt": "On a map with the scale 1 : 50 000 two bridges are 6 cm apart. "
                "How far apart are they really? Give the unit.",
                "points": 2,
                "answer": 3,
                "unit": "km",
                "tolerance": {"relative": 0.02},
            },
            {
                "id": "7",
                "kind": "numeric",
                "prompt": "A river has a cross-section of 12 m² and flows at 1.5 m/s. What is its discharge? "
                "Give the unit.",
                "points": 2,
                "answer": 18,
                "unit": "m^3/s",
                "tolerance": {"absolute": 0.1},
                "unit_credit": 0.5,
            },
            {
                "id": "8",
                "kind": "short_text",
                "prompt": "What is the flat land beside a river called that is under water after heavy rain?",
                "points": 1,
                "answers": ["floodplain", "flood plain"],
            },
            {
                "id": "9",
                "kind": "short_text",
                "prompt": "Why are groynes built on a beach?",
                "points": 2,
                "answers": ["to trap the sand that longshore drift carries along the beach"],
                "keywords": ["longshore drift", "sand"],
            },
            {
                "id": "10",
                "kind": "list",
                "prompt": "Put these in the order in which you meet them on the way to the sea: "
                "delta, V-shaped valley, meander.",
                "points": 3,
                "items": [["V-shaped valley", "V shaped valley", "valley"], ["meander", "meanders"], ["delta"]],
                "ordered": True,
            },
            {
                "id": "11",
                "kind": "short_text",
                "prompt": "What do we call the bending of waves around a headland?",
                "points": 1,
                "answers": ["wave refraction", "refraction"],
            },
        ],
    },
)

MAYA = Sheet(
    quiz=SCIENCE,
    name="Maya Lindqvist",
    school="Northfield Middle School",
    grade_level="8",
    class_name="8b",
    date="14 March 2025",
    given={
        "1": Answer("B", 1),
        "2": Answer("A", 0),
        "3": Answer("A, C", 2),
        "4": Answer("True", 1),
        "5": Answer("True", 0),
        "6": Answer("12.5 m/s", 2),
        "7": Answer("9.8 m/s²", 2),
        "8": Answer("25", 1),  # right number, unit missing: half
        "9": Answer("3,5", 2),  # decimal comma on an English sheet
        "10": Answer("", 0),
        "11": Answer("Metal is a good conductor", 1),  # one keyword of two
        "12": Answer("wind, solar, coal", 2),
    },
)

TOBIAS = Sheet(
    quiz=SCIENCE,
    name="Tobias Mbeki",
    school="Northfield Middle School",
    grade_level="8",
    class_name="8a",
    date="14 March 2025",
    given={
        "1": Answer("B", 1),
        "2": Answer("C", 1),
        "3": Answer("A, C, D", 1),  # two right of two, one wrong costs a share
        "4": Answer("False", 0),
        "5": Answer("False", 1),
        "6": Answer("45 km/h", 2),  # 12.5 m/s in another unit
        "7": Answer("10 m/s²", 0),  # outside the tolerance
        "8": Answer("0.25 m", 2),
        "9": Answer("2.5", 0),
        "10": Answer("evaperation", 1),  # misspelt; the key is lenient
        "11": Answer(
            "Metal is a better conductor and takes the heat out of your hand",
            2,
            breaks=("Metal is a better conductor and", "takes the heat out of your hand"),
        ),
        "12": Answer("sun, water, wind", 3),
    },
)

ZOE = Sheet(
    quiz=GEOGRAPHY,
    name="Zoë Achterberg",
    school="St. Olave’s Community College",
    grade_level="8",
    class_name="8c",
    date="2 May 2025",
    given={
        "1": Answer("B", 1),
        "2": Answer("D", 0),
        "3": Answer("A, C", 2),  # two right of three
        "4a": Answer("True", 1),
        "4b": Answer("True", 0),
        "5": Answer("45 m", 2),
        "6": Answer("3000 m", 2),
        "7": Answer("18 m/s", 1),  # right number, wrong unit: half
        "8": Answer("flood plain", 1),
        "9": Answer("To slow down longshore drift and keep the sand on the beach.", 2),
        "10": Answer("V-shaped valley, meander, delta", 3),
        "11": Answer("", 0),
    },
)

# Folder under samples/ -> what was handed in there.
SHEETS: dict[str, Sheet] = {"quiz": MAYA, "photos": TOBIAS, "typed": ZOE}
