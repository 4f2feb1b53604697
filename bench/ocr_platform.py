"""Reading through the whole platform beside a bare RapidOCR loop, over the same pages, on the same cores, in one run.

    python -m bench.ocr_platform [--rounds 3] [--pages 12]

The platform's time runs from the POST to the last job's end as Postgres has it: upload, claim, progress, child
processes, page images, results. The bare loop (``bench/ocr_throughput.py``) has its models loaded and reads the files
directly. Target (issue 2): at least 0.95 of the bare loop's pages a second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, ImageOps

from bench.ocr_throughput import BareLoop, Round, collect_pages
from bench.stack import Multipart, cpu_seconds, get, local_stack, post
from services.ocr_worker.engine import usable_cores
from shared.media import SNIFF_BYTES, sniff


def _documents(pages: list[Path], folder: Path, pages_each: int) -> list[Path]:
    """The pages as they are, or bound losslessly into TIFFs of several pages."""
    if pages_each == 1:
        return pages
    bound = []
    for first in range(0, len(pages), pages_each):
        images = [ImageOps.exif_transpose(Image.open(p)) for p in pages[first : first + pages_each]]
        path = folder / f"{first}.tiff"
        images[0].save(path, save_all=True, append_images=images[1:], compression="tiff_adobe_deflate")
        bound.append(path)
    return bound


def _form(pages: list[Path]) -> Multipart:
    return Multipart(
        [(p.name, p.read_bytes(), str(sniff(p.read_bytes()[:SNIFF_BYTES]))) for p in pages],
    )


def _platform(stack: dict[str, Any], form: Multipart, pages: int, documents: int) -> Round:
    """From the request to the end of the last job; CPU of the whole stack, servers and gateway included."""
    began, cpu = time.time(), cpu_seconds(stack["pid"])
    status, batch = post(stack, "/api/v1/uploads", form.body, form.content_type)
    if status != 202:
        raise SystemExit(f"POST /uploads answered {status}: {batch}")
    while True:
        _, state = get(stack, f"/api/v1/batches/{batch['id']}")
        if state["done"]:
            break
        time.sleep(1)  # the end is read from the row: asking more often would only take the readers' cores
    seconds = datetime.fromisoformat(state["finished_at"]).timestamp() - began
    if state["counts"]["completed"] != documents:
        raise SystemExit(f"not every document was read: {state['counts']}")
    return Round(pages, seconds, cpu_seconds(stack["pid"]) - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=int, default=12)
    parser.add_argument("--pages-each", type=int, default=1, help="pages a document")
    options = parser.parse_args()
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as folder, local_stack() as stack:
        pages = collect_pages(Path(folder), options.pages)
        documents = _documents(pages, Path(folder), options.pages_each)
        form = _form(documents)
        bare = BareLoop(cores)
        try:
            _platform(stack, _form(pages[:1] * cores), cores, cores)  # load the models
            rounds = []
            for number in range(options.rounds):
                if number % 2:
                    ours, theirs = _platform(stack, form, len(pages), len(documents)), bare.run(pages)
                else:
                    theirs, ours = bare.run(pages), _platform(stack, form, len(pages), len(documents))
                rounds.append((theirs, ours))
                for name, r in (("bare loop", theirs), ("platform", ours)):
                    print(
                        f"  {number + 1} {name:<10} {r.pages_per_second:.3f} pages/s  {r.cpu_per_page:.2f} CPU s/page",
                        flush=True,
                    )
        finally:
            bare.close()
    speed = median(ours.pages_per_second / theirs.pages_per_second for theirs, ours in rounds)
    cpu = median(ours.cpu_per_page / theirs.cpu_per_page for theirs, ours in rounds)
    print(
        f"{len(pages)} pages, {options.pages_each} a document, {cores} reading processes, "
        f"medians of {options.rounds} alternating rounds:"
    )
    print(f"  platform / bare: {speed:.3f} in pages/s, target 0.95: {'met' if speed >= 0.95 else 'NOT MET'}")
    print(f"  platform / bare: {cpu:.3f} in CPU a page (Postgres, Valkey, gateway and workers included)")


if __name__ == "__main__":
    main()
