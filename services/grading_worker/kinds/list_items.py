"""Several items, in order or not."""

from __future__ import annotations

import re

from services.grading_worker.wording import MatchQuality, best_match, find_phrase, tokens
from shared.contracts import AnswerKey, ListQuestion, MatchKind

from .base import Answer, Kind, Verdict, points_text

MAX_ITEMS = 80
_BULLET = re.compile(r"^\s*(?:[•◦▪●○*·–—\-]+|[(\[]?\d{1,2}\s?[.)\]:]|[(\[]?[a-zA-Z][)\]])\s*")
_INLINE_NUMBER = re.compile(r"(?:(?<=\s)|^)[(\[]?\d{1,2}[.)]\s*(?=[^\W\d])")
_HARD = re.compile(r"[;\n•◦▪●]|,(?!\d)|\s[–—-]\s|→|->")
_SOFT = re.compile(r"\s+(?:and|und|et|y|e|sowie|puis|then|dann)\s+|\s*[&+/]\s*", re.IGNORECASE)


class ListKind(Kind[ListQuestion]):
    name = "list"

    def expected(self, question: ListQuestion, key: AnswerKey) -> str:
        text = ", ".join(forms[0] for forms in question.items)
        if question.required is not None and question.required < len(question.items):
            text = f"{question.required} of: {text}"
        return f"{text} (in this order)" if question.ordered else text

    def judge(self, question: ListQuestion, answer: Answer, key: AnswerKey) -> Verdict:
        given = split_items(answer, question.items)
        needed = question.required or len(question.items)
        qualities = [
            [
                best_match(g, answer.against(forms), lenient=True, was_read=answer.was_read).quality
                for forms in question.items
            ]
            for g in given
        ]
        pairs = _in_order(qualities) if question.ordered else _assign(qualities)
        hits = min(len(pairs), needed)
        used = [qualities[g][i] for g, i in pairs]
        altered = any(q is MatchQuality.CONFUSABLE for q in used)
        slips = any(q is MatchQuality.SPELLING for q in used)
        matched = {g for g, _ in pairs}
        near = any(max(row, default=0) is MatchQuality.NEAR for g, row in enumerate(qualities) if g not in matched)
        doubt: str | None = None
        if hits < needed and near:
            doubt = "An item is almost an accepted one."
        elif len(given) > needed and hits < len(given) and hits:
            doubt = "More items are given than asked for." if len(given) > needed + 1 or hits < needed else None
        sure = 0.97 - 0.1 * slips - (0.3 if altered or doubt else 0)
        if hits == needed:
            match: MatchKind = (
                "close" if altered or slips else "exact" if all(q is MatchQuality.EXACT for q in used) else "equivalent"
            )
            order = " in the right order" if question.ordered else ""
            return Verdict(
                1, match, f"Right: all {needed} are there{order}." if needed > 1 else "Right.", sure, doubt, altered
            )
        if not hits:
            return Verdict(0, "wrong", "None of the expected items is here.", 0.55 if doubt else 0.9, doubt)
        if question.ordered and len(_assign(qualities)) > hits:
            feedback = f"{points_text(hits, needed)} are right and in their place: check the order."
        else:
            feedback = f"{points_text(hits, needed)} are right."
        return Verdict(hits / needed, "partial", feedback, min(sure, 0.88), doubt, altered)


def split_items(answer: Answer, items: tuple[tuple[str, ...], ...]) -> list[str]:
    """The items of a written list, at most MAX_ITEMS.

    Lines, bullets, commas and semicolons always part; "and", "/" and plain spaces part only what is
    not itself one accepted item ("salt and pepper").
    """
    every_form = [form for forms in items for form in forms][:400]
    out: list[str] = []
    for line in answer.text[:4000].splitlines():
        line = _INLINE_NUMBER.sub(" ; ", _BULLET.sub("", line))
        for piece in _HARD.split(line):
            piece = _BULLET.sub("", piece).strip(" .:")
            piece = re.sub(r"^(?:and|und|et|y)\s+", "", piece, flags=re.IGNORECASE)
            if not any(c.isalnum() for c in piece):
                continue
            out.extend(_soft_split(piece, every_form, answer))
            if len(out) >= MAX_ITEMS:
                return out[:MAX_ITEMS]
    return out


def _soft_split(piece: str, forms: list[str], answer: Answer) -> list[str]:
    if (
        best_match(piece, answer.against(forms), lenient=True, was_read=answer.was_read).quality
        >= MatchQuality.SPELLING
    ):
        return [piece]
    out: list[str] = []
    for part in _SOFT.split(piece):
        if not part.strip():
            continue
        if (
            best_match(part, answer.against(forms), lenient=True, was_read=answer.was_read).quality
            >= MatchQuality.CONFUSABLE
        ):
            out.append(part.strip())
        else:
            out.extend(_run_together(part.strip(), forms, answer))
    return out


def _run_together(part: str, forms: list[str], answer: Answer) -> list[str]:
    """Items with nothing but spaces between them, where at least one is known; else the part as it is."""
    words = tokens(part)
    if not 2 <= len(words) <= 40:
        return [part]
    found: list[tuple[int, int]] = []
    for form in answer.against(forms):
        place = find_phrase(words, form, lenient=True, was_read=answer.was_read)
        if place is not None and not any(a < place[1] and place[0] < b for a, b in found):
            found.append(place[:2])
    if not found:
        return [part]
    out: list[str] = []
    at = 0
    for start, end in sorted(found):
        if start > at:
            out.append(" ".join(words[at:start]))
        out.append(" ".join(words[start:end]))
        at = end
    if at < len(words):
        out.append(" ".join(words[at:]))
    return out


def _assign(qualities: list[list[MatchQuality]]) -> list[tuple[int, int]]:
    """The largest assignment of given items to expected ones (Kuhn's augmenting paths), better edges first."""
    owner: dict[int, int] = {}

    def place(g: int, seen: set[int]) -> bool:
        for i in sorted(range(len(qualities[g])), key=lambda i: -qualities[g][i]):
            if qualities[g][i] < MatchQuality.CONFUSABLE or i in seen:
                continue
            seen.add(i)
            if i not in owner or place(owner[i], seen):
                owner[i] = g
                return True
        return False

    for g in sorted(range(len(qualities)), key=lambda g: -max(qualities[g], default=0)):
        place(g, set())
    return sorted((g, i) for i, g in owner.items())


def _in_order(qualities: list[list[MatchQuality]]) -> list[tuple[int, int]]:
    """The longest run of matches that keeps both orders, so that one item left out costs only itself."""
    rows, columns = len(qualities), len(qualities[0]) if qualities else 0
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    for g in range(rows - 1, -1, -1):
        for i in range(columns - 1, -1, -1):
            hit = best[g + 1][i + 1] + 1 if qualities[g][i] >= MatchQuality.CONFUSABLE else 0
            best[g][i] = max(hit, best[g + 1][i], best[g][i + 1])
    pairs: list[tuple[int, int]] = []
    g = i = 0
    while g < rows and i < columns:
        if qualities[g][i] >= MatchQuality.CONFUSABLE and best[g][i] == best[g + 1][i + 1] + 1:
            pairs.append((g, i))
            g, i = g + 1, i + 1
        elif best[g][i] == best[g + 1][i]:
            g += 1
        else:
            i += 1
    return pairs


KIND = ListKind()
