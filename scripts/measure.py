"""Measure the shipped head and write results/*.json (see the Makefile's `results`).

Each file holds the configuration, the seed, hashes of what was read, the metrics and bootstrap intervals. README and docs take
their numbers from these files and nowhere else.
"""
import argparse, hashlib, json, os, sys, time
from pathlib import Path

import torch

from smoldiff.agent import SHIPPED, GenerationConfig, HybridSmolLM
from smoldiff.base import sha256
from smoldiff.data import data_files, read_records
from smoldiff.evaluation import BFCL_WHEEL, bfcl_items, bootstrap_ci, call_table, evaluate_predictions, field_table
from smoldiff.recipe import evaluate_model

RESULTS = Path(__file__).resolve().parent.parent / "results"


def content_hash(records: list[dict]) -> str:
    "Sixteen hex digits that tell one set of records from another."
    return hashlib.sha256(json.dumps(records, sort_keys=True, default=str).encode()).hexdigest()[:16]


def measure(model, records: list[dict], config: GenerationConfig, oracle: bool, limit: int | None) -> dict:
    "Metrics of one set, with a bootstrap interval of the share of items that match."
    lines, scores = evaluate_model(model, records, config, oracle, limit)
    answered = [r for r in records if r["calls"] or not oracle][:limit]
    table = call_table(answered, lines)
    _, low, high = bootstrap_ci(table["match"].tolist())
    return scores | dict(call_match_95=[round(low, 4), round(high, 4)], data=content_hash(answered))


def write(name: str, model, config: GenerationConfig, sets: dict):
    "One results file, written in one step."
    RESULTS.mkdir(exist_ok=True)
    about = dict(head=sha256(Path(model.folder) / "head.safetensors"), base=model.base.fingerprint, torch=torch.__version__, threads=torch.get_num_threads(),
                 device=model.base.device.type, config=vars(config), seed=config.seed)
    part = RESULTS / f"{name}.json.partial"
    part.write_text(json.dumps(dict(about=about, **sets), indent=1) + "\n")
    os.replace(part, RESULTS / f"{name}.json")
    print(f"wrote results/{name}.json", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bfcl", "bfcl-auto", "validation", "validation-auto"])
    parser.add_argument("--head", default=str(SHIPPED))
    parser.add_argument("--data-dir", default=os.environ.get("SMOLDIFF_DATA"))
    parser.add_argument("--limit", type=int, help="items of each set")
    parser.add_argument("--per-source", type=int, default=40, help="validation: records of each source")
    args = parser.parse_args()
    model, oracle = HybridSmolLM.from_pretrained(args.head), not args.what.endswith("-auto")
    config = GenerationConfig(mode="tool" if oracle else "auto")
    if args.what.startswith("bfcl"):
        sets = {c: bfcl_items(c) for c in ("simple_python", "multiple", "live_simple")}
    else:
        found = {s: list(read_records(p)) for s, p in data_files(Path(args.data_dir), "valid").items()}
        chosen = [r for rs in found.values() for r in [x for x in rs if x["calls"] or not oracle][:args.per_source]]
        sets = dict(single=[r for r in chosen if "query" in r], conversations=[r for r in chosen if "messages" in r])
    write(args.what, model, config, {name: measure(model, records, config, oracle, args.limit) for name, records in sets.items()})


if __name__ == "__main__":
    main()
