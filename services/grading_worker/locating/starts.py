"""Where each question of a key begins: by its number, by its printed prompt, in the order of the key."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from services.grading_worker.wording import squeeze
from shared.contracts import AnswerKey

from .fragments import Fragment
from .labels import find_label

__all__ = ["Heads", "Start", "find_starts"]

_WORD = re.compile(
    r"^[\s(\[#*•]*(?P<word>(?:question|quest|frage|aufgabe|übung|exercise|exercice|pregunta|ejercicio|problem|task|nr|no|nº|n°|q|f|p)\s*"
    r"[.:#°]?\s*(?=[\dIlOo]|[a-z]\b))?",
    re.IGNORECASE,
)
_CONFUSED = str.maketrans({"l": "1", "I": "1", "|": "1", "!": "1", "i": "1", "O": "0", "o": "0", "S": "5", "s": "5",
                           "B": "8", "Z": "2", "z": "2", "g": "9", "q": "9"})  # fmt: skip
_MARKS = ".):]"
# Squeezed characters of a prompt that are compared; more tells no more.
_COMPARED = 60
_PROMPT_ALONE = 0.75
# Prompts that one line is compared with, those that share most of its beginning.
_RIVALS = 8


@dataclass(frozen=True, slots=True)
class Start:
    """A question begins at fragment ``index``; its own text from character ``offset`` on."""

    index: int
    offset: int
    score: float


@dataclass(frozen=True, slots=True)
class _Chain:
    """A choice of starts, linked backwards, with the sum of its scores."""

    score: float
    question: int = -1
    start: Start | None = None
    before: _Chain | None = None


class Heads:
    """Recognises the ids of a key at the beginning of a line."""

    def __init__(self, key: AnswerKey) -> None:
        self._ids: dict[str, int] = {}
        self._letters: dict[str, list[int]] = {}
        for i, question in enumerate(key.questions):
            self._ids[question.id.casefold()] = i
            sub = re.fullmatch(r"\d+[.\-]?([a-z])", question.id.casefold())
            if sub:
                self._letters.setdefault(sub[1], []).append(i)
        self._longest = max(map(len, self._ids)) + 1

    def read(self, text: str) -> list[tuple[int, float, int]]:
        """(question, strength, offset of what follows) for each id that ``text`` may begin with."""
        lead = _WORD.match(text)
        begin = lead.end() if lead else 0
        named = bool(lead and lead["word"])
        body = text[begin : begin + 24]
        for n in range(min(self._longest, len(body)), 0, -1):
            head = body[:n]
            if not head[-1].isalnum() or not head[0].isalnum():
                continue
            plain = head.replace(" ", "").casefold()
            question = self._ids.get(plain)
            doubt = 0.0
            if question is None:
                question, doubt = self._ids.get(head.replace(" ", "").translate(_CONFUSED).casefold()), 0.4
            if question is None:
                continue
            strength, length = _after(body[n:], plain)
            strength = strength + 0.3 if named and strength >= 0 else strength
            if strength - doubt > 0 and (not doubt or length):
                return [(question, strength - doubt, begin + n + length), *self._sub(body, begin)]
        return self._sub(body, begin)

    def _sub(self, body: str, begin: int) -> list[tuple[int, float, int]]:
        """ "a)" for the question "2a" whose number stands further up."""
        m = re.match(r"([a-z])\s?[).]\s*", body)
        return [(q, 0.35, begin + m.end()) for q in self._letters.get(m[1], [])] if m else []

    def numbered(self, text: str) -> bool:
        """Whether ``text`` begins with an id of the key and a mark after it."""
        return any(strength >= 0.9 for _, strength, _ in self.read(text))


def _after(rest: str, head: str) -> tuple[float, int]:
    """How strongly what follows a number says that it is a question's, and how many characters of it are its mark."""
    if not rest:
        return 0.5, 0
    m = re.match(r"\s?[.):\]]+\s*", rest)
    if m:
        following = rest[m.end() :]
        # "1.5 m" is a number, not question 1.
        if "." in m[0] and not m[0].endswith(" ") and following[:1].isdigit():
            return 0.15, m.end()
        return 1.0, m.end()
    if rest[0].isspace():
        m = re.match(r"\s+[-–]?\s*", rest)
        return 0.45, m.end() if m else 1
    if head.isdigit() and rest[0].isalpha() and rest[0].isupper():
        return 0.4, 0
    return -1.0, 0


def find_starts(key: AnswerKey, fragments: Sequence[Fragment], check: Callable[[], None]) -> list[Start | None]:
    """For each question of the key where it begins, or None; strictly in reading order.

    The sequence with the highest sum of evidence is taken: a number in an answer loses against the
    number beside the printed prompt, and fits less into the order of the key. ``check`` is called all along.
    """
    heads = Heads(key)
    following = _following(fragments)
    check()
    squeezed = (squeeze(q.prompt)[:_COMPARED] for q in key.questions)
    prompts = {i: prompt for i, prompt in enumerate(squeezed) if len(prompt) >= 4}
    candidates: list[dict[int, Start]] = [{} for _ in key.questions]
    printed = _by_prompt(prompts, fragments, following, candidates, check)
    reads = [heads.read(f.text) for f in fragments]
    check()
    margin = _margins(fragments, reads)
    labelled = _labelled(fragments, reads)
    for index, read in enumerate(reads):
        check()
        for question, strength, offset in read:
            fragment = fragments[index]
            score = strength if fragment.first or strength > 1 else 0.4 * strength
            score += 0.2 * (index in margin) + 0.3 * (index in labelled)
            prompt = prompts.get(question)
            if prompt is not None:
                text = squeeze(fragment.text[offset:]) + (following[index + 1] if index + 1 < len(fragments) else "")
                similarity = _alike(prompt, text)
                if similarity >= 0.6:
                    score += 2 * similarity * min(1.0, len(prompt) / 10)
                elif question in printed:
                    score *= 0.3
            known = candidates[question].get(index)
            if known is None or known.score < score:
                candidates[question][index] = Start(index, offset, score)
    return _best_sequence(candidates, len(fragments), check)


