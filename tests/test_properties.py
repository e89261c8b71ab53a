"What must hold for any schema, request and head, tried on random ones: calls validate, labels give values back, casts keep their word."
import json
import math
import re

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from smoldiff.decoding import DecodingConfig, fill
from smoldiff.noise import SCHEDULES, T_LAWS, mask_slots, sample_t
from smoldiff.scaffold import (ABSENT, PLANS, BudgetConfig, build_schema_template, encode_labels, encode_prompt, label_value,
                               smallest_value)
from smoldiff.tools import as_tool, validate_arguments
from smoldiff.values import INVALID, cast, find_value, fits, same

many = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# Schemas of the kinds that slots are made of; patterns, formats, multipleOf and uniqueItems are not among them

SMALL = st.integers(-40, 400)
HALVES = SMALL.map(lambda n: n / 2)  # numbers that survive every spelling
STEP = {"integer": 1, "number": 0.5}
LETTERS = st.text("abcdeXY é", min_size=1, max_size=6)
NAMES = st.sampled_from("city people size when note tags unit limit address kind".split())


@st.composite
def bounds(draw, low_key, high_key, values):
    "Some of a lower and an upper bound, in order."
    low, high = sorted([draw(values), draw(values)])
    return {k: v for k, v in ((low_key, low), (high_key, high)) if draw(st.booleans())}


@st.composite
def scalars(draw):
    "A string, number, boolean, enum or null."
    kind = draw(st.sampled_from(["string", "string", "integer", "number", "boolean", "enum", "null"]))
    if kind == "enum":
        options = draw(st.one_of(st.lists(LETTERS, min_size=1, max_size=4, unique_by=lambda s: re.sub(r"[\W_]", "", s).lower() or s),
                                 st.lists(SMALL, min_size=1, max_size=4, unique=True)))
        return {"type": "string" if isinstance(options[0], str) else "integer", "enum": options}
    if kind == "string": return {"type": kind, **draw(bounds("minLength", "maxLength", st.integers(0, 9)))}
    if kind in ("integer", "number"):
        found = draw(bounds("minimum", "maximum", SMALL if kind == "integer" else HALVES))
        if draw(st.booleans()):  # the same bounds, from outside
            step = STEP[kind]
            found = {("exclusiveMinimum" if k == "minimum" else "exclusiveMaximum"): v + (-step if k == "minimum" else step)
                     for k, v in found.items()}
        return {"type": kind, **found}
    return {"type": kind}


def lowest(schema, default):
    step = STEP[schema["type"]]
    return schema.get("minimum", schema["exclusiveMinimum"] + step if "exclusiveMinimum" in schema else default)


def highest(schema, default):
    step = STEP[schema["type"]]
    return schema.get("maximum", schema["exclusiveMaximum"] - step if "exclusiveMaximum" in schema else default)


@st.composite
def leaves(draw):
    "A scalar or an array of scalars, now and then with a default."
    schema = draw(scalars())
    if draw(st.integers(0, 3)) == 0:
        # null is left out: an array of nulls is no list that anyone says
        assume(schema["type"] != "null")
        schema = {"type": "array", "items": schema, **draw(bounds("minItems", "maxItems", st.integers(0, 3)))}
    if draw(st.integers(0, 4)) == 0: schema["default"] = draw(values(schema))
    return schema


@st.composite
def objects(draw, depth=2):
    "An object schema; some properties are objects in their turn."
    names, properties = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)), {}
    for name in names:
        nested = depth and draw(st.integers(0, 2)) == 0
        properties[name] = draw(objects(depth - 1) if nested else leaves())
    required = [n for n in names if draw(st.booleans())]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@st.composite
