"""Properties of the metrics that a lesson would not show."""
import copy
import json
import random
from pathlib import Path

from hypothesis import given, settings, strategies as st

from smoldiff.data import read_records
from smoldiff.evaluation import (
    equal_normalised, equal_strict, evaluate, evaluate_predictions, exact_calls, field_table, grounded, match_calls, normalise,
    read_predictions, write_predictions)
from smoldiff.tools import ToolError

sample = sorted((Path(__file__).parent / "data" / "sample").rglob("*.jsonl*"))
records = [r for path in sample for r in read_records(path)]
scalars = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text("aB ,.'", max_size=5)
inside = lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
values = st.recursive(scalars, inside, max_leaves=6)
arguments = st.dictionaries(st.sampled_from("xyz"), values)
calls = st.lists(st.builds(lambda n, a: {"name": n, "arguments": a}, st.sampled_from("fg"), arguments), max_size=4)
keys = {"n", "call_exact", "call_match", "field_exact", "schema_valid", "null_rate_true", "null_rate_pred", "null_token_rate",
        "hallucination_rate", "latency_ms"}


def line(record, calls): return {"id": record["id"], "mode": "tool", "calls": calls, "fields": [], "ms": 1.0}


@given(values, values)
def test_both_equalities_are_equivalences(a, b):
    for equal in (equal_strict, equal_normalised):
        assert equal(a, json.loads(json.dumps(a))) and equal(a, b) == equal(b, a)
    assert equal_normalised(a, b) or not equal_strict(a, b)
    assert equal_strict(normalise(normalise(a)), normalise(a))


@given(calls, calls, st.randoms())
def test_order_of_calls_does_not_count(gold, other, rng):
    for same in (exact_calls, match_calls):
        assert same(gold, rng.sample(gold, len(gold))) and same(gold, other) == same(other, gold)
        assert not same(gold, gold + gold[:1]) or not gold
    assert match_calls(gold, other) or not exact_calls(gold, other)


@settings(max_examples=50)
@given(values, st.text("ab 19:", max_size=20))
def test_anything_can_be_asked_for_its_ground(value, text):
    assert grounded(value, {}, text) in (True, False)
    assert grounded(value, {"enum": [value]}, text) and grounded(value, {"default": value}, text)


def test_gold_answers_are_perfect():
    assert len(records) > 50
    metrics = evaluate_predictions(records, [line(r, r["calls"]) for r in records][::-1])
    assert set(metrics) == keys and metrics["n"] == len(records)
    assert [metrics[k] for k in ("call_exact", "call_match", "field_exact", "schema_valid")] == [1.0] * 4
    assert metrics["null_rate_true"] == metrics["null_rate_pred"] > 0 and metrics["hallucination_rate"] < .1
    json.dumps(metrics)


def test_one_wrong_value_is_one_wrong_field():
    rng, tried = random.Random(0), 0
    for record in rng.sample(records, 40):
        calls = copy.deepcopy(record["calls"])
        texts = [(c, p) for c in calls for p, v in c["arguments"].items() if isinstance(v, str) and len(v) > 1]
        if len(calls) != 1 or not texts: continue
        (call, p), tried = rng.choice(texts), tried + 1
        call["arguments"][p] = "no such value"
        table = field_table([record], [line(record, calls)])
        assert table.loc[table.error != "", "path"].tolist() == [p] and set(table.error) <= {"", "wrong value"}
    assert tried > 10


def test_objects_of_numbers_are_values_not_bfcl_answers():
    place = {"type": "object", "properties": {"at": {"type": "object", "additionalProperties": {"type": "number"}}}}
    calls = [{"name": "f", "arguments": {"at": {"lat": 4.5}}}, {"name": "f", "arguments": {"at": {"lat": 2}}}]
    record = {"id": "1", "query": "from 4.5 to 2", "tools": [{"name": "f", "description": "", "parameters": place}], "calls": calls}
    assert set(field_table([record], [line(record, calls[::-1])]).right_norm) == {True}


def test_a_metric_without_cases_is_null_and_failures_have_lines(tmp_path):
    def fails(record): raise ToolError("two tools are called 'x'")
    lines, metrics = evaluate(fails, records, limit=5, progress=False)
    assert [x["error"] for x in lines] == ["two tools are called 'x'"] * 5 and all(x["calls"] == [] for x in lines)
    assert metrics["schema_valid"] is None and metrics["null_token_rate"] is None
    write_predictions(tmp_path / "out.jsonl", lines)
    assert read_predictions(tmp_path / "out.jsonl") == lines and [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