def _following(fragments: Sequence[Fragment]) -> list[str]:
    """The squeezed text from each fragment on, as long as a prompt is compared."""
    own = [squeeze(f.text) for f in fragments]
    out = []
    for i in range(len(own)):
        text = own[i]
        for j in range(i + 1, min(i + 5, len(own))):
            if len(text) >= _COMPARED:
                break
            text += own[j]
        out.append(text[:_COMPARED])
    return out


def _alike(prompt: str, text: str) -> float:
    """Similarity in [0, 1] of the beginnings; 0 where the text is too short to say."""
    text = text[: len(prompt)]
    if len(text) < min(len(prompt), 4):
        return 0.0
    return Levenshtein.normalized_similarity(prompt, text)


def _by_prompt(
    prompts: dict[int, str],
    fragments: Sequence[Fragment],
    following: Sequence[str],
    candidates: list[dict[int, Start]],
    check: Callable[[], None],
) -> set[int]:
    """Adds the places where a prompt stands without a readable number; yields the questions whose prompt is printed."""
    by_gram: dict[str, set[int]] = {}
    for question, prompt in prompts.items():
        if len(prompt) >= 8:
            for gram in _grams(prompt):
                by_gram.setdefault(gram, set()).add(question)
    printed: set[int] = set()
    for index, text in enumerate(following):
        check()
        if len(text) < 8:
            continue
        shared = Counter(question for gram in _grams(text) for question in by_gram.get(gram, ()))
        for question, _ in shared.most_common(_RIVALS):
            # A number that could not be read is at most two characters in front.
            similarity, skip = max((_alike(prompts[question], text[skip:]), -skip) for skip in (0, 1, 2))
            if similarity < _PROMPT_ALONE:
                continue
            printed.add(question)
            score = 1.6 * similarity + 0.05 * skip
            known = candidates[question].get(index)
            if known is None or known.score < score:
                candidates[question][index] = Start(index, _skip(fragments[index].text, -skip), score)
    return printed


def _grams(text: str) -> set[str]:
    """The runs of three characters in the beginning of a text, by which alike beginnings are found."""
    return {text[i : i + 3] for i in range(min(len(text), 24) - 2)}


def _skip(text: str, count: int) -> int:
    """The offset behind the first ``count`` letters or digits and the marks after them."""
    at = 0
    while count and at < len(text):
        count -= text[at].isalnum()
        at += 1
    while at and at < len(text) and (text[at].isspace() or text[at] in _MARKS):
        at += 1
    return at


def _margins(fragments: Sequence[Fragment], reads: Sequence[list[tuple[int, float, int]]]) -> set[int]:
    """The numbered fragments that stand at a margin where most numbers of their page stand."""
    out: set[int] = set()
    by_page: dict[int, list[int]] = {}
    for i, read in enumerate(reads):
        if any(strength >= 0.4 for _, strength, _ in read):
            by_page.setdefault(fragments[i].page, []).append(i)
    for numbered in by_page.values():
        width = max(fragments[i].box[2] for i in numbered) or 1.0
        leftmost = min(fragments[i].box[0] for i in numbered)
        out.update(i for i in numbered if fragments[i].box[0] - leftmost <= 0.025 * max(width, 400))
    return out


def _labelled(fragments: Sequence[Fragment], reads: Sequence[list[tuple[int, float, int]]]) -> set[int]:
    """The numbered fragments that have an "Answer:" before the next numbered one."""
    out: set[int] = set()
    current: int | None = None
    for i, fragment in enumerate(fragments):
        if reads[i]:
            current = i
        if current is not None and find_label(fragment.text) is not None:
            out.add(current)
            current = None
    return out


def _best_sequence(candidates: list[dict[int, Start]], length: int, check: Callable[[], None]) -> list[Start | None]:
    """The strictly increasing choice of starts with the highest sum of scores; ties go to the earlier place."""
    # best[f]: the best choice so far that ends before fragment f.
    best: list[_Chain] = [_Chain(0.0)] * (length + 1)
    for question, places in enumerate(candidates):
        check()
        updated = list(best)
        for index, start in places.items():
            total = best[index].score + start.score
            if total > updated[index + 1].score + 1e-9:
                updated[index + 1] = _Chain(total, question, start, best[index])
        for f in range(1, length + 1):
            if updated[f - 1].score > updated[f].score:
                updated[f] = updated[f - 1]
        best = updated
    out: list[Start | None] = [None] * len(candidates)
    link: _Chain | None = best[length]
    while link is not None:
        if link.start is not None:
            out[link.question] = link.start
        link = link.before
    return out
