"""What a flatbed scanner and a phone do to a sheet of paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pen import Layer, smooth_noise
from sheet import DPI, SheetPage

__all__ = ["Shot", "photograph", "scan"]

SCAN_DPI = 200
_F = NDArray[Any]  # float32 throughout; OpenCV says no more than "some array"


def _mm(mm: float, dpi: int) -> int:
    return round(mm * dpi / 25.4)


def _halved(layer: Layer) -> _F:
    small = cv2.resize(layer, None, fx=SCAN_DPI / DPI, fy=SCAN_DPI / DPI, interpolation=cv2.INTER_AREA)
    out: _F = small.astype(np.float32) / 255
    return out


def _noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> _F:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)


def scan(page: SheetPage, behind: SheetPage | None, skew: float, rng: np.random.Generator) -> Layer:
    """A grey A4 scan at ``SCAN_DPI``, turned by ``skew`` degrees; the print of ``behind`` shines through."""
    toner, ink = _halved(page.toner), _halved(page.ink)
    height, width = toner.shape
    fibres = smooth_noise((height, width), 2.0, rng) * 1.1 + smooth_noise((height, width), 14.0, rng) * 0.8
    paper: _F = 236 + smooth_noise((height, width), 700.0, rng) * 1.8 + fibres
    if behind is not None:
        through = cv2.GaussianBlur(np.maximum(_halved(behind.toner), _halved(behind.ink))[:, ::-1], (0, 0), 3.0)
        paper -= 7.0 * through
    worn = np.clip(0.93 + 0.05 * smooth_noise((height, width), 5.0, rng), 0, 1)  # toner is never quite solid
    image: _F = paper * (1 - 0.86 * toner * worn) * (1 - 0.70 * ink)
    lid: _F = np.full((height, width), 222, np.float32) + smooth_noise((height, width), 900.0, rng) * 2
    sheet: _F = np.ones((height, width), np.float32)
    for y_mm in (108.5, 188.5):  # ISO 838: two holes of 6 mm, 80 mm apart, 12 mm from the edge
        cv2.circle(sheet, (_mm(12, SCAN_DPI), _mm(y_mm, SCAN_DPI)), _mm(3, SCAN_DPI), 0, -1, cv2.LINE_AA)
    slip = rng.normal(0, 5, 2)
    turn: _F = cv2.getRotationMatrix2D((width / 2, height / 2), skew, 1.0)
    turn[:, 2] += slip
    image = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    sheet = cv2.warpAffine(sheet, turn, (width, height), borderValue=0)
    shade = cv2.GaussianBlur(np.roll(sheet, (4, 3), (0, 1)), (0, 0), 3.5)  # the edge keeps light off the lid
    image = sheet * image + (1 - sheet) * lid * (1 - 0.34 * shade)
    image *= 1 - 0.09 * np.exp(-np.arange(width, dtype=np.float32) / 55)[None, :]  # lid stands open at the spine
    for _ in range(rng.integers(14, 26)):  # dust on the glass
        at = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        cv2.circle(image, at, int(rng.integers(0, 2)), float(rng.uniform(120, 205)), -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), 0.65) + _noise((height, width), 1.7, rng)
    out: Layer = np.clip(image, 0, 255).astype(np.uint8)
    return out


@dataclass(frozen=True)
class Shot:
    """One photo of a page. ``corners``: page corners in the picture as fractions, clockwise from the top left."""

    corners: tuple[tuple[float, float], ...]
    light: tuple[float, float, float]  # blue, green, red gain
    bow: float  # how far the paper's middle stands off the table, as a fraction of its width
    ink: tuple[float, float, float] = (0.30, 0.66, 0.80)  # share of blue, green, red a full stroke swallows
    shadow: tuple[tuple[float, float], ...] = ()  # outline of what stands in the light, as fractions
    blur: float = 0.7
    falloff: float = 0.16
    grain: float = 2.6


PHOTO = (1200, 1600)


def _desk(width: int, height: int, rng: np.random.Generator) -> _F:
    """A wooden table top, grain running across."""
    rings: _F = smooth_noise((height, width // 16 + 8), 26.0, rng)
    rings = cv2.resize(rings, (width, height), interpolation=cv2.INTER_CUBIC)
    ys = np.arange(height, dtype=np.float32)[:, None]
    veins = np.sin(ys / 21.0 + rings * 2.4 + smooth_noise((height, width), 500.0, rng) * 2.0)
    pores = cv2.resize(_noise((height, width // 24 + 1), 1.0, rng), (width, height), interpolation=cv2.INTER_LINEAR)
    tone = 1.0 + 0.055 * veins + 0.045 * pores + 0.03 * smooth_noise((height, width), 300.0, rng)
    out: _F = tone[..., None] * np.array([74, 112, 158], np.float32)
    return out


def _paper(page: SheetPage, shot: Shot, rng: np.random.Generator) -> _F:
    toner, ink = _halved(page.toner), _halved(page.ink)
    height, width = toner.shape
    base = 232 + smooth_noise((height, width), 3.0, rng) * 1.0 + smooth_noise((height, width), 500.0, rng) * 1.5
    colour: _F = base[..., None] * np.array([0.985, 1.0, 1.0], np.float32)
    colour *= 1 - 0.85 * toner[..., None]
    colour *= 1 - ink[..., None] * np.array(shot.ink, np.float32)
    # The sheet was folded across once and lies a little bowed: lines of print bend, light slides over it.
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    arch = np.sin(np.pi * xs / width)
    bent: _F = cv2.remap(
        colour,
        xs + shot.bow * width * 0.25 * np.sin(2 * np.pi * ys / height),
        ys + shot.bow * width * (arch - 0.5),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    slope = np.cos(np.pi * xs / width + 0.4) * shot.bow * 3.0
    fold = np.exp(-(((ys - height * 0.497) / 5.0) ** 2)) * 0.06
    fold -= np.exp(-(((ys - height * 0.497 - 14) / 16.0) ** 2)) * 0.025
    out: _F = bent * (1 - slope - fold)[..., None]
    return out


def photograph(page: SheetPage, shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A phone's photo of the page on a table, upright, in blue-green-red."""
    width, height = PHOTO[0] * 2, PHOTO[1] * 2
    paper = _paper(page, shot, rng)
    tall, wide = paper.shape[:2]
    corners = np.array([(x * width, y * height) for x, y in shot.corners], np.float32)
    flat = np.array([(0, 0), (wide, 0), (wide, tall), (0, tall)], np.float32)
    lens = cv2.getPerspectiveTransform(flat, corners)
    mask: _F = cv2.warpPerspective(np.ones((tall, wide), np.float32), lens, (width, height), flags=cv2.INTER_LINEAR)
    seen = cv2.warpPerspective(paper, lens, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    contact: _F = cv2.GaussianBlur(np.roll(mask, (14, 10), (0, 1)), (0, 0), 16.0)
    image = _desk(width, height, rng) * (1 - 0.45 * contact)[..., None]
    image = image * (1 - mask[..., None]) + np.clip(seen, 0, 255) * mask[..., None]
    image = cv2.resize(image, PHOTO, interpolation=cv2.INTER_AREA)

    xs, ys = np.meshgrid(np.linspace(0, 1, PHOTO[0], dtype=np.float32), np.linspace(0, 1, PHOTO[1], dtype=np.float32))
    lit = 1.03 - shot.falloff * (0.75 * xs + 0.55 * ys)  # a lamp at the upper left
    lit *= 1 - 0.16 * ((xs - 0.5) ** 2 + (ys - 0.5) ** 2) * 2  # and the lens darkens its corners
    if shot.shadow:
        cast = np.zeros((PHOTO[1], PHOTO[0]), np.float32)
        outline = np.array([(x * PHOTO[0], y * PHOTO[1]) for x, y in shot.shadow], np.float32)
        cv2.fillPoly(cast, [outline.astype(np.int32)], 1.0, cv2.LINE_AA)
        near, far = cv2.GaussianBlur(cast, (0, 0), 16.0), cv2.GaussianBlur(cast, (0, 0), 48.0)
        lit *= 1 - 0.42 * (near * ys + far * (1 - ys))  # softer the further it falls
    image = image * lit[..., None] * np.array(shot.light, np.float32)
    image = cv2.GaussianBlur(image, (0, 0), shot.blur)
    luma = _noise((PHOTO[1], PHOTO[0], 1), shot.grain, rng)
    chroma = cv2.GaussianBlur(_noise((PHOTO[1], PHOTO[0], 3), shot.grain * 3, rng), (0, 0), 2.0)
    image = image + luma + chroma
    soft = cv2.GaussianBlur(image, (0, 0), 1.6)
    out: NDArray[np.uint8] = np.clip(image + 0.35 * (image - soft), 0, 255).astype(np.uint8)  # phones sharpen
    return out
