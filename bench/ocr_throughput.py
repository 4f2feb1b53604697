"""Pages a second: a bare RapidOCR loop against our pool of reading processes, over the same pages, in one run.

The bare loop is what one would write by hand: one process a core, each with one thread and a RapidOCR of its own with
the same parameters, reading images from memory or file until the list is through. Ours opens each file in a killable
process, reads it, lays it out, and writes the page image. Rounds alternate and medians are compared, as other work on
the machine comes and goes.

    python -m bench.ocr_throughput [--rounds 3] [--processes 0] [--pages 12]

Pages come from ``OCR_DATA`` (a folder, searched for images), else from ``samples/``, else they are drawn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from services.ocr_worker.engine import ReaderPool, usable_cores
from services.ocr_worker.engine.child import ENVIRONMENT
from shared.media import SNIFF_BYTES, sniff

__all__ = ["BareLoop", "Round", "collect_pages", "measure_pool"]

ROOT = Path(__file__).resolve().parent.parent
_MEMORY = 3 * 1024**3


@dataclass(frozen=True, slots=True)
class Round:
    """One pass over ``pages`` pages: wall and CPU seconds (all processes together)."""

    pages: int
    wall: float
    cpu: float

    @property
    def pages_per_second(self) -> float:
        return self.pages / self.wall

    @property
    def cpu_per_page(self) -> float:
        return self.cpu / self.pages


def collect_pages(folder: Path, count: int) -> list[Path]:
    """``count`` image files: spread over the subfolders of ``OCR_DATA`` or ``samples/``, or drawn into ``folder``."""
    source = Path(os.environ.get("OCR_DATA", ROOT / "samples"))
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and not {"bad", "formats", "omr"} & set(path.parts):
            by_folder.setdefault(path.parent, []).append(path)
    found: list[Path] = []
    while len(found) < count and any(by_folder.values()):
        found += [paths.pop(0) for paths in by_folder.values() if paths]
    if not found:
        found = [_drawn(folder / "drawn.png")]
    return (found * count)[:count]


def _drawn(path: Path) -> Path:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (1654, 2339), "white")
    draw = ImageDraw.Draw(image)
    for line in range(30):
        text = f"{line}. The quick brown fox jumps over the lazy dog again"
        draw.text((150, 150 + 65 * line), text, fill="black", font=ImageFont.load_default(38))
    image.save(path)
    return path


class BareLoop:
    """One process a core, each with a RapidOCR of its own that is loaded before the clock starts."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._before = {name: os.environ.get(name) for name in ENVIRONMENT}
        os.environ.update(ENVIRONMENT)  # before the children import numpy and onnxruntime
        self._pool = context.Pool(processes, _bare_load)
        self._pool.map(_bare_ready, range(processes * 4), chunksize=1)

    def run(self, pages: Sequence[Path]) -> Round:
        start = time.perf_counter()
        cpu = sum(self._pool.imap_unordered(_bare_read, [str(path) for path in pages], chunksize=1))
        return Round(len(pages), time.perf_counter() - start, cpu)

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


_engine: Any = None


def _bare_load() -> None:
    global _engine
    import cv2
    from rapidocr import RapidOCR

    from services.ocr_worker.engine.recognise import engine_parameters

    cv2.setNumThreads(1)
    _engine = RapidOCR(params=engine_parameters())
    _bare_read(None)


def _bare_ready(_: int) -> None:
    time.sleep(0.1)


def _bare_read(path: str | None) -> float:
    import numpy as np

    start = time.process_time()
    if path is None:
        page = np.full((200, 400, 3), 255, dtype=np.uint8)
        page[80:120, 40:300:12] = 0
        _engine(page)
    else:
        _engine(path)
    return time.process_time() - start


def measure_pool(pool: ReaderPool, pages: Sequence[Path], folder: Path) -> Round:
    """Read all ``pages`` through a warm ``pool``."""
    media = [sniff(path.open("rb").read(SNIFF_BYTES)) or "image/png" for path in pages]
    before = _cpu_of(pool)
    start = time.perf_counter()
    pending = [
        pool.read_page(path, media_type, 1, folder / f"{index}.jpg")
        for index, (path, media_type) in enumerate(zip(pages, media, strict=True))
    ]
    for page in pending:
        page.result()
    return Round(len(pages), time.perf_counter() - start, _cpu_of(pool) - before)


def _cpu_of(pool: ReaderPool) -> float:
    """CPU seconds of the reading processes and of this one."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ticks = 0
    for pid in pool.process_ids():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=0, help="0: one a core")
    parser.add_argument("--pages", type=int, default=12)
    options = parser.parse_args(arguments)
    processes = options.processes or usable_cores()
    with TemporaryDirectory() as name, ReaderPool(processes, _MEMORY, idle_seconds=3600) as pool:
        folder = Path(name)
        pages = collect_pages(folder, options.pages)
        bare = BareLoop(processes)
        try:
            measure_pool(pool, [pages[0]] * processes * 2, folder)  # start the processes
            rounds: list[tuple[Round, Round]] = []
            for number in range(options.rounds):
                if number % 2:
                    ours = measure_pool(pool, pages, folder)
                    theirs = bare.run(pages)
                else:
                    theirs = bare.run(pages)
                    ours = measure_pool(pool, pages, folder)
                rounds.append((theirs, ours))
                _report(f"round {number + 1}", theirs, ours)
        finally:
            bare.close()
    print(f"{len(pages)} pages, {processes} processes, {options.rounds} rounds, medians:")
    print(f"  bare loop  {median(r.pages_per_second for r, _ in rounds):.3f} pages/s")
    print(f"  our pool   {median(r.pages_per_second for _, r in rounds):.3f} pages/s")
    print(f"  bare loop  {median(r.cpu_per_page for r, _ in rounds):.3f} CPU s/page")
    print(f"  our pool   {median(r.cpu_per_page for _, r in rounds):.3f} CPU s/page")
    print(
        f"  ratio of speed (ours / bare)      {median(o.pages_per_second / b.pages_per_second for b, o in rounds):.3f}"
    )
    print(f"  ratio of CPU a page (ours / bare) {median(o.cpu_per_page / b.cpu_per_page for b, o in rounds):.3f}")


def _report(title: str, theirs: Round, ours: Round) -> None:
    print(
        f"{title}: bare {theirs.pages_per_second:.3f} pages/s, {theirs.cpu_per_page:.2f} CPU s; "
        f"ours {ours.pages_per_second:.3f} pages/s, {ours.cpu_per_page:.2f} CPU s",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
