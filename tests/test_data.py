"Properties of the data module that lesson cells do badly: hostile files, concurrency of the cache, invariants over random input."
import gzip
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from smoldiff.data import (ExpandConfig, bank_split, cache_records, check_record, data_dir, data_files, expand_bank, expand_tool,
                           from_row, length_batches, name_key, parse_calls, quotas, read_bank, read_records,
                           split_by_tool, tool_names, training_mixture)
from smoldiff.tools import SmoldiffError

SAMPLE = Path(__file__).parent / "data" / "sample"


def sample(): return [r for s in ("train", "valid") for p in data_files(SAMPLE, s).values() for r in read_records(p)]


def test_sample_is_small_checked_and_licensed():
    records, card = sample(), (SAMPLE / "README.md").read_text()
    assert sum(p.stat().st_size for p in SAMPLE.rglob("*.jsonl")) < 100_000
    for r in records:
        check_record(r)
        assert f"| {r['source']} |" in card
    train, valid = ([r for r in records if r["split"] == s] for s in ("train", "valid"))
    assert not tool_names(train) & tool_names(valid)


@pytest.mark.parametrize("content", [b"\xff\xfe{", b'{"id": 1', b"[]\n", b"nonsense"])
def test_broken_file_is_one_line(tmp_path, content):
    cut = gzip.compress(b'{"a": 1}\n' * 500)[:40]
    for name, data in [("x.jsonl", content), ("x.jsonl.gz", gzip.compress(content)), ("y.jsonl.gz", cut)]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SmoldiffError) as e: list(read_records(tmp_path / name))
        assert name in str(e.value) and "\n" not in str(e.value)


def test_missing_file_and_folder(tmp_path, monkeypatch):
    with pytest.raises(SmoldiffError, match="cannot be read"): list(read_records(tmp_path / "none.jsonl"))
    monkeypatch.delenv("SMOLDIFF_DATA", raising=False)
    with pytest.raises(SmoldiffError, match="SMOLDIFF_DATA"): data_dir()
    with pytest.raises(SmoldiffError, match="no folder 'train'"): data_dir(tmp_path)
    monkeypatch.setenv("SMOLDIFF_DATA", str(SAMPLE))
    assert data_dir() == SAMPLE


def test_bank_is_sound():
    bank = read_bank()
    assert len({e["name"] for e in bank}) == len(bank) > 2400
    for e in bank:
        check_record({"id": e["name"], "query": "", "tools": [{k: e[k] for k in ("name", "description", "parameters")}], "calls": []})
        assert set(e["values"]) <= set(e["parameters"]["properties"]) and e["queries"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2400))
def test_expansion_is_sound_and_repeats(seed, i):
    bank = read_bank()
    cfg = ExpandConfig(resample=1, distract=1, shuffle=1, drop_description=1, parallel=0.4)
    records = expand_tool(bank[i], random.Random(seed), 6, bank, cfg)
    assert records == expand_tool(bank[i], random.Random(seed), 6, bank, cfg)
    for r in records:
        check_record(r)
        assert len(r["spans"]) == len(r["calls"]) and bool(r["calls"]) != bool(r.get("neg"))
        for call, where in zip(r["calls"], r["spans"]):
            for name, (start, end) in where.items(): assert name in call["arguments"] and r["query"][start:end].strip()


def test_negatives_get_distractors_of_other_domains():
    bank = read_bank()
    domain = {name_key(e["name"]): e["domain"] for e in bank}
    for r in expand_bank(bank, 1500, random.Random(0), ExpandConfig(irrelevant=0.5, missing=0.3, distract=1)):
        if r.get("neg"): assert sum(domain[name_key(t["name"])] == domain[name_key(r["id"][9:-9])] for t in r["tools"]) == 1


def test_bank_split_is_by_name_and_stable():
    bank = read_bank()
    train, valid = bank_split(bank)
    assert len(train) + len(valid) == len(bank) and 0.04 < len(valid) / len(bank) < 0.12
    assert {e["name"] for e in bank_split(bank[100:])[1]} == {e["name"] for e in valid} & {e["name"] for e in bank[100:]}


sources = st.sampled_from("abcdef")


@given(st.dictionaries(sources, st.integers(1, 9), min_size=1), st.dictionaries(sources, st.integers(0, 50)), st.integers(0, 200))
def test_quotas_fill_what_there_is(weights, available, n):
    found = quotas(n, weights, available)
    there = sum(available.get(s, 0) for s in weights)
    assert all(0 <= found[s] <= available.get(s, 0) for s in found) and sum(found.values()) == min(n, there)


def test_mixture_of_the_sample():
    mix = training_mixture(SAMPLE, 200, with_negatives=True)
    assert mix == training_mixture(SAMPLE, 200, with_negatives=True) and any(r.get("neg") for r in mix)
    assert all(r["calls"] for r in training_mixture(SAMPLE, 200))
    assert not tool_names(mix) & tool_names(training_mixture(SAMPLE, 60, split="valid"))
    only = training_mixture(SAMPLE, 10, weights={"sgd": 1}, keep=lambda r: "query" in r)
    assert all(r["source"] == "sgd" and "query" in r for r in only)


@given(st.integers(0, 1000), st.floats(0.05, 0.9))
def test_split_never_shares_a_tool(seed, share):
    train, valid = split_by_tool(sample(), share, seed)
    assert not tool_names(train) & tool_names(valid)
    for r in train + valid: assert {c["name"] for c in r["calls"]} <= {t["name"] for t in r["tools"]} and r["tools"]


@given(st.lists(st.integers(1, 400), max_size=80), st.integers(1, 1000), st.booleans())
def test_batches_cover_and_fit(lengths, budget, shuffle):
    batches = length_batches(lengths, budget, torch.Generator().manual_seed(0), shuffle)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)


texts = st.text("abc\\ '\"(),=[]{}:é", max_size=12)
scalars = st.one_of(st.integers(-999, 999), st.floats(-9, 9).map(lambda x: round(x, 3)), st.booleans(), st.none(), texts)
arguments = st.dictionaries(st.sampled_from(["x", "from", "$top"]), st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=3)


@given(st.lists(st.tuples(st.sampled_from(["f", "Get Weather", "Feed (Video) V2", "a.b"]), arguments), max_size=3))
def test_python_calls_are_read_back(calls):
    text = "[" + ", ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in calls) + "]"
    assert parse_calls(text) == [{"name": n, "arguments": a} for n, a in calls]


def test_cache_written_by_several_at_once(tmp_path):
    records = sample()
    with ThreadPoolExecutor(4) as pool: sets = list(pool.map(lambda _: cache_records(records, tmp_path), range(4)))
    assert all([from_row(row) for row in s] == records for s in sets)
    assert [p.suffix for p in tmp_path.iterdir()] == [".arrow"]


def test_cache_of_a_broken_file_leaves_nothing(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "a"}\n{"id"')
    with pytest.raises(SmoldiffError, match="x.jsonl, line 2"): cache_records([tmp_path / "x.jsonl"], tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(SmoldiffError): cache_records([tmp_path / "none.jsonl"], tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(SmoldiffError, match="cannot be used"): cache_records([json.loads('{"id": "a"}')], tmp_path / "file" / "cache")
