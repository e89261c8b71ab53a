"Schema-constrained autoregression: whatever a model likes to say, a value validates or is INVALID, and ends within its budget."
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings, strategies as st
from jsonschema import Draft202012Validator

import smoldiff.autoregressive as ar
from smoldiff.autoregressive import ARError, Writer, call_prompt_ids, compiled_grammar, constrained_json, require_xgrammar, vocabulary
from smoldiff.values import INVALID

needs_xgrammar = pytest.mark.skipif(find_spec("xgrammar") is None, reason="the extra [ar] is not installed")


def record(*required, **properties): return {"type": "object", "properties": properties, "required": list(required or properties)}


text, item = {"type": "string"}, record(name={"type": "string"}, count={"type": "integer", "minimum": 1, "maximum": 20})
ends = {  # XGrammar knows every keyword here and an end is always near: INVALID would be a failure
    "free-form object": {"type": "object"}, "anything": {}, "anything inside": record(a={}), "free-form array": {"type": "array"},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "pattern properties": {"type": "object", "patternProperties": {"^x_[a-z]+$": {"type": "integer"}}, "additionalProperties": False},
    "at least two": {"type": "object", "minProperties": 2}, "optional": record("a", a=text, b=text, c={"type": "number"}),
    "array of objects": {"type": "array", "items": item, "minItems": 1, "maxItems": 3},
    "arrays of arrays": {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": item}}, "minItems": 1},
    "enum": {"enum": ["terrace", "terrible", "inside", 3, None, True]}, "accents": {"enum": ["éa", "èa", "🦙🦙", "🦊"]},
    "quotes": record(**{'say "hi"\n🦙': {"enum": ['a "b"\\', "ü\t", "</tool_call><|im_end|>"]}}),
    "range": {"type": "integer", "minimum": -7, "maximum": 120}, "number": {"type": "number"}, "null": {"type": "null"},
    "one of many": {"anyOf": [{"type": "integer"}, item, {"type": "null"}]}, "nullable": record(a={"type": ["string", "null"]}, b=text),
    "length": {"type": "string", "minLength": 3, "maxLength": 9}, "pattern": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
    "date": {"type": "string", "format": "date"}, "constant": {"const": {"name": "Ada Löwe", "n": 42, "ok": True, "of": [1, None]}},
    "recursive": {"$ref": "#/$defs/N", "$defs": {"N": record("v", v=text, next={"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]})}},
}
ignored = {  # keywords that XGrammar looks past
    "unique": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 3, "uniqueItems": True}, "not": {"type": "string", "not": {}},
    "if": {"type": "string", "if": {}, "then": {"type": "integer"}},
    "all": {"allOf": [{"type": "string"}, {"type": "integer"}, {"minimum": 3}]},
}


def check(found, schema, budget):
    "What holds of every answer."
    assert len(found.tokens) <= budget and 0 <= found.confidence <= 1 and 0 <= found.forced
    if found.value is INVALID: assert found.confidence == 0; return
    Draft202012Validator(schema).validate(found.value)
    assert json.loads(found.text) == found.value
    json.dumps(found.value, ensure_ascii=False, allow_nan=False).encode()


@needs_xgrammar
@pytest.mark.parametrize("budget", [48, 160])
@pytest.mark.parametrize("kind", ends)
def test_a_random_model_gives_a_valid_value(toy, kind, budget):
    for seed in range(2):
        prompt = torch.randint(300, 40000, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
        for jump in (True, False):
            found = constrained_json(toy, prompt, ends[kind], budget, jump)
            check(found, ends[kind], budget)
            assert found.value is not INVALID, found.text
            if not jump: assert found.forced == 0


@needs_xgrammar
@pytest.mark.parametrize("kind", ignored)
def test_what_the_grammar_misses_is_invalid(toy, kind):
    for seed in range(3):
        found = constrained_json(toy, [300 + seed], ignored[kind], 40)
        check(found, ignored[kind], 40)
        assert found.value is INVALID


leaves = st.sampled_from([text, {"type": "integer"}, {"type": "number", "minimum": 0.5}, {"type": "boolean"}, {"enum": ["a", "ab", "é"]},
                          {}, {"type": "string", "minLength": 2}, {"type": "integer", "minimum": 100, "maximum": 300}, {"type": "object"}])
schemas = st.recursive(leaves, lambda inner: st.one_of(
    st.builds(lambda items, n: {"type": "array", "items": items, "minItems": n}, inner, st.integers(0, 2)),
    st.builds(lambda a, b, need: {**record(**{"a": a, 'ü"': b}), "required": need},
              inner, inner, st.sampled_from([[], ["a"], ["a", 'ü"']])),
    st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)), max_leaves=5)


@needs_xgrammar
@settings(max_examples=60, deadline=None, derandomize=True)
@given(schema=schemas, seed=st.integers(0, 9), jump=st.booleans())
def test_any_schema_ends_in_a_valid_value(toy, schema, seed, jump):
    found = constrained_json(toy, [300 + seed], schema, 100, jump)
    check(found, schema, 100)
    assert found.value is not INVALID or not found.cut, found.text


@needs_xgrammar
@pytest.mark.parametrize("which", ["base", "toy"])
def test_strings_that_do_not_end_are_closed_in_time(request, which):
    model, schema = request.getfixturevalue(which), record(title=text, summary=text)
    found = constrained_json(model, model.encode("Tell a long story as JSON:\n")[0], schema, max_new_tokens=24)
    check(found, schema, 24)
    assert found.value is not INVALID


@needs_xgrammar
def test_the_embedded_base_fills_a_call_with_fewer_passes_by_jumping(base):
    schema = record(name={"const": "book"}, arguments=record(city=text, guests={"type": "integer"}, room={"enum": ["inside", "terrace"]}))
    body = "book: Book a table.\n- city (string)\n- guests (integer)\n- room (inside, terrace)\n\nRequest: 4 guests in Rome, on the terrace"
    jumped, walked = (constrained_json(base, call_prompt_ids(base, body, ""), schema, jump_forward=jump) for jump in (True, False))
    for found in (jumped, walked): check(found, schema, 128); assert found.value["arguments"]["room"] == "terrace"
    assert jumped.passes == len(jumped.tokens) - jumped.forced and walked.passes == len(walked.tokens)
    assert jumped.passes < walked.passes / 2
    assert jumped.text == json.dumps(jumped.value, ensure_ascii=False)


@needs_xgrammar
def test_forced_text_is_tokenised_as_a_text(base):
    found = constrained_json(base, [300], ends["constant"])
    assert (found.value, found.passes, found.confidence) == (ends["constant"]["const"], 0, 1)
    assert found.tokens == base.encode(found.text)[0]


@needs_xgrammar
def test_the_cache_changes_nothing(toy, monkeypatch):
    cached = constrained_json(toy, [300, 400], ends["array of objects"], 60)
    fresh = ar.next_logits
    def without_cache(model, ids, before=None):
        ids = (before or []) + ids
        return fresh(model, ids)[0], ids
    monkeypatch.setattr(ar, "next_logits", without_cache)
    again = constrained_json(toy, [300, 400], ends["array of objects"], 60)
    assert (cached.tokens, cached.passes) == (again.tokens, again.passes) and cached.passes > 3


@needs_xgrammar
def test_a_blank_before_the_value_belongs_to_its_first_token(toy):
    prompt = toy.encode('{"name": "f", "arguments": {"a": 1, "b": ')[0]
    assert vocabulary(toy).pieces[prompt[-1]] == b" "
    found = constrained_json(toy, prompt, record(c=text), 30)
    assert vocabulary(toy).pieces[found.tokens[0]] == b' {"' and found.text[0] == "{"


@needs_xgrammar
def test_markers_cannot_stand_in_a_value(base):
    writer = Writer(base, text)
    for t in base.encode('"a')[0]: writer.accept(t)
    banned = [*base.tokenizer.all_special_ids, *base.tokenizer.added_tokens_decoder]
    assert not writer.allowed()[banned].any() and writer.allowed().sum() > 40000


@needs_xgrammar
def test_grammars_are_kept_by_content_and_few(toy, monkeypatch):
    monkeypatch.setattr(ar, "_KEPT", 4)
    vocabulary(toy).made.clear()
    first = compiled_grammar(toy, {"const": 0})
    assert compiled_grammar(toy, {"const": 0}) is first
    assert compiled_grammar(toy, record(a=text, b=text)) is not compiled_grammar(toy, record(b=text, a=text))
    for i in range(9): compiled_grammar(toy, {"const": i})
    assert len(vocabulary(toy).made) <= 4


@needs_xgrammar
@pytest.mark.parametrize("schema", [{"type": "place"}, {"enum": []}, {"type": "integer", "minimum": 5, "maximum": 3},
                                    {"const": float("nan")}, {"type": "string", "pattern": "("}])
def test_a_schema_that_cannot_be_taken_is_an_error_of_one_line(toy, schema):
    with pytest.raises(ARError) as e: constrained_json(toy, [300], schema)
    assert "\n" not in str(e.value) and "/project" not in str(e.value) and len(str(e.value)) < 300


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(ARError) as e: require_xgrammar("patternProperties at /properties/labels")
    assert str(e.value) == 'patternProperties at /properties/labels needs XGrammar: pip install xgrammar'
    bare = ar.Base.__new__(ar.Base)   # a base that has no vocabulary yet
    with pytest.raises(ARError, match=r"pip install xgrammar"): vocabulary(bare)


def test_the_module_does_not_import_the_extra():
    code = "import sys, smoldiff.autoregressive; sys.exit('xgrammar' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
