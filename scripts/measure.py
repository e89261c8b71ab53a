"""Measure the shipped head and write results/*.json (see the Makefile's `results`).

Each file holds the configuration, the seed, hashes of what was read, the metrics and bootstrap intervals. README and docs take
their numbers from these files and nowhere else.
"""
import argparse
import hashlib
import json
import os
import random
import re
import sys
import time
from pathlib import Path

import torch

from smoldiff.agent import SHIPPED, GenerationConfig, HybridSmolLM
from smoldiff.base import cache_dir, sha256
from smoldiff.data import ExpandConfig, bank_split, data_files, expand_bank, read_bank, read_records, turns
from smoldiff.evaluation import bfcl_items, bootstrap_ci, call_table, evaluate, evaluate_predictions, rival
from smoldiff.recipe import load_recipe, predictor, recipe_cache, summary, validate
from smoldiff.routing import call_probability, name_scores, tool_scores
from smoldiff.tools import as_tools

RESULTS = Path(__file__).resolve().parent.parent / "results"
DEFAULT = GenerationConfig().call_threshold


def content_hash(records: list[dict]) -> str:
    "Sixteen hex digits that tell one set of records from another."
    return hashlib.sha256(json.dumps(records, sort_keys=True, default=str).encode()).hexdigest()[:16]


def measure(predict, name: str, records: list[dict], oracle: bool, limit: int | None) -> dict:
    "Metrics of one set by name; live BFCL items modelled on Schema-Guided Dialogue, whose schemas are in the training data, apart."
    records = [r for r in records if r["calls"] or not oracle][:limit]
    lines, _ = evaluate(predict, records)
    scores = {name: judged(records, lines)}
    if name.startswith("live"):
        for label, wanted in ((f"{name}, SGD services", True), (f"{name}, others", False)):
            some = [(r, p) for r, p in zip(records, lines) if from_sgd(r) == wanted]
            if 0 < len(some) < len(records): scores[label] = judged(*map(list, zip(*some)))
    return scores


def from_sgd(record: dict) -> bool:
    "Whether a tool bears a service name of Schema-Guided Dialogue, such as Hotels_2_BookHouse."
    return any(re.match(r"[A-Z][A-Za-z]+_\d+_", t["name"]) for t in record["tools"])


def judged(records: list[dict], lines: list[dict]) -> dict:
    "Metrics with a bootstrap interval of the share of items that match."
    _, low, high = bootstrap_ci(call_table(records, lines)["match"].tolist())
    return evaluate_predictions(records, lines) | dict(call_match_95=[round(low, 4), round(high, 4)], data=content_hash(records))


def write(name: str, model, about: dict, sets: dict):
    "One results file, written in one step; `about` says what was measured."
    RESULTS.mkdir(exist_ok=True)
    where = dict(base=model.base.fingerprint, torch=torch.__version__, threads=torch.get_num_threads(), device=model.base.device.type)
    part = RESULTS / f"{name}.json.partial"
    part.write_text(json.dumps(dict(about=where | about, **sets), indent=1) + "\n")
    os.replace(part, RESULTS / f"{name}.json")
    print(f"wrote results/{name}.json", file=sys.stderr)


