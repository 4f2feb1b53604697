"""The gateway's image carries no OCR: importing the application loads none of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Absent from the gateway's extra, or (boto3) too slow to load where no bucket is used.
UNWANTED = ("cv2", "rapidocr", "onnxruntime", "pypdfium2", "PIL", "numpy", "pebble", "boto3", "botocore")


def test_the_gateway_loads_no_ocr_library_and_no_boto3() -> None:
    code = (
        "import sys, services.api.app, services.api.main, services.api.server\n"
        "from services.api.app import create_app; from shared.settings import Settings; create_app(Settings())\n"
        f"print(*sorted({{m.split('.')[0] for m in sys.modules}} & set({UNWANTED!r})))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
