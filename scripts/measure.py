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

import pandas as pd
import torch

from smoldiff.agent import SHIPPED, GenerationConfig, HybridSmolLM
from smoldiff.base import cache_dir, sha256
from smoldiff.data import ExpandConfig, bank_split, data_dir, data_files, expand_bank, read_bank, read_records, turns
from smoldiff.evaluation import (
    bfcl_items, bootstrap_ci, calibration_error, call_table, field_table, metrics_of, optional_slots, predict_all, reliability, rival,
)
from smoldiff.recipe import load_recipe, predictor, recipe_cache, recipe_records, summary, validate
from smoldiff.routing import call_probability, name_scores, tool_scores
from smoldiff.scaffold import PLANS, encode_labels
from smoldiff.tools import SmoldiffError, as_tools
from smoldiff.training import record_prompt

RESULTS = Path(__file__).resolve().parent.parent / "results"
DEFAULT = GenerationConfig().call_threshold
# sources whose texts tell something instead of asking for it: information extraction in the form of calls
STATEMENTS = ("wikisql", "logicnlg", "spider", "dart", "e2e", "rnnlg", "qamr", "qasrl", "xquad", "crossner")


def content_hash(records: list[dict]) -> str:
    "Sixteen hex digits that tell one set of records from another."
    return hashlib.sha256(json.dumps(records, sort_keys=True, default=str).encode()).hexdigest()[:16]


def measure(predict, name: str, records: list[dict], oracle: bool, limit: int | None) -> dict:
    "Metrics of one set by name; live BFCL items modelled on Schema-Guided Dialogue, whose schemas are in the training data, apart."
    records = [r for r in records if r["calls"] or not oracle][:limit]
    lines = predict_all(predict, records, progress=True)
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
    "Metrics with a bootstrap interval of the share of items that match, and what the plots show."
    calls, table = call_table(records, lines), field_table(records, lines)
    known = table[table.right_norm.notna()]
    filled, bins = known[known.gold_present | known.pred_present], reliability(table)
    left_out = optional_slots(table).rename(columns=dict(pred="predicted"))
    return metrics_of(calls, table) | dict(
        call_match_95=interval(calls["match"]), data=content_hash(records), ece=calibration_error(bins),
        right_by_type=shares(filled, "type", "right_norm"), right_by_source=shares(filled, "field_source", "right_norm"),
        left_out_by_type=shares(left_out, "type", "true", "predicted"),
        errors=table.error[table.error != ""].value_counts().to_dict(), reliability=bins.round(4).to_dict("records"))


def interval(values) -> list[float]:
    "Bootstrap interval of a share, 95%."
    return [round(x, 4) for x in bootstrap_ci(values.tolist())[1:]]


def shares(table, by: str, *flags: str) -> dict:
    "Per group, most slots first: how many there are, and the share of each flag with its interval (slots drawn one by one)."
    groups = sorted(table.groupby(by), key=lambda g: -len(g[1]))
    return {str(name): dict(n=len(t)) | {f: round(float(t[f].mean()), 4) for f in flags} | {f"{f}_95": interval(t[f]) for f in flags}
            for name, t in groups}


def known_results(name: str, about: dict) -> dict:
    "What a results file holds besides `about`; it must have been measured in the same way."
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else dict(about=about)
    if not about.items() <= found.pop("about").items(): sys.exit(f"results/{name}.json was measured with another head or options")
    return found


def write(name: str, base, about: dict, sets: dict):
    "One results file, written in one step; `about` says what was measured."
    RESULTS.mkdir(exist_ok=True)
    where = dict(base=base.fingerprint, torch=torch.__version__, threads=torch.get_num_threads(), device=base.device.type)
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


def compare_decoding(model, data: str, work: Path, rows: dict):
    "Yield the table of validation fields under more and more options of the S3 loop, from known rows on; features are read once."
    cache = recipe_cache(load_recipe(Path(model.folder) / "config.yaml"), model.base, data, work, "valid")
    options = {f"steps {n}": dict(steps=n) for n in (1, 2, 3, 4, 8)}
    options |= {"3, nothing masked again": dict(remask=False)}
    options |= {f"3, threshold {x}": dict(threshold=x) for x in (.9, 1.01)}   # the last is never reached
    options |= {"3, judge 0.3": dict(judge=.3)}   # which reads the prompt anew here, for features are cached
    for name in [n for n in options if n not in rows]:
        start = time.perf_counter()
        table = validate(model.head, model.base, cache, GenerationConfig(mode="tool", **options[name]))
        ms = 1000 * (time.perf_counter() - start) / len(cache)
        rows[name] = summary(table) | dict(head_ms=ms, n=len(cache))
        yield {k: rows[k] for k in options if k in rows}


def reach(base, records: list[dict]) -> dict:
    "What rules alone could give: of the gold values, how many can be copied, picked or only written; by source and by type."
    rows = []
    for r in records:
        try: prompt = record_prompt(base, r, None)
        except SmoldiffError: continue
        labels = encode_labels(base, prompt, r["calls"], r.get("spans"))
        rows += [(r["source"], s.kind, PLANS[label.plan]) for s, label in zip(prompt.template.segments, labels) if label.plan]
    table = pd.DataFrame(rows, columns=["source", "type", "plan"])
    def split(by): return {k: dict(n=len(t)) | t.plan.value_counts(normalize=True).round(4).to_dict() for k, t in table.groupby(by)}
    return dict(all=split(table.plan.notna())[True], by_source=split("source"), by_type=split("type"))