def probe_routing(base, records: list[dict], seed: int = 2) -> dict:
    "How well the untrained base names the tool, and tells requests that need a call from those that do not."
    chosen = [r for r in records if "query" in r and len(r["query"]) < 300]
    random.Random(seed).shuffle(chosen)
    several = [r for r in chosen if len(r["calls"]) == 1 and len(r["tools"]) > 2][:60]
    right = dict(plain=0, calibrated=0)
    for r in several:
        tools, gold = as_tools(r["tools"]), r["calls"][0]["name"]
        plain, scores = name_scores(base, tools, turns(r)), tool_scores(base, tools, turns(r))
        right["plain"] += list(tools)[plain.index(max(plain))] == gold
        right["calibrated"] += max(scores, key=scores.get) == gold
    opens = {k: [call_probability(base, as_tools(r["tools"]), turns(r)) for r in rs[:45]] for k, rs in
             dict(call=several, none=[r for r in chosen if not r["calls"]]).items()}
    calls, others = opens["call"], opens["none"]
    area = sum((p > q) + (p == q) / 2 for p in calls for q in others) / len(calls) / len(others)
    opening = dict(n=len(calls), area_under_roc=area, tenth_percentile_of_calls=sorted(calls)[len(calls) // 10],
                   calls_above_default=sum(p >= DEFAULT for p in calls) / len(calls),
                   others_above_default=sum(p >= DEFAULT for p in others) / len(others))
    return dict(n=len(several), chance=sum(1 / len(r["tools"]) for r in several) / len(several),
                tool_right={k: v / len(several) for k, v in right.items()}, opening=opening, data=content_hash(several))



def compare_decoding(model, data: str, work: Path) -> dict:
    "Validation fields under several options of the S3 loop; features of the prompts are read once."
    cache = recipe_cache(load_recipe(Path(model.folder) / "config.yaml"), model.base, data, work, "valid")
    options = {f"steps {n}": dict(steps=n) for n in (1, 2, 3, 4, 8)}
    options |= {"3, no remasking": dict(remask=False), "3, threshold 0.9": dict(threshold=.9), "3, threshold off": dict(threshold=2.),
                "one slot a look": dict(steps=16, topk_remask=1, threshold=2.)}
    rows = {}
    for name, option in options.items():
        start = time.perf_counter()
        table = validate(model.head, model.base, cache, GenerationConfig(mode="tool", **option))
        rows[name] = summary(table) | dict(head_ms=1000 * (time.perf_counter() - start) / len(cache), n=len(cache))
    return rows


def validation_sets(folder: Path, per_source: int, oracle: bool) -> dict:
    "Requests to tools not trained on: single calls and conversations of the public sources, and the kept-back tools of the bank."
    found = [r for p in data_files(folder, "valid").values() for r in [x for x in read_records(p) if x["calls"] or not oracle][:per_source]]
    bank = expand_bank(bank_split(read_bank())[1], 400, random.Random(5), ExpandConfig(irrelevant=0, missing=0))
    one, several = ([r for r in found if "query" in r and (len(r["calls"]) > 1) == many] for many in (False, True))
    return dict(single=one, several=several, conversations=[r for r in found if "messages" in r], bank=bank)


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bfcl", "bfcl-auto", "validation", "validation-auto", "routing", "decoding"])
    parser.add_argument("--by", choices=["head", "rival", "free"], default="head", help="rival: base under XGrammar; free: base alone")
    parser.add_argument("--form", default="compact", help="of the rivals' prompt: compact, chat or example")
    parser.add_argument("--head", default=str(SHIPPED))
    parser.add_argument("--data-dir", default=os.environ.get("SMOLDIFF_DATA"))
    parser.add_argument("--only", help="one set; the others stay as they are in the results file")
    parser.add_argument("--work", help="folder for features")
    parser.add_argument("--limit", type=int, help="items of each set")
    parser.add_argument("--per-source", type=int, default=40, help="validation: records of each source")
    return parser.parse_args()


def main():
    args = arguments()
    model, oracle = HybridSmolLM.from_pretrained(args.head), not args.what.endswith("-auto")
    config = GenerationConfig(mode="tool" if oracle else "auto")
    about = dict(head=sha256(Path(model.folder) / "head.safetensors"), config=vars(config), seed=config.seed)
    if args.what == "decoding":
        work = Path(args.work or cache_dir() / "runs" / "measure")
        return write("decoding", model, about, dict(options=compare_decoding(model, args.data_dir, work)))
    if args.what == "routing":
        found = [list(read_records(p)) for p in data_files(Path(args.data_dir), "valid").values()]
        sample = [r for rs in found for r in random.Random(1).sample(rs, min(len(rs), 60))]
        return write("routing", model, about, dict(probe=probe_routing(model.base, sample)))
    categories = ("simple_python", "multiple", "live_simple", *(("parallel", "parallel_multiple") if oracle else ()))
    sets = ({c: bfcl_items(c) for c in categories} if args.what.startswith("bfcl")
            else validation_sets(Path(args.data_dir), args.per_source, oracle))
    predict, name, scores = predictor(model, config, oracle), args.what, {}
    if args.by != "head":
        predict, name, about = rival(model.base, args.form, args.by == "rival"), f"{args.what}-{args.by}", dict(by=args.by, form=args.form)
    if args.only:
        sets = {args.only: sets[args.only]}
        scores = {k: v for k, v in json.loads((RESULTS / f"{name}.json").read_text()).items() if k != "about"}
    for key, records in sets.items(): scores |= measure(predict, key, records, oracle, args.limit)
    write(name, model, about, scores)


if __name__ == "__main__":
    main()
