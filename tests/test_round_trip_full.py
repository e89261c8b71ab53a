"Gold calls become plans, spans, options and tokens, and come back: on the tool bank always, on the full data where SMOLDIFF_DATA names it."
import json
import os
import random
import zlib
from collections import Counter
from pathlib import Path

import pytest

from smoldiff.data import data_files, expand_bank, read_bank, read_records
from smoldiff.scaffold import PLANS, encode_labels, label_value
from smoldiff.values import same
from smoldiff.tools import SmoldiffError
from smoldiff.training import record_prompt

FOLDER = os.environ.get("SMOLDIFF_DATA")
WHY = "SMOLDIFF_DATA names no folder: gold calls of the FULL training data are not tested, only those of the tool bank and the sample"
full = pytest.mark.skipif(not FOLDER, reason=WHY)
ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "tests" / "data" / "sample"
EVERY = {"valid": 1, "train": 1 if os.environ.get("SMOLDIFF_ALL") else 20}  # one record in so many
LEAST = 0.995  # of the calls must come back, under BFCL's string normalisation


def chosen(record, every): return bool(record["calls"]) and zlib.crc32(record["id"].encode()) % every == 0


def come_back(base, record):
    "The gold calls after the way to labels and back, and the labels."
    prompt = record_prompt(base, record)
    labels = encode_labels(base, prompt, record["calls"], record.get("spans"))
    return prompt.template.assemble([label_value(base, prompt, i, label) for i, label in enumerate(labels)]), labels


def count(base, records):
    "Calls that come back exactly, and under normalisation; plans of their slots; records that do not, with what was wrong."
    counts, plans, wrong = Counter(), Counter(), {}
    for record in records:
        try: back, labels = come_back(base, record)
        except SmoldiffError as e:
            assert "at most" in str(e), f"{record['id']}: {e}"  # longer than the base can read; nothing else may go wrong
            counts["too_long"] += 1
            continue
        plans.update(PLANS[label.plan] for label in labels)
        counts["records"] += 1
        for gold, call in zip(record["calls"], back, strict=True):
            counts.update(calls=1, exact=gold == call, normalised=same(gold, call))
            if not same(gold, call): wrong.setdefault(record["id"], {"gold": gold["arguments"], "back": call["arguments"]})
    return counts, plans, wrong


def summary(counts, plans):
    "Counts, and shares of the plans among all slots."
    return {**{k: counts[k] for k in ("records", "calls", "exact", "normalised", "too_long")},
            "plans": {p: round(plans[p] / max(1, plans.total()), 4) for p in PLANS}}


def test_the_tool_bank_comes_back(base):
    "One record of every tool."
    bank = read_bank()
    counts, plans, wrong = count(base, [r for r in expand_bank(bank, len(bank), random.Random(0)) if r["calls"]])
    assert counts["calls"] > 600 and not counts["too_long"] and not wrong
    assert plans["copy"] > plans["option"] > 0 and plans["absent"] and plans["write"] < .1 * plans.total()


def test_the_sample_comes_back(base):
    records = [r for split in ("train", "valid") for p in data_files(SAMPLE, split).values() for r in read_records(p) if r["calls"]]
    counts, plans, wrong = count(base, records)
    assert counts["calls"] > 50 and not wrong


RESULTS = {}


@full
@pytest.mark.parametrize("split", ["valid", "train"])
def test_the_full_data_comes_back(base, split):
    total, plans, wrong, sources = Counter(), Counter(), {}, {}
    for source, path in data_files(FOLDER, split).items():
        found = count(base, (r for r in read_records(path) if chosen(r, EVERY[split])))
        if found[0]: sources[source] = summary(*found[:2])
        total, plans, wrong = total + found[0], plans + found[1], wrong | found[2]
    RESULTS[split] = {"one_record_in": EVERY[split], **summary(total, plans), "share": round(total["normalised"] / total["calls"], 6),
                      "sources": sources, "wrong": list(wrong)}
    assert total["calls"] > 3000
    assert total["normalised"] >= LEAST * total["calls"], dict(list(wrong.items())[:5])


@full
def test_report():
    "Written on purpose, not by every run of the tests."
    if not os.environ.get("SMOLDIFF_WRITE_RESULTS"): pytest.skip("SMOLDIFF_WRITE_RESULTS is not set")
    assert set(RESULTS) == {"valid", "train"}
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / "round_trip.json").write_text(json.dumps(RESULTS, indent=1) + "\n")
