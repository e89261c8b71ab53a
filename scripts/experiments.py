"""Experiments on a few thousand examples: each command trains heads and writes results/exp-<command>.json (see the Makefile).

All share one draw of the recipe's mixture, one set of requests to unseen tools, and the base's features of both, which are read once.
The file is written after every row, and a row that it holds is not trained again: a command that was cut off goes on.
"""
import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from measure import RESULTS, content_hash, write

from smoldiff.agent import GenerationConfig
from smoldiff.base import cache_dir, load_base
from smoldiff.data import WEIGHTS, length_batches
from smoldiff.evaluation import bootstrap_ci
from smoldiff.head import Features, LossConfig, read_features
from smoldiff.noise import NoiseConfig
from smoldiff.recipe import Recipe, recipe_records, recipe_run, right_by, summary, validate
from smoldiff.scaffold import encode_labels, encode_prompt
from smoldiff.training import SHARD, FeatureCache, TrainConfig, cache_features, save_shard, tool_tokens, train

LAYERS = (6, 12, 18, 24, 30)


class View:
    "A feature cache whose examples are shown with other features."

    def __init__(self, cache: FeatureCache, change): self.cache, self.change = cache, change
    def __len__(self): return len(self.cache)
    def __getitem__(self, ids): return View(self.cache[ids], self.change)
    def __getattr__(self, name): return getattr(self.cache, name)

    def example(self, i: int):
        found = self.cache.example(i)
        found.features = self.change(found.features)
        return found


def at_layers(base, layers: tuple):
    "Features as if only these layers, of all that were read, had been: nothing is known of deeper ones."
    read = [LAYERS.index(k) for k in layers]
    seen = [*range(max(layers) * base.n_heads), *[-1] * (max(layers) == base.n_layers)]   # attention, and what is said by the last layer
    def pick(x): return x.unflatten(-1, (len(LAYERS), -1))[..., read, :].flatten(-2)
    def change(f: Features) -> Features: return Features(f.ids_T, pick(f.hidden_TF), pick(f.slot_SF), f.pair_STP[..., seen])
    return change


def drawn(args, split: str) -> list[dict]:
    "The records of an experiment."
    recipe = Recipe(records=args.records, valid_records=args.valid, seed=11)
    return recipe_records(recipe, args.data_dir, split)


def caches(args, base) -> tuple:
    "Features at all `LAYERS` of what is trained and validated on."
    return tuple(cache_features(base, drawn(args, s), args.work, LAYERS, 300) for s in ("train", "valid"))


def shown(base, caches: tuple, layers: tuple = (12, 30)) -> tuple:
    "The same as if only some layers had been read."
    return tuple(View(cache, at_layers(base, layers)) for cache in caches)


def read_otherwise(base, cache: FeatureCache, place: Path, read, layout) -> FeatureCache:
    "The same records, laid out and read in another way; what is on disk is not read again."
    prompts = [layout(r, p) for r, p in zip(cache.records, cache.prompts)]
    place.mkdir(parents=True, exist_ok=True)
    for a in range(0, len(prompts), SHARD):
        shard = place / f"{a // SHARD:05d}.safetensors"
        if not shard.exists():
            here, found = prompts[a : a + SHARD], {}
            for ids in length_batches([len(p.ids) for p in here], 2600, shuffle=False):
                found |= zip(ids, read(base, [here[i] for i in ids]))
            save_shard(shard, [found[i] for i in range(len(here))])
    places = [(place / f"{k // SHARD:05d}.safetensors", k % SHARD) for k in range(len(prompts))]
    labels = [encode_labels(base, p, r["calls"], r.get("spans")) for p, r in zip(prompts, cache.records)]
    return FeatureCache(places, cache.records, prompts, labels)


