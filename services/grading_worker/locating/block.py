"""The answer within a question's block: after its label, or what the print leaves over."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from services.grading_worker.wording import squeeze, strip_accents

from .fragments import Piece
from .labels import find_label

__all__ = ["Printed", "answer_in_block"]

# Line heights between two lines of one answer; a larger gap ends it.
_GAP = 2.5
_POINTS = re.compile(
    r"[(\[]?\s*(?:_+\s*)?/?\s*\b\d{1,3}(?:[.,]5)?\s*(?:points?|pts?\.?|marks?|punkte?|pkt\.?|puntos?|P\.)\s*[)\]]?"
    r"|[(\[]\s*\d{1,2}\s*[)\]]\s*$|\s/\s?\d{1,2}\s*$",
    re.IGNORECASE,
)
_TICK = re.compile(r"^\s*(?:[\[(]\s*[xX✓✔✗☒*•]\s*[\])]|[✓✔☑✗☒→]|[xX](?=\s))\s*")
_EMPTY_BOX = re.compile(r"^\s*(?:\[\s*\]|\(\s*\)|[☐□○◯])\s*")
_FILL = re.compile(r"_+|\.{3,}|…+|-{3,}|[–—]{2,}|·{3,}")
_BLANK_IN_PROMPT = re.compile(r"_{2,}|\.{4,}|…+")
_LEAD = re.compile(r"^[\s:;=]*(?:[-–—>](?=\s*[^\W\d]))?[\s|]*")
_ONLY_PUNCTUATION = re.compile(r"^[\s.,:;'\"`|\-–—_()\[\]*~]*$")


@dataclass(slots=True)
class Printed:
    """What the sheet prints with a question, consumed as it is found, so that an answer repeating it survives."""

    prompt: str
    lines: tuple[str, ...] = ()
    _rest: str = field(init=False)
    _left: list[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self._rest = squeeze(self.prompt)[:4000]
        self._left = [(squeeze(line), line) for line in self.lines if squeeze(line)]

    def after_prompt(self, text: str) -> int:
        """How many characters at the beginning of ``text`` are the prompt's; consumes them."""
        squeezed, at = _mapped(text)
        rest = self._rest
        if not squeezed or not rest:
            return 0
        if rest.startswith(squeezed) or (len(squeezed) >= 4 and squeezed in rest):
            where = rest.find(squeezed)
            self._rest = rest[:where] + rest[where + len(squeezed) :]
            return len(text)
        if squeezed.startswith(rest):
            self._rest = ""
            return _boundary(text, at[len(rest) - 1] + 1)
        if len(squeezed) >= 6 and len(squeezed) <= 1.15 * len(rest):
            hit = fuzz.partial_ratio_alignment(squeezed, rest, score_cutoff=84)
            if hit is not None:
                self._rest = rest[: hit.dest_start] + rest[hit.dest_end :]
                return len(text)
        if len(rest) >= 4 and len(squeezed) > 0.8 * len(rest):
            low, high = int(0.8 * len(rest)), min(len(squeezed), int(1.2 * len(rest)) + 1)
            ends = range(low, high + 1) if high - low < 120 else [e for e in range(low, high + 1) if e % 3 == 0]
            best = min(ends, key=lambda e: (Levenshtein.distance(rest, squeezed[:e]), abs(e - len(rest))), default=0)
            if best and Levenshtein.normalized_similarity(rest, squeezed[:best]) >= 0.8:
                self._rest = ""
                return _boundary(text, at[best - 1] + 1)
        # The end of the prompt in front of the answer, its middle having been misread.
        for size in range(min(len(rest), len(squeezed)), 7, -1):
            if rest.endswith(squeezed[:size]):
                self._rest = ""
                return _boundary(text, at[size - 1] + 1)
        return 0

    def after_lines(self, text: str) -> tuple[int, str | None]:
        """How many characters at the beginning of ``text`` are a printed line, and which; consumes it."""
        squeezed, at = _mapped(text)
        if not squeezed:
            return 0, None
        for n, (line, original) in sorted(enumerate(self._left), key=lambda e: -len(e[1][0])):
            if squeezed.startswith(line):
                end = at[len(line) - 1] + 1
                if end < len(text) and text[end].isalnum() and len(line) < 3:
                    continue
                del self._left[n]
                return _boundary(text, end), original
            head = squeezed[: len(line) + 1]
            if len(line) >= 5 and Levenshtein.normalized_similarity(line, head[: len(line)]) >= 0.8:
                del self._left[n]
                return _boundary(text, at[min(len(line), len(squeezed)) - 1] + 1), original
        return 0, None

    def around_blank(self, text: str) -> tuple[int, int] | None:
        """Where the answer stands in ``text`` when it was written into a gap of the prompt."""
        parts = _BLANK_IN_PROMPT.split(self.prompt)
        if len(parts) != 2:
            return None
        before, after = squeeze(parts[0]), squeeze(parts[1])
        squeezed, at = _mapped(text)
        if len(after) < 3 or len(squeezed) <= len(before) + len(after):
            return None
        head, tail = squeezed[: len(before)], squeezed[len(squeezed) - len(after) :]
        if min(_same(before, head), _same(after, tail)) < 0.85:
            return None
        self._rest = ""
        return (at[len(before) - 1] + 1 if before else 0), at[len(squeezed) - len(after)]


