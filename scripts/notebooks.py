"""Execute notebooks from fresh kernels and store their outputs: `python scripts/notebooks.py [notebook or folder ...]`.

Skips what nbdev_test skips: notebooks whose front matter says `skip_exec: true`, cells flagged `#| eval: false` or with a flag of
`tst_flags`, and the export call. What is skipped keeps the outputs it has. Nothing is written unless the whole notebook runs, and two runs
give the same bytes: no execution counts, times, progress bars, widgets or addresses of objects.
"""
import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from fastcore.basics import str2bool
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor

# One thread and a fixed hash seed, for the same figures on every run; no progress bars, which would be stored as text.
kernel_env = dict(PYTHONHASHSEED="0", OMP_NUM_THREADS="1", TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", COLUMNS="100",
                  HF_DATASETS_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
noise = re.compile(r"application/vnd\.jupyter\.widget|application/javascript")


def flags(path: Path) -> tuple[bool, set[str]]:
    "Whether nbdev_test would skip the notebook, and the ids of the cells it would skip."
    nb = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    skip = set(get_config().tst_flags.split())
    cells = set()
    for cell in nb.cells:
        told = getattr(cell, "directives_", None) or {}
        off = told.get("eval:", [""])[0].lower() == "false" or skip & told.keys() or "nbdev_export" + "(" in (cell.source or "")
        if cell.cell_type == "code" and off: cells.add(cell.id)
    return str2bool(getattr(nb, "frontmatter_", {}).get("skip_exec", False)), cells


def tidy(cell):
    "Keep what a reader of the page needs: no stderr, no widgets, no counts."
    if cell.cell_type != "code": return
    kept = [o for o in cell.outputs if o.get("name") != "stderr" and not any(map(noise.match, o.get("data", {})))]
    cell.outputs, cell.execution_count = kept, None


def run(path: Path, leave: set[str]) -> float:
    "Execute one notebook in place, but for the cells with ids in `leave`; seconds taken. If a cell fails, the file stays as it was."
    start, nb = time.time(), nbformat.read(path, 4)
    for cell in nb.cells:
        if cell.id in leave: cell.metadata.tags = ["skip-execution"]
    client = NotebookClient(nb, kernel_name="python3", timeout=600, record_timing=False, coalesce_streams=True, store_widget_state=False,
                            skip_cells_with_tag="skip-execution", resources={"metadata": {"path": str(path.parent)}},
                            extra_arguments=["--IPKernelApp.log_level=40"])  # not a warning per kernel about local sockets
    client.execute(env=os.environ | kernel_env | {"PYTHONPATH": str(get_config().config_path)})
    for cell in nb.cells: tidy(cell)
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(str(path))  # the last word on the form of the file
    return time.time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks or folders (default: all notebooks)")
    asked = parser.parse_args().paths or [get_config().nbs_path]
    files = sorted({f.resolve() for p in asked for f in ([p] if p.is_file() else nbglob(p, as_path=True))})
    failed = 0
    for path in files:
        name = os.path.relpath(path, get_config().config_path)
        skip, leave = flags(path)
        if skip: print(f"{name}: skipped (skip_exec)"); continue
        try: print(f"{name}: {run(path, leave):.0f} s", flush=True)
        except CellExecutionError as e:
            failed += 1
            print(f"{name}: failed, left as it was\n{e}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__": sys.exit(main())
