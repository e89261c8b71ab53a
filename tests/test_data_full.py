"The full training data, where it is at hand (SMOLDIFF_DATA): every record checks, no tool stands on both sides, mixtures repeat."
import json
import os
from pathlib import Path

import pytest

from smoldiff.data import (argument_table, bank_split, check_record, data_files, data_report, from_row, read_bank, read_records, to_row,
                           tool_names, training_mixture)

FOLDER = os.environ.get("SMOLDIFF_DATA")
WHY = "SMOLDIFF_DATA names no folder: the FULL training data is not tested, only the committed sample"
pytestmark = pytest.mark.skipif(not FOLDER, reason=WHY)
ROOT = Path(__file__).parents[1]


def _sources():
    if not FOLDER: return [("train", "none")]
    return [(split, source) for split in ("train", "valid") for source in data_files(FOLDER, split)]


@pytest.mark.parametrize("split,source", _sources())
def test_every_record_checks_and_survives_the_cache(split, source):
    seen = set()
    for record in read_records(data_files(FOLDER, split)[source]):
        check_record(record)
        assert record["id"] not in seen
        assert record["source"] == source and record["split"] == split
        assert bool(record["calls"]) != bool(record.get("neg"))
        assert from_row(to_row(record)) == record
        seen.add(record["id"])
    assert seen


@pytest.fixture(scope="module")
def mixtures(): return {split: training_mixture(FOLDER, 3000, seed=1, split=split) for split in ("train", "valid")}


def test_mixture_repeats(mixtures):
    again = training_mixture(FOLDER, 3000, seed=1)
    assert again == mixtures["train"]
    assert [r["id"] for r in training_mixture(FOLDER, 3000, seed=2)] != [r["id"] for r in again]


def test_mixture_is_checked_and_broad(mixtures):
    for records in mixtures.values():
        for record in records: assert check_record(record)["calls"]
    assert len(mixtures["train"]) == 3000
    called = {c["name"] for r in mixtures["train"] for c in r["calls"]}
    assert len(called) > 1500 # many tools before many examples
    assert {"number", "integer", "boolean", "array", "enum", "string"} <= set(argument_table(mixtures["train"])["type"])


def test_no_tool_on_both_sides(mixtures):
    files = {split: set().union(*(tool_names(read_records(p)) for p in data_files(FOLDER, split).values())) for split in ("train", "valid")}
    assert not files["train"] & files["valid"]
    train, valid = tool_names(mixtures["train"]), tool_names(mixtures["valid"])
    assert not train & (valid | files["valid"])
    assert not train & tool_names({"tools": [e]} for e in bank_split(read_bank())[1])


def test_report():
    report = data_report(FOLDER)
    assert report["tools_in_both"] == 0 and report["total"]["train"] == sum(report["records"]["train"].values())
    assert sum(report["mixture"]["sources"].values()) == report["mixture"]["n"]
    if os.environ.get("SMOLDIFF_WRITE_RESULTS"): # figures are kept on purpose, not by every run of the tests
        (ROOT / "results").mkdir(exist_ok=True)
        (ROOT / "results" / "data.json").write_text(json.dumps(report, indent=1) + "\n")
