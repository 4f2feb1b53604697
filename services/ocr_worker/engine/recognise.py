"""RapidOCR (PP-OCRv6 small, ONNX) on one thread: where text is, what it says, how sure that is. Child only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.contracts import Line, Word

from .layout import Fragment, arrange
from .limits import MAX_LONG_SIDE
from .pages import Rgb

__all__ = ["Reading", "Recogniser", "engine_parameters"]

# Long side given to the detector. 960 is enough for handwriting; small print needs more (FACTS: 0.93 → 0.95 at 1600).
DETECTOR_SIDE: Final = 1280
# Below this a line is noise: ruling, texture, a smudge. 0.5, the default of RapidOCR, discards handwriting.
_MIN_CONFIDENCE: Final = 0.1

# Orientation. A sound page reads above this; only below it are other orientations tried, on the widest crops.
_READS_WELL: Final = 0.80
_PROBES: Final = 6
_CLEARLY_BETTER: Final = 0.08
_SIDEWAYS_SHARE: Final = 0.6
_TALL: Final = 1.5  # RapidOCR turns crops taller than this times their width

# A uniform page: no stroke darker or lighter than paper noise.
_BLANK_RANGE: Final = 12

_Quad = NDArray[np.float32]  # 4 × (x, y): top left, top right, bottom right, bottom left of the text


def engine_parameters() -> dict[str, Any]:
    """RapidOCR's parameters as we run it; the benchmark's bare loop uses the same."""
    return {
        "Global.use_cls": False,
        "Global.text_score": _MIN_CONFIDENCE,
        "Global.max_side_len": MAX_LONG_SIDE,
        "Global.log_level": "critical",
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "EngineConfig.onnxruntime.enable_cpu_mem_arena": False,
        "Det.limit_type": "max",
        "Det.limit_side_len": DETECTOR_SIDE,
        "Det.box_thresh": 0.3,
    }


@dataclass(frozen=True, slots=True)
class Reading:
    """``rotation`` degrees clockwise have been applied to ``image``; boxes are in its pixels."""

    image: Rgb
    rotation: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class _Text:
    """One crop as decoded: characters other than spaces with their place along the crop (0..1) and confidence."""

    text: str
    confidence: float
    places: tuple[float, ...]
    confidences: tuple[float, ...]


class Recogniser:
    """Loads both models (about a second). Not thread-safe; one per process."""

    def __init__(self) -> None:
        import cv2
        from rapidocr import RapidOCR
        from rapidocr.main import RapidOCRError

        cv2.setNumThreads(1)
        logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
        self._cv2 = cv2
        self._nothing_found = RapidOCRError
        self._engine = RapidOCR(params=engine_parameters())
        self._engine.return_word_box = True
        self.read(_specimen())

    def read(self, image: Rgb) -> Reading:
        """Finds, orients and reads the text of a page. A blank page gives no lines."""
        if int(image.max(initial=0)) - int(image.min(initial=255)) <= _BLANK_RANGE:
            return Reading(image, 0, ())
        rotation = 0
        quads, crops = self._detect(image)
        if _sideways(quads):
            quarter = self._quarter(quads, crops)
            if quarter:
                rotation = quarter
                image = _turned(image, quarter)
                quads, crops = self._detect(image)
        texts = self._decode(crops)
        if rotation == 0 and texts and _mean(texts) < _READS_WELL and self._upside_down(crops, texts):
            rotation = 180
            image = _turned(image, 180)
            quads, crops = self._detect(image)
            texts = self._decode(crops)
        fragments = [
            fragment
            for quad, text in zip(quads, texts, strict=True)
            if text.confidence >= _MIN_CONFIDENCE and (fragment := _fragment(quad, text)) is not None
        ]
        return Reading(image, rotation, arrange(fragments))

    def _detect(self, image: Rgb) -> tuple[list[_Quad], list[Any]]:
        record: dict[str, Any] = {}
        bgr = self._cv2.cvtColor(image, self._cv2.COLOR_RGB2BGR)
        try:
            crops, found = self._engine.detect_and_crop(bgr, record)
        except self._nothing_found:
            return [], []
        offset = np.array([record["padding_1"]["left"], record["padding_1"]["top"]], dtype=np.float32)
        height, width = image.shape[:2]
        bounds = np.array([width, height], dtype=np.float32)
        boxes = np.asarray(found.boxes, dtype=np.float32)
        quads = [np.clip(box - offset, 0, bounds) for box in boxes]
        return quads, crops

    def _decode(self, crops: Sequence[Any]) -> list[_Text]:
        if not crops:
            return []
        try:
            found = self._engine.recognize_txt(list(crops))
        except self._nothing_found:
            return [_Text("", 0.0, (), ()) for _ in crops]
        decoded: Any = found
        return [
            _text(text, float(score), info)
            for text, score, info in zip(decoded.txts, decoded.scores, decoded.word_results, strict=True)
        ]

    def _quarter(self, quads: Sequence[_Quad], crops: Sequence[Any]) -> int:
        """Degrees clockwise that make a sideways page upright: 90 or 270.

        RapidOCR has turned the tall crops by 90° counter-clockwise already, so those that read well as they are
        belong to a page that needs 270° clockwise.
        """
        probes = [crops[i] for i in _longest(quads) if _is_tall(quads[i])]
        as_cut = _mean(self._decode(probes))
        flipped = _mean(self._decode([self._flip(crop) for crop in probes]))
        return 270 if as_cut >= flipped else 90

    def _upside_down(self, crops: Sequence[Any], texts: Sequence[_Text]) -> bool:
        order = sorted(range(len(crops)), key=lambda i: -crops[i].shape[1])[:_PROBES]
        flipped = _mean(self._decode([self._flip(crops[i]) for i in order]))
        return flipped > _mean([texts[i] for i in order]) + _CLEARLY_BETTER

    def _flip(self, crop: Any) -> Any:
        return self._cv2.rotate(crop, self._cv2.ROTATE_180)


def _turned(image: Rgb, degrees_clockwise: int) -> Rgb:
    return np.ascontiguousarray(np.rot90(image, k=-degrees_clockwise // 90))


def _sides(quad: _Quad) -> tuple[float, float]:
    return float(np.linalg.norm(quad[0] - quad[1])), float(np.linalg.norm(quad[0] - quad[3]))


def _is_tall(quad: _Quad) -> bool:
    width, height = _sides(quad)
    return height >= _TALL * width


def _longest(quads: Sequence[_Quad]) -> list[int]:
    tall = [i for i in range(len(quads)) if _is_tall(quads[i])]
    return sorted(tall, key=lambda i: -max(_sides(quads[i])))[:_PROBES]


def _sideways(quads: Sequence[_Quad]) -> bool:
    """Most of the text, by length, runs up or down the page."""
    total = sum(max(_sides(quad)) for quad in quads)
    return total > 0 and sum(max(_sides(quad)) for quad in quads if _is_tall(quad)) > _SIDEWAYS_SHARE * total


def _mean(texts: Sequence[_Text]) -> float:
    letters = sum(len(text.places) for text in texts)
    return sum(sum(text.confidences) for text in texts) / letters if letters else 0.0


def _text(text: str, score: float, info: Any) -> _Text:
    columns = [column for word in info.word_cols or () for column in word]
    length = float(info.line_txt_len or 0)
    printed = [index for index, character in enumerate(text) if not character.isspace()]
    confidences = list(info.confs or ())
    if not printed or length <= 0 or len(columns) != len(printed) or len(confidences) != len(text):
        # Nothing decoded, or a decoder that keeps no places: share the width out by characters.
        count = max(1, len(text))
        return _Text(text, score, tuple((i + 0.5) / count for i in printed), tuple(score for _ in printed))
    return _Text(
        text,
        score,
        tuple(min(1.0, (column + 0.5) / length) for column in columns),
        tuple(min(1.0, max(0.0, float(confidences[i]))) for i in printed),
    )


def _fragment(quad: _Quad, text: _Text) -> Fragment | None:
    words: list[Word] = []
    spans: list[tuple[str, float, float, float]] = []  # text, first and last place, confidence
    at = 0
    for token in text.text.split():
        places = text.places[at : at + len(token)]
        certain = text.confidences[at : at + len(token)]
        at += len(token)
        spans.append((token, places[0], places[-1], sum(certain) / len(certain)))
    if not spans:
        return None
    pitch = 1.0 / max(4, len(text.text))  # mean width of a character
    tall = _is_tall(quad)
    for index, (token, first, last, confidence) in enumerate(spans):
        start = 0.0 if index == 0 else max(first - pitch / 2, (spans[index - 1][2] + first) / 2)
        end = 1.0 if index == len(spans) - 1 else min(last + pitch / 2, (last + spans[index + 1][1]) / 2)
        words.append(Word(text=token, confidence=round(confidence, 4), box=_slice(quad, start, end, tall)))
    dx, dy = quad[1] - quad[0]
    slope = float(dy / dx) if not tall and abs(dx) > 1 else 0.0
    return Fragment(tuple(words), _slice(quad, 0.0, 1.0, tall), slope)


def _slice(quad: _Quad, start: float, end: float, tall: bool) -> tuple[float, float, float, float]:
    """The upright box around the part of ``quad`` between two places along its text."""
    top_left, top_right, bottom_right, bottom_left = quad
    if tall:  # read from top to bottom
        edges = ((top_left, bottom_left), (top_right, bottom_right))
    else:
        edges = ((top_left, top_right), (bottom_left, bottom_right))
    points = np.array([a + (b - a) * place for a, b in edges for place in (start, end)])
    x0, y0 = points.min(axis=0)
    x1, y1 = points.max(axis=0)
    return (round(float(x0), 1), round(float(y0), 1), round(float(x1), 1), round(float(y1), 1))


def _specimen() -> Rgb:
    """A small page with a stroke on it: reading it once loads both models and warms their code."""
    page = np.full((160, 320, 3), 255, dtype=np.uint8)
    page[60:100, 40:280:12] = 0
    page[60:64, 40:280] = 0
    return page
