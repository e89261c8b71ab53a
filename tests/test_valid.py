"Whatever the head believes, what leaves validates, and can be taken apart again: random schemas by random logits, SMOLDIFF_FUZZ of them."
import os
from collections import Counter

import pytest
import torch
from conftest import save_toy_base
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemas import WildHead, blank_features, requests, small_tokenizer, tools

from smoldiff.automata import token_automaton, viterbi
from smoldiff.base import load_base
from smoldiff.decoding import DecodingConfig, Denoiser, Guess, fill
from smoldiff.head import collate, make_example
from smoldiff.scaffold import BudgetConfig, ScaffoldError, build_schema_template, encode_prompt
from smoldiff.tools import ToolError, as_tool
from smoldiff.values import INVALID, fits, same

N = int(os.environ.get("SMOLDIFF_FUZZ", 2000))


def valid(tool, arguments):
    "Against the schema as the caller wrote it, formats checked."
    return Draft202012Validator(tool["parameters"], format_checker=Draft202012Validator.FORMAT_CHECKER).is_valid(arguments)


def hollow(values):
    "Whether an empty object or list is somewhere inside: one that may be left out is there only when something in it is filled."
    inner = [v.values() if isinstance(v, dict) else v for v in values if isinstance(v, (dict, list))]
    return any(not v or hollow(v) for v in inner)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A base of few tokens."
    return load_base(str(save_toy_base(tmp_path_factory.mktemp("small") / "base", small_tokenizer(), context=100_000)), device="cpu")


def answer(base, head, tool, request, number):
    "Calls for a request, by beliefs that a number stands for."
    budgets = BudgetConfig() if number % 4 else BudgetConfig(string=5, number=4, array=6, json=8, items=2)
    template = build_schema_template([as_tool(tool)] * (2 if number % 16 == 1 else 1), budgets)
    prompt = encode_prompt(base, template, [{"role": "user", "content": request}], max_tokens=10 ** 6)
    config = DecodingConfig(steps=1 + number % 3, token_steps=1 + number % 4, temperature=number % 2, seed=number, autoregress=False)
    return fill(base, head.believe(number), prompt, config, blank_features(prompt))


def test_what_leaves_is_valid(base, small, capsys):
    heads = {(b, v): WildHead(b, v) for b in (base, small) for v in ("slot", "token")}
    counts = Counter()

    @seed(0)
    @settings(max_examples=N, deadline=None, database=None, derandomize=N <= 2000, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(tools(), requests, st.integers(0, 2 ** 31))
    def check(tool, request, number):
        used, variant = base if number % 40 == 7 else small, "token" if number % 8 == 0 else "slot"
        try: done = answer(used, heads[used, variant], tool, request, number)
        except (ScaffoldError, ToolError) as e:
            assert "\n" not in str(e)
            counts["refused"] += 1
            return
        counts["tried"] += len(done.calls)
        counts["values"] += sum(f["source"] != "absent" for f in done.fields)
        counts["values by default"] += sum(f["source"] == "default" for f in done.fields)
        counts["of the embedded base"] += used is base
        for call in done.calls: assert valid(tool, call["arguments"]), (tool, call)
        if any(hollow(call["arguments"].values()) for call in done.calls): return
        template = build_schema_template([as_tool(tool)] * len(done.calls))
        assert same(template.assemble(template.values(done.calls)), done.calls, strict=True), (tool, done.calls)

    check()
    with capsys.disabled(): print(f"\ncalls of random schemas by random logits, all valid: {dict(counts)}")
    assert counts["tried"] >= .8 * N


def test_no_look_leads_nowhere(small):
    "At every look what has been revealed can still become a valid value, and in the end it is one."
    slots = {"day": {"type": "string", "format": "date"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
             "mail": {"type": "string", "format": "email"}, "n": {"type": "integer", "minimum": 17, "maximum": 2044},
             "name": {"type": "string", "minLength": 2, "maxLength": 9}, "part": {"type": "number", "minimum": 0, "maximum": 1},
             "ids": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4}}
    tool = {"name": "f", "parameters": {"type": "object", "properties": slots, "required": [*slots]}}
    prompt = encode_prompt(small, build_schema_template(as_tool(tool)), [{"role": "user", "content": "now"}])
    head, even, batch = WildHead(small), torch.zeros(64, small.vocab_size + 2), collate([make_example(prompt, blank_features(prompt))])
    for number in range(30):
        loop = Denoiser(head.believe(number), small, prompt, batch, DecodingConfig(threshold=.9, temperature=number % 2, seed=number))
        loop.known = [Guess(INVALID, 3, 1., source="write", tokens=[small.mask_id] * s.budget) for s in prompt.template.segments]
        for left in (5, 4, 3, 2, 1):
            loop.write(loop.see(), left)
            for guess, schema in zip(loop.known, slots.values()):
                fixed = [None if t == small.mask_id else t for t in guess.tokens]
                assert viterbi(token_automaton(small, schema), even[:len(fixed)], small.null_id, fixed) is not None
        for i, (guess, schema) in enumerate(zip(loop.known, slots.values())):
            assert small.mask_id not in guess.tokens and fits(loop.text_value(i, guess.tokens), schema)
