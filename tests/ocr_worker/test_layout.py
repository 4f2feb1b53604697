from __future__ import annotations

from services.ocr_worker.engine.layout import Fragment, arrange, mean_confidence
from shared.contracts import Word


def piece(text: str, x: float, y: float, *, width: float = 100, height: float = 20, slope: float = 0.0) -> Fragment:
    box = (x, y, x + width, y + height)
    return Fragment((Word(text=text, confidence=0.5, box=box),), box, slope)


def texts(*pieces: Fragment) -> list[str]:
    return [line.text for line in arrange(pieces)]


def test_neighbours_on_one_row_become_one_line() -> None:
    assert texts(piece("world", 110, 12), piece("hello", 0, 10)) == ["hello world"]


def test_columns_stay_apart_and_rows_go_from_top_to_bottom() -> None:
    assert texts(piece("d", 500, 52), piece("b", 500, 8), piece("c", 0, 50), piece("a", 0, 10)) == ["a", "b", "c", "d"]


def test_a_heading_does_not_swallow_the_note_beside_it() -> None:
    assert texts(piece("HEADING", 0, 0, height=60), piece("note", 105, 20)) == ["HEADING", "note"]


def test_a_tilted_photo_keeps_its_rows() -> None:
    tilt = 0.05
    rows = [
        piece(f"{side}{row}", x, 40 * row + tilt * x, width=300, slope=tilt)
        for row in range(4)
        for side, x in (("l", 0), ("r", 900))
    ]
    assert texts(*rows) == ["l0", "r0", "l1", "r1", "l2", "r2", "l3", "r3"]


def test_a_line_carries_its_words_box_and_confidence() -> None:
    (line,) = arrange([piece("hello", 0, 10), piece("world", 110, 12)])
    assert line.box == (0, 10, 210, 32)
    assert [word.text for word in line.words] == ["hello", "world"]
    assert line.confidence == mean_confidence([line]) == 0.5


def test_nothing_gives_nothing() -> None:
    assert arrange([]) == ()
    assert mean_confidence([]) == 0.0