def apart(base, prompts: list, layers: tuple = (12, 30)) -> list[Features]:
    "Tool and request read by themselves, so that either can be read ahead: the slots know nothing of the request."
    found = []
    for p in prompts:
        a, n = len(tool_tokens(p)), p.start + len(p.offsets)
        tool = base.read(torch.tensor([p.ids[:a] + p.ids[n:]]), torch.tensor([[r - (n - a) for r in p.rows]]), layers)
        asked = base.read(torch.tensor([p.ids[: p.start] + p.ids[a:n]]), torch.tensor([[0]]), layers)
        ids = torch.tensor(p.ids[p.start : n])
        hidden = torch.cat([tool.hidden_BTF[0, p.start : a], asked.hidden_BTF[0, p.start :]])
        pair = torch.zeros(len(p.rows), len(ids), tool.pair_BRTP.shape[-1])
        pair[:, : a - p.start] = tool.pair_BRTP[0, :, p.start : a]
        if tool.logits_BRV is not None: pair[..., -1] = tool.logits_BRV[0][:, ids] / 10
        found.append(Features(ids, *(x.to(torch.float16).contiguous() for x in (hidden, tool.rows_BRF[0], pair))))
    return found


def trial(args, base, learn, valid, seed: int = 0, steps: tuple = (3,), recipe: dict | None = None, **head) -> dict:
    "Train a head from scratch and validate it: its numbers, by the looks of the decoder."
    loop = TrainConfig(epochs=args.epochs, evaluations=0, precision="bf16", seed=seed)
    recipe = Recipe(seed=seed, head=head, train=loop, **(recipe or {}))
    start = time.perf_counter()
    run = recipe_run(recipe, base, learn, valid, None)
    history = train(run, progress=False)
    trained, found = time.perf_counter() - start, {}
    for n in steps:
        table = validate(run.model.eval(), base, valid, GenerationConfig(mode="tool", steps=n))
        _, *fields = bootstrap_ci(table.right[~table.gold_absent].tolist())
        _, *calls = bootstrap_ci(table.groupby("record").right.all().tolist())
        found[str(n)] = summary(table) | dict(valid_fields_95=fields, valid_calls_95=calls, by_kind=right_by(table, "kind"))
    shown = {k: round(v, 4) for k, v in found[str(steps[-1])].items() if isinstance(v, float)}
    print(seed, head, shown, f"{trained:.0f} s", file=sys.stderr, flush=True)
    return dict(seed=seed, head=asdict(run.model.config), parameters=run.model.n_trainable, train_examples=len(learn),
                valid_examples=len(valid), epochs=args.epochs, last_loss=float(history.loss[-50:].mean()), train_seconds=round(trained),
                looks=found)


def reading_ms(base, prompts: list, layers: tuple) -> float:
    "Milliseconds to read one prompt, the median."
    times = []
    for p in prompts:
        start = time.perf_counter()
        read_features(base, [p], layers)
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


# Each question is a table of variants by name: functions that train one and return its row.

def layers(args, base, found) -> dict:
    "Which layers of the base to read."
    def row(chosen):
        learn, valid = shown(base, found, chosen)
        return trial(args, base, learn, valid, layers=chosen) | dict(reading_ms=reading_ms(base, valid.prompts[:40], chosen))
    return {" + ".join(map(str, c)): partial(row, c) for c in [(12, 30), (6,), (12,), (18,), (24,), (30,), (6, 18), (12, 24)]}


def order(args, base, found) -> dict:
    "Tool first, request first, or each by itself."
    def row(name, first, read):
        def layout(record, prompt):
            messages = record.get("messages") or [dict(role="user", content=record["query"])]
            return encode_prompt(base, prompt.template, messages, query_first=first)
        def place(cache): return Path(args.work) / name.replace(" ", "-") / cache.places[0][0].parent.name   # a hash of what was read
        return trial(args, base, *(read_otherwise(base, c, place(c), read, layout) for c in found))
    more = {"request first": (True, read_features), "each by itself": (False, apart)}
    return {"tool first": partial(trial, args, base, *shown(base, found))} | {n: partial(row, n, *how) for n, how in more.items()}


def unit(args, base, found) -> dict:
    "What is denoised, slots or tokens, and in how many looks."
    return {v: partial(trial, args, base, *shown(base, found), steps=(1, 2, 3, 4, 8), variant=v) for v in ("slot", "token")}