def values(draw, schema):
    "A value of a schema; optional objects without a value anywhere in them are left out, since no slot could stand for them."
    if "enum" in schema: return draw(st.sampled_from(schema["enum"]))
    kind = schema["type"]
    if kind == "string":
        low, high = schema.get("minLength", 0), schema.get("maxLength", 30)
        return draw(st.text("abcdeXY é0123.-,'", min_size=low, max_size=max(low, high)))
    if kind in ("integer", "number"):
        low = lowest(schema, min(-50, highest(schema, 0)))
        whole = draw(st.integers(round(low / STEP[kind]), round(highest(schema, max(500, low)) / STEP[kind])))
        return whole * STEP[kind]
    if kind == "boolean": return draw(st.booleans())
    if kind == "null": return None
    if kind == "array":
        low = schema.get("minItems", 0)
        return draw(st.lists(values(schema["items"]), min_size=low, max_size=schema.get("maxItems", max(3, low))))
    found = {}
    for name, child in schema["properties"].items():
        if name not in schema["required"] and draw(st.booleans()): continue
        value = draw(values(child))
        if name in schema["required"] or not hollow(value): found[name] = value
    return found


def hollow(value): return isinstance(value, dict) and all(map(hollow, value.values()))


@st.composite
def tools(draw):
    "A tool with a random schema."
    name = draw(st.sampled_from(["book", "set.light", "find_all"]))
    return as_tool({"name": name, "description": "Does it.", "parameters": draw(objects())})


@st.composite
def canvases(draw):
    "One to three calls of one or two tools."
    first, second = draw(tools()), draw(tools())
    if first.name == second.name: second = first
    return draw(st.lists(st.sampled_from([first, second]), min_size=1, max_size=3))


WORDS = st.sampled_from(
    "two twenty-one 3 4.5 -7 1,200 Rome red on off 'late show' a, b and c 12/05/2024 yes ab 5k minus [1, é".split(" "))
requests = st.lists(st.one_of(WORDS, SMALL.map(str), LETTERS), min_size=1, max_size=12).map(" ".join).filter(str.strip)


def said(value):
    "How a value might stand in a request."
    if isinstance(value, dict): return " ".join(said(v) for v in value.values())
    if isinstance(value, list): return ", ".join(said(v) for v in value)
    return value if isinstance(value, str) else json.dumps(value)


# Filling

HEADS = {}


def random_head(make_head, toy, variant, seed, scale, favour):
    "A head with random weights of some size, which favours one plan."
    head = HEADS.setdefault(variant, make_head(toy, width=16, heads=2, variant=variant).eval().requires_grad_(False))
    g = torch.Generator().manual_seed(seed)
    for p in head.parameters(): p.copy_(torch.randn(p.shape, generator=g) * scale)
    if variant == "slot": head.plan[-1].bias[favour] += 3 * scale
    return head


@many
@given(canvas=canvases(), request=requests, seed=st.integers(0, 99), scale=st.sampled_from([0.01, 0.3, 2.0]), favour=st.integers(0, 3),
       variant=st.sampled_from(["slot", "slot", "slot", "token"]), steps=st.integers(1, 4), temperature=st.sampled_from([0.0, 0.0, 1.0]))
def test_whatever_the_head_believes_the_call_validates(make_head, toy, canvas, request, seed, scale, favour, variant, steps, temperature):
    head = random_head(make_head, toy, variant, seed, scale, favour)
    small = BudgetConfig(string=6, number=4, array=8, json=8)  # room to write costs time and shows nothing more here
    prompt = encode_prompt(toy, build_schema_template(canvas, small), [{"role": "user", "content": request}])
    done = fill(toy, head, prompt, DecodingConfig(steps=steps, token_steps=2, temperature=temperature, seed=seed))
    assert [c["name"] for c in done.calls] == [t.name for t in canvas]
    for tool, call in zip(canvas, done.calls):
        assert validate_arguments(tool, call["arguments"]) == []
    json.dumps(done.calls, allow_nan=False)
    assert len(done.fields) == len(prompt.template.segments)
    for field, value in zip(done.fields, prompt.template.values(done.calls)):
        assert math.isfinite(field["confidence"]) and 0 <= field["confidence"] <= 1
        assert field["source"] in {"copy", "option", "write", "default", "absent"}
        assert (field["source"] == "absent") == (value is ABSENT)
        assert field["value"] == (None if value is ABSENT else value)