def latencies(model, form: str, items: int):
    "Yield, way by way, milliseconds of a call, for the same single calls, tool named; what is kept of a tool is cold, the rest is warm."
    records, rows = bfcl_items("simple_python")[: items + 3], {}
    ways = {"smoldiff": predictor(model, GenerationConfig(mode="tool"), True)}
    ways |= {"base + XGrammar": rival(model.base, form), "base alone": rival(model.base, form, False)}
    for way, predict in ways.items():
        predict_all(predict, records[-3:])
        ms = pd.Series([line["ms"] for line in predict_all(predict, records[:-3], progress=True)])
        rows[way] = dict(n=len(ms), mean=ms.mean(), **{f"p{q}": ms.quantile(q / 100) for q in (5, 50, 95)})
        yield rows


def validation_sets(folder: Path, per_source: int, oracle: bool, seen: set) -> dict:
    "What asks for tools not trained on, by form: public sources, so many records of each and none that is `seen`; kept-back bank tools."
    wanted = lambda r: (r["calls"] or not oracle) and r["id"] not in seen
    found = [r for p in data_files(folder, "valid").values() for r in [x for x in read_records(p) if wanted(x)][:per_source]]
    form = lambda r: ("conversations" if "messages" in r else "statements" if r["source"] in STATEMENTS
                      else "several" if len(r["calls"]) > 1 else "single")
    sets = {name: [r for r in found if form(r) == name] for name in ("single", "several", "conversations", "statements")}
    bank, rates = bank_split(read_bank())[1], dict(irrelevant=0, missing=0)
    draw = lambda n, **more: expand_bank(bank, n, random.Random(5), ExpandConfig(**rates, **more))
    several = [[r for r in draw(400, **more) if len(r["calls"]) > 1][:100]
               for more in (dict(parallel=1, compose=0), dict(parallel=0, compose=1))]
    return sets | {"bank": draw(400, compose=0), "bank, several calls": sum(several, [])}


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bfcl", "bfcl-auto", "validation", "validation-auto", "routing", "decoding", "reach", "latency"])
    parser.add_argument("--by", choices=["head", "rival", "free"], default="head", help="rival: base under XGrammar; free: base alone")
    parser.add_argument("--form", default="chat", help="of the rivals' prompt: chat (the best on validation), compact or example")
    parser.add_argument("--head", default=str(SHIPPED))
    parser.add_argument("--data-dir", default=os.environ.get("SMOLDIFF_DATA"))
    parser.add_argument("--only", help="one set; the others stay as they are in the results file")
    parser.add_argument("--resume", action="store_true", help="keep what the results file holds of this head: sets, and rows of decoding")
    parser.add_argument("--work", help="folder for features")
    parser.add_argument("--limit", type=int, help="items of each set")
    parser.add_argument("--per-source", type=int, default=40, help="validation: records of each source")
    return parser.parse_args()


def main():
    args = arguments()
    if args.by != "head" and args.what not in ("bfcl", "validation"): sys.exit(f"--by {args.by} needs the tool's name: bfcl or validation")
    if args.what not in ("bfcl", "bfcl-auto", "latency"): args.data_dir = data_dir(args.data_dir)
    model, oracle = HybridSmolLM.from_pretrained(args.head), not args.what.endswith("-auto")
    config = GenerationConfig(mode="tool" if oracle else "auto")
    about = dict(head=sha256(Path(model.folder) / "head.safetensors"), config=vars(config), seed=config.seed)
    if args.what == "decoding":
        work = Path(args.work or cache_dir() / "runs" / "measure")
        known = known_results("decoding", about).get("options", {}) if args.resume else {}
        for rows in compare_decoding(model, args.data_dir, work, known): write("decoding", model.base, about, dict(options=rows))
        return
    if args.what == "routing":
        found = [list(read_records(p)) for p in data_files(Path(args.data_dir), "valid").values()]
        sample = [r for rs in found for r in random.Random(1).sample(rs, min(len(rs), 60))]
        return write("routing", model.base, about, dict(probe=probe_routing(model.base, sample)))
    if args.what == "latency":
        for ways in latencies(model, args.form, args.limit or 60):
            write("latency", model.base, about | dict(form=args.form), dict(ways=ways))
        return
    if args.what == "reach":
        records = [r for rs in validation_sets(Path(args.data_dir), 100, True, set()).values() for r in rs]
        return write("reach", model.base, dict(data=content_hash(records)), reach(model.base, records))
    categories = ("simple_python", "multiple", "live_simple", *(("parallel", "parallel_multiple") if oracle else ()))
    if args.what.startswith("bfcl"): sets = {c: bfcl_items(c) for c in categories}
    else:   # the calibration was fitted on the recipe's own validation requests
        seen = {r["id"] for r in recipe_records(load_recipe(Path(model.folder) / "config.yaml"), args.data_dir, "valid")}
        sets = validation_sets(Path(args.data_dir), args.per_source, oracle, seen)
    predict, name, scores = predictor(model, config, oracle), args.what, {}
    if args.by != "head":
        predict, name, about = rival(model.base, args.form, args.by == "rival"), f"{args.what}-{args.by}", dict(by=args.by, form=args.form)
    about |= dict(limit=args.limit, per_source=args.per_source)
    if args.only and args.only not in sets: sys.exit(f"no set {args.only!r}: there are {', '.join(sets)}")
    if args.only or args.resume: scores = known_results(name, about)
    for key, records in sets.items():
        if args.only not in (None, key) or args.resume and key in scores: continue
        scores |= measure(predict, key, records, oracle, args.limit)
        print(f"{key}: {100 * scores[key]['call_match']:.1f}% of {scores[key]['n']} calls right", file=sys.stderr, flush=True)
        write(name, model.base, about, scores)


if __name__ == "__main__":
    try: main()
    except SmoldiffError as e: sys.exit(str(e))