def parts(args, base, found) -> dict:
    "What the head's parts and the training's options are worth."
    heads = {"as it is": {}, "no links": dict(use_links=False), "no order": dict(use_order=False),
             "no attention of the base": dict(use_pairs=False),
             "width 256": dict(width=256, heads=4), "depth 2": dict(depth=2), "depth 5": dict(depth=5),
             "residual MLP": dict(encoder="residual_mlp"), "step embedding": dict(step_embedding=True)}
    recipes = {"null penalty 0.3": dict(loss=LossConfig(null_prediction_penalty=.3)),
               "label smoothing 0.1": dict(loss=LossConfig(label_smoothing=.1)),
               "t uniform": dict(noise=NoiseConfig(t_law="uniform")),
               "SUBS weight, clipped": dict(noise=NoiseConfig(loss_weight="clipped"))}
    show = shown(base, found)
    return {n: partial(trial, args, base, *show, recipe=recipes.get(n), **heads.get(n, {})) for n in [*heads, *recipes]}


def seeds(args, base, found) -> dict:
    "The chosen head, three times: how far chance goes."
    return {f"seed {s}": partial(trial, args, base, *shown(base, found), seed=s) for s in (1, 2, 3)}


def sources(args, base, found) -> dict:
    "What each group of sources is worth: trained without it, on as many examples as are left."
    learn, valid = shown(base, found)
    rows = {"all": partial(trial, args, base, learn, valid)}
    for group, names in WEIGHTS.items():
        left = [i for i, r in enumerate(learn.records) if r["source"] not in names]
        rows[f"without {group}"] = partial(trial, args, base, learn[left], valid)
    return rows


def tools(args, base, found) -> dict:
    "Many tools or many examples: the same number of examples of half, a quarter and an eighth of the tools; fewer examples of all."
    learn, valid = shown(base, found)
    names, rows = sorted({r["calls"][0]["name"] for r in learn.records}), {}
    for share in (1, 2, 4, 8):
        every = [i for i in range(len(learn)) if i % share == 0]
        rows[f"{len(every)} examples"] = partial(trial, args, base, learn[every], valid)
        if share > 1:
            few = {n for k, n in enumerate(names) if k % share == 0}
            some = [i for i, r in enumerate(learn.records) if r["calls"][0]["name"] in few]
            rows[f"{len(few)} tools"] = partial(trial, args, base, learn[some], valid)
    return rows


COMMANDS = dict(layers=layers, order=order, unit=unit, parts=parts, seeds=seeds, sources=sources, tools=tools)


def run(args, base):
    "Train what is missing of one question."
    question, name = COMMANDS[args.what], f"exp-{args.what}"
    found = caches(args, base)
    about = dict(base=base.fingerprint, data=[content_hash(c.records) for c in found], records=args.records, valid=args.valid,
                 epochs=args.epochs, question=question.__doc__)
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else dict(about={}, rows={})
    rows = known["rows"] if about.items() <= known["about"].items() else {}
    variants = question(args, base, found)
    wanted = args.only.split(",") if args.only else list(variants)
    if unknown := [n for n in wanted if n not in variants]: sys.exit(f"no such row: {', '.join(unknown)}; there are {', '.join(variants)}")
    for n in wanted:
        if n in rows: continue
        rows[n] = variants[n]()
        write(name, base, about, dict(rows=rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=COMMANDS, help="; ".join(f"{k}: {f.__doc__}" for k, f in COMMANDS.items()))
    parser.add_argument("--data-dir", default=os.environ.get("SMOLDIFF_DATA"), help="folder with train/ and valid/ (without: tool bank)")
    parser.add_argument("--work", default=str(cache_dir() / "runs" / "experiments"), help="folder of features")
    parser.add_argument("--records", type=int, default=2400, help="drawn for training")
    parser.add_argument("--valid", type=int, default=300, help="drawn for validation")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--only", help="some rows, split by commas")
    run(parser.parse_args(), load_base(dtype="bfloat16" if torch.cuda.is_available() else "auto"))


if __name__ == "__main__":
    main()