@many
@given(objects())
def test_the_last_resort_validates(schema):
    for name, child in schema["properties"].items():
        assert fits(smallest_value(child), child), (child, smallest_value(child))


# Values, labels and back

@many
@given(st.data())
def test_calls_survive_slots_and_labels(toy, data):
    canvas = data.draw(canvases())
    calls = [{"name": t.name, "arguments": data.draw(values(t.parameters))} for t in canvas]
    for tool, call in zip(canvas, calls): assert validate_arguments(tool, call["arguments"]) == []
    template = build_schema_template(canvas)
    assert template.assemble(template.values(calls)) == calls
    assert template.missing_slots(template.values(calls)) == []
    spoken = " ; ".join(said(v) for c in calls for v in c["arguments"].values() if data.draw(st.booleans()))
    prompt = encode_prompt(toy, template, [{"role": "user", "content": "do " + spoken}])
    labels = encode_labels(toy, prompt, calls)
    back = template.assemble([label_value(toy, prompt, i, label) for i, label in enumerate(labels)])
    assert same(back, calls)
    for label, value in zip(labels, template.values(calls)): assert (PLANS[label.plan] == "absent") == (value is ABSENT)


@many
@given(st.data())
def test_what_is_found_casts_back_to_its_value(data):
    schema = data.draw(leaves())
    value = data.draw(values(schema))
    text = " ".join([data.draw(requests), said(value), data.draw(requests)])
    for a, b in find_value(value, schema, text):
        assert 0 <= a < b <= len(text) and same(cast(text[a:b], schema), value)


NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
           "nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(n):
    "A number below a hundred in words."
    if n < 20: return NUMBERS[n]
    return TENS[n // 10 - 2] + ("-" + NUMBERS[n % 10] if n % 10 else "")


@many
@given(st.integers(0, 99), st.booleans(), st.sampled_from(["integer", "number"]))
def test_numbers_are_found_in_digits_and_words(n, words, kind):
    text = f"a table for {in_words(n) if words else n} people, please"
    spans = find_value(n, {"type": kind}, text)
    assert spans and all(cast(text[a:b], {"type": kind}) == n for a, b in spans)


@settings(many, max_examples=300)
@given(leaves(), st.one_of(requests, st.text(max_size=20), st.text("0123456789.,-eEkmNaInfity[]{}\"' ", max_size=20)))
def test_a_cast_validates_or_says_that_it_cannot(schema, text):
    value = cast(text, schema)
    if value is INVALID: return
    json.dumps(value, allow_nan=False)
    assert validate_arguments(as_tool({"name": "f", "parameters": {"type": "object", "properties": {"v": schema}}}), {"v": value}) == []


# Noise

@many
@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1), st.floats(0, 1), st.integers(0, 999))
def test_masks_grow_with_time(name, t1, t2, seed):
    schedule, (t1, t2) = SCHEDULES[name](), sorted([t1, t2])
    rates = schedule.mask_rate(torch.tensor([t1, t2]))
    assert 0 <= rates[0] <= rates[1] <= 1
    valid = torch.rand(5, 7, generator=torch.Generator().manual_seed(seed)) < .7
    early, late = (mask_slots(valid, torch.full((5,), t), schedule, torch.Generator().manual_seed(seed)) for t in (t1, t2))
    assert not (early & ~late).any() and not (late & ~valid).any()
    assert torch.equal(early.any(1), valid.any(1))  # something to learn from in every example


@pytest.mark.parametrize("law", T_LAWS)
@settings(many, max_examples=30)
@given(st.integers(0, 999), st.integers(1, 40), st.sampled_from(sorted(SCHEDULES)))
def test_times_lie_where_they_should(law, seed, n, name):
    draw = lambda: sample_t(n, law, torch.Generator().manual_seed(seed), SCHEDULES[name]())
    t = draw()
    assert t.shape == (n,) and (t >= 0).all() and (t <= 1).all() and torch.equal(t, draw())