def _same(a: str, b: str) -> float:
    return Levenshtein.normalized_similarity(a, b) if a else 1.0


def _mapped(text: str) -> tuple[str, list[int]]:
    """The squeezed text, and for each of its characters the place in ``text``."""
    out: list[str] = []
    at: list[int] = []
    for i, char in enumerate(text):
        for c in strip_accents(char.casefold()):
            if c.isalnum():
                out.append(c)
                at.append(i)
    return "".join(out), at


def _boundary(text: str, at: int) -> int:
    """``at``, moved behind the punctuation and spaces that close what was printed, or to the end of a word."""
    if 0 < at < len(text) and text[at].isalnum() and text[at - 1].isalnum():
        # A character too many or too few of a misread print: the nearest end of a word within two.
        for shift in (1, -1, 2, -2):
            near = at + shift
            if 0 < near < len(text) and text[near].isspace():
                at = near
                break
    while at < len(text) and (text[at] in "?.:;!)]\"'…_,»" or text[at].isspace()):
        # "? -5" and ". .5" keep the answer's own sign and point.
        if text[at] == "." and text[at + 1 : at + 2].isdigit():
            break
        at += 1
    return at


def answer_in_block(
    pieces: Sequence[Piece], printed: Printed, *, one_line: bool, check: Callable[[], None]
) -> tuple[str, list[Piece], list[str]]:
    """(text, the pieces it stands in, the printed lines that ticks mark) of the answer within a block.

    ``check`` is called at each piece; one piece takes some milliseconds at most.

    The text is empty where there is no answer. A marked line counts where nothing else was written.
    """
    left: list[Piece] = []
    marked: list[tuple[str, Piece]] = []
    label: Piece | None = None
    label_index = len(pieces)
    for n, piece in enumerate(pieces):
        check()
        piece = _without_print(piece, printed, marked)
        found = find_label(piece.text)
        if found is not None:
            label, label_index = piece.cut(found[1]), n
            break
        if piece.text.strip():
            left.append(piece)
    used = (
        _labelled(pieces, label, label_index, left, printed, marked, one_line, check)
        if label is not None
        else _loose(left)
    )
    text = _clean("\n".join(p.text.strip() for p in used))
    if not text and marked:
        return "", [p for _, p in marked], [line for line, _ in marked]
    return text, [p for p in used if _clean(p.text)], []


