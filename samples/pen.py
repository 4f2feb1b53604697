"""Freely licensed fonts from npm tarballs, and handwriting set from them one uneven letter at a time."""

from __future__ import annotations

import io
import tarfile
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["FONTSOURCE_VERSION", "Fonts", "Hand", "smooth_noise", "tremble"]

FONTSOURCE_VERSION = "5.3.0"
Layer = NDArray[np.uint8]


class Fonts:
    """Fonts out of ``folder``, which holds ``npm pack @fontsource/<name>`` tarballs of ``FONTSOURCE_VERSION``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sized = lru_cache(maxsize=None)(self._sized)
        self.truetype = lru_cache(maxsize=None)(self._truetype)

    def _truetype(self, family: str, weight: int = 400) -> bytes:
        """TrueType bytes of a family's Latin subset. FileNotFoundError names the missing tarball."""
        tarball = self._folder / f"fontsource-{family}-{FONTSOURCE_VERSION}.tgz"
        with tarfile.open(tarball) as tar:
            member = tar.extractfile(f"package/files/{family}-latin-{weight}-normal.woff2")
            assert member is not None
            font = TTFont(io.BytesIO(member.read()), recalcTimestamp=False)
        font.flavor = None
        out = io.BytesIO()
        font.save(out)
        return out.getvalue()

    def _sized(self, family: str, size: int, weight: int = 400) -> ImageFont.FreeTypeFont:
        # Basic layout: shaping would make the result hang on which Raqm the Pillow wheel carries.
        return ImageFont.truetype(io.BytesIO(self.truetype(family, weight)), size, layout_engine=ImageFont.Layout.BASIC)


class Hand:
    """One student's hand: a font, its size and weight, and how unsteady it is."""

    def __init__(
        self, fonts: Fonts, family: str, size: int, rng: np.random.Generator, *, stroke: int = 0, unrest: float = 1.0
    ) -> None:
        self._fonts, self._family, self._size = fonts, family, size
        self._rng, self._stroke, self._unrest = rng, stroke, unrest

    def write(self, layer: Image.Image, text: str, x: float, baseline: float, scale: float = 1.0) -> float:
        """Write ``text`` on the mask ``layer`` from ``x``; the x after the last letter. Pixels."""
        rng, unrest = self._rng, self._unrest
        size = self._size * scale * rng.uniform(0.97, 1.04)
        slope = rng.normal(0, 0.006) * unrest
        start, drift, previous = x, 0.0, ""
        regular = self._fonts.sized(self._family, round(size))
        for char in text:
            if char == " ":
                x += size * rng.uniform(0.24, 0.34)
                drift, previous = rng.normal(0, 0.012) * size * unrest, ""
                continue
            # Nobody writes the tiny squared sign of a font: a raised small 2 stands for it.
            glyph, small, lift = ("2", 0.62, 0.34) if char == "²" else (char, 1.0, 0.0)
            if previous:
                x += regular.getlength(previous + glyph) - regular.getlength(previous) - regular.getlength(glyph)
            drift = 0.6 * drift + rng.normal(0, 0.013) * size * unrest
            font = self._fonts.sized(self._family, max(8, round(size * small * rng.uniform(0.96, 1.05))))
            self._stamp(layer, glyph, font, x, baseline + slope * (x - start) + drift - lift * size)
            x += font.getlength(glyph) + size * rng.normal(0.008, 0.012) * unrest
            previous = glyph if small == 1.0 else ""
        return x

    def _stamp(self, layer: Image.Image, glyph: str, font: ImageFont.FreeTypeFont, x: float, baseline: float) -> None:
        box = font.getbbox(glyph, anchor="ls", stroke_width=self._stroke)
        margin = 12
        size = (round(box[2] - box[0]) + 2 * margin, round(box[3] - box[1]) + 2 * margin)
        tile = Image.new("L", size, 0)
        ImageDraw.Draw(tile).text(
            (margin - box[0], margin - box[1]), glyph, font=font, fill=255, anchor="ls", stroke_width=self._stroke
        )
        tile = tile.rotate(self._rng.normal(0, 1.6) * self._unrest, Image.Resampling.BICUBIC)
        layer.paste(255, (round(x + box[0] - margin), round(baseline + box[1] - margin)), tile)


def smooth_noise(shape: tuple[int, int], cell: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of unit spread and mean zero that changes over about ``cell`` pixels."""
    grid = (max(4, int(shape[0] / cell) + 3), max(4, int(shape[1] / cell) + 3))
    coarse = rng.standard_normal(grid).astype(np.float32)
    field = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    out: NDArray[np.float32] = (field - field.mean()) / max(float(field.std()), 1e-6)
    return out


def tremble(layer: Layer, rng: np.random.Generator) -> Layer:
    """Bend the strokes a little, so that no two letters alike are the same, and let the ink run dry in places."""
    height, width = layer.shape
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    for cell, reach in ((220.0, 3.2), (60.0, 1.3)):
        xs += smooth_noise((height, width), cell, rng) * reach
        ys += smooth_noise((height, width), cell, rng) * reach
    bent = cv2.remap(layer, xs, ys, cv2.INTER_LINEAR)
    pressure = np.clip(0.9 + 0.10 * smooth_noise((height, width), 90.0, rng), 0.6, 1.0)
    grain = np.clip(1.0 - 0.10 * np.abs(smooth_noise((height, width), 3.0, rng)), 0.55, 1.0)
    out: Layer = (bent * pressure * grain).astype(np.uint8)
    return out
