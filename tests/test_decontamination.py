"""Nothing we train on or show stands in the test: no text of the tool bank or of the sample shares eight consecutive words with a
question of BFCL (its unused parts included), and no tool of the bank is one of its functions."""
import json
import random
import re
import warnings
import zipfile
from pathlib import Path

import pytest

from smoldiff.base import fetch_wheel
from smoldiff.data import expand_bank, read_bank, read_records, turns, word_runs
from smoldiff.evaluation import BFCL_WHEEL
from smoldiff.tools import SmoldiffError

sample = Path(__file__).parent / "data" / "sample"
run = 8


@pytest.fixture(scope="module")
def bfcl():
    "All lines of the wheel's question and function files."
    try: wheel = fetch_wheel(*BFCL_WHEEL)
    except SmoldiffError as e:
        warnings.warn(f"OVERLAP WITH BFCL WAS NOT TESTED: {e}")
        pytest.skip(str(e))
    with zipfile.ZipFile(wheel) as z:
        names = [n for n in z.namelist() if re.search(r"/data/.*\.json$", n) and "answer" not in n and "ground_truth" not in n]
        return [row for n in names for row in rows_of(z.read(n))]


def rows_of(data: bytes) -> list:
    "The objects of a file, which is JSON or JSON lines."
    try: whole = json.loads(data)
    except ValueError: whole = [json.loads(line) for line in data.splitlines() if line.strip()]
    return whole if isinstance(whole, list) else [whole]


def contents(x):
    "Every text of a message, however deep the messages lie."
    if isinstance(x, str): yield x
    elif isinstance(x, dict): yield from contents(x.get("content", []))
    elif isinstance(x, list):
        for y in x: yield from contents(y)


def functions(row):
    found = row.get("function", []) if "parameters" not in row else [row]
    return [f for f in (found if isinstance(found, list) else [found]) if isinstance(f, dict) and isinstance(f.get("parameters"), dict)]


@pytest.fixture(scope="module")
def questions(bfcl):
    texts = [t for row in bfcl if isinstance(row, dict) for t in contents(row.get("question", []))]
    assert len(texts) > 5_000
    # a question shorter than the run counts whole
    return set().union(*(word_runs(t, run) for t in texts)), {plain(t) for t in texts} - {""}


def plain(text): return " ".join(re.findall(r"\w+", text.lower()))


def overlaps(texts, questions):
    runs, whole = questions
    return sorted({t for t in texts if plain(t) in whole or word_runs(t, run) & runs})


def template_texts(entry):
    "Every template and example of an entry, with placeholders taken out so that they cannot hide a run."
    templates = entry["queries"] + entry.get("parallel", []) + entry.get("negatives", []) + entry.get("missing", [])
    return [re.sub(r"\{[^{}]*\}", "{}", t["q"] if isinstance(t, dict) else t) for t in templates]


def test_no_template_of_the_bank_is_a_question(questions):
    texts = [t for entry in read_bank() for t in template_texts(entry)]
    assert len(texts) > 1_000
    assert [t for t in texts if word_runs(t, run) & questions[0]] == []


def test_no_expanded_request_is_a_question(questions):
    texts = [r["query"] for r in expand_bank(read_bank(), 12_000, random.Random(0))]
    assert len(texts) > 10_000
    assert overlaps(texts, questions) == []


def test_no_record_of_the_sample_is_a_question(questions):
    files = sorted(sample.rglob("*.jsonl*"))
    texts = [m["content"] for f in files for r in read_records(f) for m in turns(r) if m["role"] == "user"]
    assert len(files) > 5 and texts
    assert overlaps(texts, questions) == []


def test_no_tool_of_the_bank_is_a_function(bfcl):
    def key(tool): return tool["name"].lower(), frozenset(p.lower() for p in tool["parameters"].get("properties", {}))
    known = {key(f) for row in bfcl if isinstance(row, dict) for f in functions(row)}
    assert len(known) > 2_000
    assert [e["name"] for e in read_bank() if key(e) in known] == []