def _without_print(piece: Piece, printed: Printed, marked: list[tuple[str, Piece]]) -> Piece:
    """``piece`` without the prompt, the printed lines and the points at its beginning."""
    gap = printed.around_blank(piece.text)
    if gap is not None:
        return Piece(piece.fragment, piece.start + gap[0], piece.start + gap[1])
    whole = piece
    if find_label(piece.text[:14]) is None or squeeze(piece.text[:14])[:6] == squeeze(printed.prompt)[:6]:
        piece = piece.cut(printed.after_prompt(piece.text))
    points = _POINTS.match(piece.text.strip())
    if (points and piece.start == whole.start) or (points and points.end() == len(piece.text.strip())):
        piece = piece.cut(piece.text.find(points[0]) + len(points[0])) if points else piece
    for _ in range(30):
        tick = _TICK.match(piece.text)
        box = tick or _EMPTY_BOX.match(piece.text)
        begin = box.end() if box else 0
        length, line = printed.after_lines(piece.text[begin:])
        if line is None:
            break
        if tick:
            marked.append((line, Piece(piece.fragment, piece.start, piece.start + begin + length)))
        piece = piece.cut(begin + length)
    return piece


def _labelled(
    pieces: Sequence[Piece], label: Piece, index: int, left: Sequence[Piece], printed: Printed,
    marked: list[tuple[str, Piece]], one_line: bool, check: Callable[[], None],
) -> list[Piece]:  # fmt: skip
    """The pieces behind a label: the rest of its line, the boxes right of it, and the lines below."""
    used = [label] if _clean(label.text) else []
    beside = [p for p in (*left, *pieces[index + 1 :]) if _right_of(p, label)]
    beside.sort(key=lambda p: p.fragment.box[0])
    # A longer box right of the label may be read as two lines, one above the other.
    used += beside
    if used and one_line:
        return used
    taken = {id(p.fragment) for p in used}
    below = [p for p in pieces[index + 1 :] if id(p.fragment) not in taken]
    last = (used or [label])[-1]
    for piece in below:
        check()
        piece = _without_print(piece, printed, marked) if marked or printed.lines else piece
        if find_label(piece.text) is not None:
            break
        if not _clean(piece.text) or _POINTS.fullmatch(piece.text.strip()):
            continue
        if not _continues(last, piece):
            break
        used.append(piece)
        last = piece
        if one_line:
            break
    return used


def _right_of(piece: Piece, label: Piece) -> bool:
    a, b = piece.fragment, label.fragment
    if a is b or a.page != b.page or not _clean(piece.text) or _POINTS.fullmatch(piece.text.strip()):
        return False
    width = b.box[2] - b.box[0]
    per_char = width / max(1, len(b.text))
    label_end = b.box[0] + per_char * label.start
    if a.box[0] < label_end - 0.1 * width:
        return False
    overlap = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    if overlap >= 0.3 * min(a.height, b.height):
        return True
    middle = abs((a.box[1] + a.box[3]) - (b.box[1] + b.box[3])) / 2
    # Slightly above or below: handwriting does not keep to the line, a further line of print does.
    return middle <= 0.8 * max(a.height, b.height) and a.box[0] >= b.box[2] - 0.1 * width


def _continues(last: Piece, piece: Piece) -> bool:
    if piece.fragment.page != last.fragment.page:
        return True
    height = median((last.fragment.height, piece.fragment.height))
    return piece.fragment.box[1] - last.fragment.box[3] <= _GAP * height


def _loose(left: Sequence[Piece]) -> list[Piece]:
    """Without a label: what is left over, up to the first wide gap."""
    used: list[Piece] = []
    for piece in left:
        text = piece.text
        # A prompt that the key does not have ends with its question mark.
        question = text.rfind("? ") if not used else -1
        if question > 8:
            piece = piece.cut(question + 1)
        elif not used and text.rstrip().endswith("?") and len(text.split()) > 3:
            continue
        if not _clean(piece.text):
            continue
        if used and not _continues(used[-1], piece):
            break
        used.append(piece)
    return used


def _clean(text: str) -> str:
    """Without fill lines and leading marks; empty where nothing but punctuation is left."""
    lines = []
    for line in text.split("\n"):
        line = _LEAD.sub("", _FILL.sub(" ", line), count=1)
        line = " ".join(line.split())
        if not _ONLY_PUNCTUATION.match(line):
            lines.append(line)
    return "\n".join(lines)
