"""What the README claims is what was measured, with the head that is shipped."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from smoldiff.agent import SHIPPED, read_config

ROOT = Path(__file__).resolve().parent.parent


def test_readme_shows_the_results_files():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "results.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["bfcl", "bfcl-auto", "validation"])
def test_results_belong_to_the_shipped_head(name):
    about = json.loads((ROOT / "results" / f"{name}.json").read_text())["about"]
    shipped = read_config(Path(str(SHIPPED)))["sha256"]
    assert about["head"] == shipped, f"results/{name}.json was measured with another head: run `make results`"


def test_every_call_that_was_measured_is_valid():
    for name in ("bfcl", "validation"):
        results = json.loads((ROOT / "results" / f"{name}.json").read_text())
        assert all(s["schema_valid"] == 1.0 for k, s in results.items() if k != "about")
