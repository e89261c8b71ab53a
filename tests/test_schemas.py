"Schemas as people have them: references, `allOf` and the dialects of others come out as plain JSON Schema that says the same."
import copy
import enum
import json
from collections.abc import Mapping
from datetime import date, datetime
from typing import Annotated, Literal, Optional, Union
from uuid import UUID

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from smoldiff.tools import (FORMATS, Registry, ToolError, as_tool, as_tools, inline_refs, merge_schemas, normalise_schema, read_tools,
                            schema_validator, validate_arguments)

many = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def keywords(schema):
    "All keywords in a schema; names of properties are none."
    if not isinstance(schema, dict): return set()
    inner = [*schema.get("properties", {}).values(), *(s for k in ("anyOf", "oneOf", "allOf", "prefixItems") for s in schema.get(k, []))]
    inner += [schema[k] for k in ("items", "additionalProperties", "not") if k in schema]
    return set(schema).union(*map(keywords, inner))


def fits(schema, value): return Draft202012Validator(schema).is_valid(value)


def rejects(schema, *says):
    "An error of one line."
    with pytest.raises(ToolError) as e: as_tool({"name": "f", "parameters": schema})
    assert "\n" not in str(e.value) and str(e.value).startswith("tool f: ")
    for text in says: assert text in str(e.value)


# Random schemas, and values small enough to meet them now and then

NAMES = st.sampled_from("abc")
FEW = [None, True, False, 0, 1, 2, 3.0, 0.5, "", "a", "bb", "ccc"]
MANY = [*FEW, {}, [], *({n: v} for n in "abc" for v in FEW), *([v] for v in FEW), *({"a": v, "b": w} for v in FEW[::3] for w in FEW[::3])]
SCALARS = st.sampled_from(FEW)
VALUES = st.lists(st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=8),
                  min_size=4, max_size=12).map(lambda some: MANY + some)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object", ["integer", "null"], ["number", "string"]])
SMALL = st.integers(0, 3)
RULES = {"type": TYPES, "enum": st.lists(SCALARS, min_size=1, max_size=4), "const": SCALARS, "minimum": SMALL, "exclusiveMaximum": SMALL,
         "multipleOf": st.sampled_from([0.5, 1, 2, 3]), "minLength": SMALL, "maxLength": SMALL, "pattern": st.sampled_from(["^a", "b"]),
         "minItems": SMALL, "maxItems": SMALL, "uniqueItems": st.booleans(), "description": st.text("xyz", max_size=3)}


@st.composite
def plain(draw, inner=st.just({}), rules=tuple(RULES)):
    "A schema of one level or, with `inner`, of more."
    keys = draw(st.lists(st.sampled_from([*rules, "properties", "properties", "items"]), max_size=3, unique=True))
    out = {k: draw(RULES[k]) for k in keys if k in RULES}
    if "properties" in keys:
        out["properties"] = draw(st.dictionaries(NAMES, inner, max_size=3))
        out["required"] = [n for n in out["properties"] if draw(st.booleans())]
        if draw(st.booleans()): out["additionalProperties"] = draw(st.just(False) | inner)
    if "items" in keys:
        out["items"] = draw(inner)
        if draw(st.booleans()): out["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    return out


def trees(leaves):
    def level(inner):
        lists = st.lists(inner, min_size=1, max_size=3)
        unions = st.sampled_from(["anyOf", "oneOf", "allOf", "anyOf", "oneOf"]).flatmap(lambda k: st.fixed_dictionaries({k: lists}))
        return plain(inner) | unions | st.fixed_dictionaries({"not": inner}) | plain(inner)
    return st.recursive(leaves, level, max_leaves=6)


@st.composite
def references(draw, targets):
    "A reference, at times with neighbours."
    return {"$ref": draw(st.sampled_from(targets)), **draw(st.just({}) | plain(rules=("description", "type", "maxItems", "minimum")))}


FLAT = trees(plain() | st.booleans())
LOOPS = references(["#", "#/$defs/A", "#/$defs/B"])
RECURSIVE = st.builds(lambda root, a, b: {**root, "$defs": {"A": a, "B": b}},
                      *[trees(LOOPS | plain() | LOOPS).filter(lambda s: isinstance(s, dict))] * 3)
STRAIGHT = st.builds(lambda root, a, b: {**root, "$defs": {"A": a, "B": b}},
                     trees(references(["#/$defs/A", "#/$defs/B"])).filter(lambda s: isinstance(s, dict)),
                     trees(references(["#/$defs/B"])), FLAT)


def at_once(schema):
    "The references that a schema follows without a step into the value."
    if not isinstance(schema, dict): return set()
    inner = [schema.get("not"), *(s for k in ("anyOf", "oneOf", "allOf") for s in schema.get(k, []))]
    return set([schema["$ref"]] if "$ref" in schema else []).union(*map(at_once, inner))


def means_something(schema):
    "No reference leads back to itself without a step into the value: a validator would go round in circles."
    leads = {"#": at_once(schema), **{f"#/$defs/{k}": at_once(s) for k, s in schema["$defs"].items()}}
    for _ in leads: leads = {k: refs.union(*(leads[r] for r in refs)) for k, refs in leads.items()}
    return not any(k in refs for k, refs in leads.items())


# References

@many
@given(STRAIGHT, VALUES)
def test_references_that_end_are_written_out_exactly(schema, values):
    out = inline_refs(schema)
    assert not {"$ref", "$defs"} & keywords(out)
    for value in values: assert fits(out, value) == fits(schema, value)


@many
@given(RECURSIVE.filter(means_something), VALUES)
def test_what_a_written_out_recursion_takes_the_original_takes(schema, values):
    try: out = inline_refs(schema)
    except ToolError as e:
        assert "$ref" in str(e)
        return
    for value in values:
        if fits(out, value): assert fits(schema, value), value


NODE = {"$defs": {"Node": {"type": "object", "required": ["name"], "properties": {
    "name": {"type": "string"}, "next": {"$ref": "#/$defs/Node"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}}}}},
    "type": "object", "properties": {"root": {"$ref": "#/$defs/Node"}}, "required": ["root"]}


@pytest.mark.parametrize("step", [lambda n: {"next": n}, lambda n: {"kids": [n]}, lambda n: {"next": n, "kids": [{"name": "kid"}]}])
def test_a_recursion_is_repeated_twice(step):
    out, node = normalise_schema(NODE), {"name": "end"}
    for depth in range(5):
        assert fits(out, {"root": node}) == (depth <= 2), depth
        assert fits(NODE, {"root": node})
        node = {"name": "n", **step(node)}


def test_each_place_where_a_recursion_can_end():
    ends = {"items": {"type": "array", "items": {"$ref": "#"}}, "map": {"type": "object", "additionalProperties": {"$ref": "#"}},
            "union": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "one": {"oneOf": [{"$ref": "#"}, {"type": "string"}]},
            "tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"$ref": "#"}]}}
    for name, schema in ends.items():
        document = {"type": "object", "properties": {name: schema}, "required": [name]}
        out = normalise_schema(document)
        assert "$ref" not in keywords(out), name
        for value in ([], {}, None, "leaf", ["leaf"], [3], {"a": 3}):
            for whole in ({name: value}, {name: {name: value}}, {name: [{name: value}]}, {name: {"a": {name: value}}}):
                assert fits(out, whole) == fits(document, whole), whole


@pytest.mark.parametrize("schema, place", [
    ({"properties": {"head": {"$ref": "#"}}, "required": ["head"]}, "/properties/head/$ref: # contains itself and has no end"),
    ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}, "contains itself and has no end"),
    ({"properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"], "$defs": {"A": {"allOf": [{"$ref": "#/$defs/A"}]}}},
     "/$defs/A/allOf/0/$ref"),
    ({"properties": {"a": {"$ref": "#/$defs/L"}}, "required": ["a"], "$defs": {
        "L": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/L"}}}}, "/$defs/L/items/$ref: #/$defs/L"),
    ({"properties": {"a": {"$ref": "#/$defs/Gone"}}}, "/properties/a: #/$defs/Gone names nothing"),
    ({"properties": {"a": {"$ref": "other.json"}}}, "/properties/a: only local references"),
    ({"properties": {"a": {"$ref": "#anchor"}}}, "/properties/a: only local references"),
    ({"properties": {"a": {"$ref": 3}}}, "/properties/a: only local references"),
    ({"properties": {"a": {"$dynamicRef": "#x"}}}, "/properties/a/$dynamicRef")])
def test_references_that_cannot_be_followed(schema, place): rejects(schema, place)


def test_references_that_explode_are_refused():
    "Doubling, one definition after the other; and every definition in every other."
    bombs = [{f"d{i}": {"properties": {n: {"$ref": f"#/$defs/d{i + 1}"} for n in "ab"}} for i in range(40)} | {"d40": {}},
             {c: {"properties": {d: {"$ref": f"#/$defs/{d}"} for d in "abcdefghijkl"}} for c in "abcdefghijkl"}]
    for defs in bombs: rejects({"$defs": defs, "properties": {"x": {"$ref": f"#/$defs/{next(iter(defs))}"}}}, "more than 5000 schemas")


def test_a_recursion_too_wide_for_two_repetitions_gets_fewer():
    kinds = [f"block{i}" for i in range(7)]
    blocks = [{"type": "object", "required": ["kind"], "properties": {
        "kind": {"const": k}, "inside": {"type": "array", "items": {"$ref": "#/$defs/any"}}}} for k in kinds]
    schema = {"$defs": {"any": {"anyOf": blocks}}, "type": "object", "properties": {"page": {"$ref": "#/$defs/any"}}}
    out = normalise_schema(schema)
    assert fits(out, {"page": {"kind": "block3", "inside": []}}) and len(json.dumps(out)) < 10**6


def test_neighbours_of_a_reference():
    defs = {"$defs": {"S": {"type": "string", "description": "inner", "minLength": 2}}}
    out = normalise_schema({**defs, "properties": {
        "a": {"$ref": "#/$defs/S", "description": "outer", "default": "xx"}, "b": {"$ref": "#/$defs/S", "maxLength": 4, "minLength": 1},
        "c": {"$ref": "#/$defs/S", "nullable": True}, "d": {"$ref": "#/$defs/S", "type": "integer"}}, "required": ["c"]})["properties"]
    assert out["a"] == {"type": "string", "description": "outer", "minLength": 2, "default": "xx"}
    assert out["b"] == {"type": "string", "description": "inner", "minLength": 2, "maxLength": 4}
    assert fits(out["c"], None) and fits(out["c"], "xx") and not fits(out["c"], "x")
    assert not any(fits(out["d"], v) for v in ("xx", 3))


A, B, CUT = ({"type": "object", "properties": {"x": s, "kind": {"const": k}}, **more} for s, k, more in [
    ({"type": "integer"}, "a", {}), ({"type": "string"}, "b", {"required": ["kind"]}), ({"$ref": "#"}, "c", {"required": ["x"]})])


@pytest.mark.parametrize("one, keeps", [
    ([CUT, {"type": "string"}], True), ([CUT, {"type": ["integer", "object"]}], False), ([CUT, B], True), ([CUT, A], False),
    ([CUT, {"enum": ["a", "b"]}], False), ([CUT, {"type": "number"}, {"type": "integer"}], False),
    ([{"type": "array", "items": {"$ref": "#"}}, {}], False),
    ([{"type": "array", "items": {"$ref": "#"}}, {"type": "null", "items": {"$ref": "#"}}], True)])
def test_one_of_with_a_recursion_keeps_branches_that_exclude_each_other(one, keeps):
    document = {"oneOf": one}
    if not keeps:
        with pytest.raises(ToolError, match="may overlap|has no end"): inline_refs(document)
        return
    out = inline_refs(document)
    values = [None, 3, 2.5, "a", [], [[]], {}, {"x": 3}, {"x": "a"}, {"kind": "b"}, {"kind": "c", "x": "a"}, {"x": {"x": 3}},
              {"kind": "c", "x": {"x": 3}}]
    assert any(fits(out, v) for v in values)
    for value in values:
        if fits(out, value): assert fits(document, value), value


@pytest.mark.parametrize("rule", [{"not": {"$ref": "#/$defs/list"}}, {"if": {"$ref": "#/$defs/list"}, "then": False},
                                  {"contains": {"$ref": "#/$defs/list"}, "maxContains": 1}])
def test_nothing_is_cut_where_less_would_be_more(rule):
    "What would be cut off inside `not` would be added outside."
    defs = {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}}
    document = {"$defs": defs, "type": "object", "properties": {"x": rule}}
    out, value = inline_refs(document), []
    assert fits(out, {}) and out["properties"] == {}   # `x` is impossible: it cannot be said without an end
    for _ in range(8):
        value = [value, value]
        assert not fits(document, {"x": value}) and not fits(out, {"x": value})


# Two in one

OPTIONS = st.fixed_dictionaries({}, optional={k: RULES[k] for k in ("type", "enum", "const", "minimum", "minLength", "uniqueItems")})
OBJECTS = st.fixed_dictionaries({"properties": st.dictionaries(NAMES, OPTIONS, max_size=2)}, optional={
    "additionalProperties": st.just(False) | OPTIONS, "required": st.lists(NAMES, max_size=1), "maxProperties": SMALL})


@many
@given(st.tuples(FLAT, FLAT) | st.tuples(OBJECTS, OBJECTS) | st.tuples(OPTIONS, OPTIONS), VALUES)
def test_a_merged_schema_takes_what_both_take(pair, values):
    before = copy.deepcopy(pair)
    out = merge_schemas(*pair)
    assert pair == before
    for value in values:
        if out is not None: assert fits(out, value) == all(fits(s, value) for s in pair), value


@many
@given(OPTIONS, OPTIONS)
def test_types_and_options_merge_unless_nothing_meets_both(a, b):
    if merge_schemas(a, b) is None: assert not any(fits(a, value) and fits(b, value) for value in MANY)


@many
@given(FLAT, VALUES)
def test_normalising_adds_nothing(schema, values):
    "What the normal form takes, the original takes; and the normal form is its own."  # an enum that its type rules out is mended
    assume(isinstance(schema, dict) and not {"not", "oneOf", "enum"} & keywords(schema))
    out = normalise_schema(schema)
    assert normalise_schema(out) == out
    for value in values:
        if fits(out, value): assert fits(schema, value), value


def test_all_of_is_merged():
    base = {"type": "object", "properties": {"id": {"type": "string"}, "size": {"type": "number", "minimum": 1}}, "required": ["id"]}
    out = normalise_schema({"$defs": {"Base": base}, "description": "Mine", "allOf": [{"$ref": "#/$defs/Base"}, {
        "properties": {"size": {"type": "integer", "maximum": 9}, "note": {"type": ["string", "null"]}}}], "required": ["note"]})
    assert out == {"description": "Mine", "type": "object", "required": ["id", "note"], "properties": {
        "id": {"type": "string"}, "size": {"type": "integer", "minimum": 1, "maximum": 9}, "note": {"type": ["string", "null"]}}}


def test_all_of_that_cannot_be_merged_stays():
    out = normalise_schema({"allOf": [{"pattern": "^a"}, {"pattern": "z$"}, {"type": "string"}, {"not": {"const": "az"}}], "maxLength": 9})
    assert out["allOf"] == [{"pattern": "z$"}] and (out["pattern"], out["type"], out["not"]) == ("^a", "string", {"const": "az"})
    assert fits(out, "abz") and not any(fits(out, v) for v in ("az", "ab", "a" * 9 + "z"))


# Dialects

def test_openai_strict_mode():
    tool = as_tool({"type": "function", "function": {"name": "send_mail", "description": "Send a mail.", "strict": True, "parameters": {
        "type": "object", "additionalProperties": False, "required": ["to", "subject", "priority", "attachments", "reply"], "properties": {
            "to": {"type": "array", "items": {"type": "string", "format": "email"}},
            "subject": {"type": ["string", "null"], "description": "Left out where it is null"},
            "priority": {"type": ["string", "null"], "enum": ["low", "high", None]},
            "attachments": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/file"}}, {"type": "null"}]},
            "reply": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "$defs": {"file": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"],
                           "additionalProperties": False}}}}})
    mail = {"to": ["ann@example.org"], "subject": None, "priority": None, "attachments": None, "reply": None}
    assert validate_arguments(tool, mail) == []
    assert validate_arguments(tool, {**mail, "subject": "Hi", "priority": "low", "attachments": [{"path": "a.txt"}], "reply": mail}) == []
    for wrong in ({"to": ["ann"]}, {"priority": "mid"}, {"attachments": [{}]}, {"cc": []}, {"reply": {}}):
        assert validate_arguments(tool, mail | wrong), wrong
    assert list(tool.parameters["properties"]) == list(mail) and "$ref" not in keywords(tool.parameters)


class Colour(enum.Enum):
    "A colour."
    red = "red"
    green = "green"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = Field(9, ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: Annotated[str, Field(min_length=1, max_length=20, pattern="^[A-Z]")]


class Folder(BaseModel):
    name: str
    inside: list["Folder"] = []
    owner: Optional["Folder"] = None


class Sum(BaseModel):
    op: Literal["sum"] = "sum"
    left: "Term"
    right: "Term"


class Number(BaseModel):
    op: Literal["number"] = "number"
    value: float


Term = Annotated[Union[Sum, Number], Field(discriminator="op")]
Sum.model_rebuild()


class Visit(BaseModel):
    "Plan a visit."
    pet: Annotated[Union[Cat, Dog], Field(discriminator="kind")]
    colour: Colour = Colour.red
    day: date
    at: Optional[datetime] = None
    id: UUID
    share: float = Field(0.5, gt=0, lt=1, multiple_of=0.25)
    counts: dict[str, int] = {}
    friends: list[Dog] = Field([], max_length=2)
    folder: Folder
    either: Union[int, str] = 3
    pair: tuple[int, str] = (1, "a")
    term: Optional[Term] = None


GOOD = {"pet": {"kind": "dog", "name": "Rex"}, "day": "2024-02-29", "id": "123e4567-e89b-12d3-a456-426614174000",
        "folder": {"name": "a", "inside": [{"name": "b"}]}}
BAD = [{"pet": {"kind": "cow", "name": "Rex"}}, {"pet": {"kind": "dog"}}, {"pet": {"name": "Rex"}}, {"pet": {"lives": 3}},
       {"pet": {"kind": "dog", "name": "rex"}}, {"colour": "blue"}, {"day": "2023-02-29"}, {"at": "noon"}, {"id": "123"},
       {"share": 1}, {"share": 0.3}, {"counts": {"a": "many"}}, {"counts": [1]}, {"friends": [{"kind": "dog", "name": "A"}] * 3},
       {"folder": {}}, {"folder": {"name": "a", "inside": [3]}}, {"either": None}, {"pair": ["a", 1]}, {"pair": [1]},
       {"pair": [1, "a", 2]}, {"term": {"op": "number"}}, {"term": {"op": "sum", "left": {"value": 1}}}]
MORE = [{"pet": {"kind": "cat", "lives": 2}}, {"colour": "green"}, {"at": "2024-02-29T10:00:00Z"}, {"share": 0.75}, {"counts": {"a": 1}},
        {"friends": [{"kind": "dog", "name": "A"}]}, {"either": "x"}, {"either": 4}, {"pair": [2, "b"]},
        {"term": {"op": "sum", "left": {"op": "number", "value": 1}, "right": {"op": "number", "value": 2}}}]


def test_pydantic_models():
    "What the tool takes, the model takes."
    tool = as_tool(Visit)
    assert not {"$ref", "$defs", "title", "discriminator", "allOf"} & keywords(tool.parameters)
    for more in ({}, *MORE):
        assert validate_arguments(tool, GOOD | more) == [], more
        Visit.model_validate(GOOD | more)
    for wrong in BAD:
        assert validate_arguments(tool, GOOD | wrong), wrong
    parts = tool.parameters["properties"]
    assert parts["colour"] == {"type": "string", "enum": ["red", "green"], "default": "red", "description": "A colour."}
    assert parts["at"] == {"type": "string", "format": "date-time"}
    assert [b["properties"]["kind"]["const"] for b in parts["pet"]["oneOf"]] == ["cat", "dog"]
    assert all("kind" in b["required"] for b in parts["pet"]["oneOf"])


@pytest.mark.parametrize("model, key", [(Folder, "inside"), (Sum, "left")])
def test_recursive_models(model, key):
    tool = as_tool(model)
    assert "$ref" not in keywords(tool.parameters) and key in tool.parameters["properties"]
    number = {"op": "number", "value": 1}
    good = {"left": {"op": "sum", "left": number, "right": number}, "right": number}
    if model is Folder: good = {"name": "a", "inside": [{"name": "b", "inside": []}]}
    assert validate_arguments(tool, good) == []
    model.model_validate(good)


def test_gemini_declarations():
    tools = as_tools([{"functionDeclarations": [{"name": "find_flights", "description": "Find flights.", "parameters": {
        "type": "OBJECT", "required": ["from", "to", "adults"], "propertyOrdering": ["from", "to", "adults"], "properties": {
            "from": {"type": "STRING", "minLength": 3}, "to": {"type": "STRING"},
            "adults": {"type": "INTEGER", "format": "int32", "minimum": 1},
            "cabin": {"type": "STRING", "format": "enum", "enum": ["ECONOMY", "FIRST"], "nullable": True},
            "budget": {"type": "NUMBER", "format": "float", "nullable": True},
            "stops": {"type": "ARRAY", "items": {"type": "STRING"}, "maxItems": 2},
            "day": {"type": "STRING", "format": "date-time"}}}}]}, {"functionDeclarations": [{"name": "now"}]}])
    assert list(tools) == ["find_flights", "now"]
    tool = tools["find_flights"]
    assert tool.parameters["properties"]["cabin"] == {"type": "string", "enum": ["ECONOMY", "FIRST"]}
    assert tool.parameters["properties"]["budget"] == {"type": "number"} and "format" not in tool.parameters["properties"]["adults"]
    good = {"from": "FCO", "to": "JFK", "adults": 2}
    assert validate_arguments(tool, good | {"stops": ["LHR"], "day": "2024-02-29T10:00:00Z"}) == []
    for wrong in ({"adults": 0}, {"cabin": "THIRD"}, {"budget": None}, {"day": "soon"}):
        assert validate_arguments(tool, good | wrong), wrong
    asked = normalise_schema({"type": "OBJECT", "properties": {"n": {"type": "INTEGER", "nullable": True}, "u": {
        "anyOf": [{"type": "STRING"}, {"type": "INTEGER"}], "nullable": True}}, "required": ["n", "u"]})
    assert fits(asked, {"n": None, "u": None}) and not fits(asked, {"n": "a", "u": None})


def test_bfcl_documents():
    parameters = {"type": "dict", "required": ["shape", "box"], "properties": {
        "shape": {"type": "string"}, "box": {"type": "tuple", "items": {"type": "float"}},
        "tags": {"type": "Array", "items": {"type": "String"}}, "extra": {"type": "any", "optional": True},
        "period": {"type": "integer", "optional": "true", "default": "5 years"},
        "options": {"type": "HashMap", "properties": {"type": {"type": "char"}}}, "id": {"type": "string", "format": "uuid4"}}}
    tool = as_tool({"name": "bloodcell.classify", "description": "Classify.", "parameters": parameters})
    good = {"shape": "round", "box": [1, 2.5]}
    assert validate_arguments(tool, good | {"tags": ["a"], "extra": {"x": 1}, "options": {"type": "c"}, "id": "7"}) == []
    for wrong in ({"box": ["1"]}, {"period": "5 years"}, {"tags": "a"}, {"options": {"type": 3}}):
        assert validate_arguments(tool, good | wrong), wrong


def test_mcp_listing():
    tools = as_tools({"jsonrpc": "2.0", "id": 1, "result": {"nextCursor": "x", "tools": [
        {"name": "read_file", "title": "Read a file", "description": "Read.", "annotations": {"readOnlyHint": True}, "inputSchema": {
            "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "additionalProperties": False, "required": ["path"],
            "properties": {"path": {"type": "string"}, "size": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
                           "range": {"type": "array", "items": [{"type": "integer"}] * 2, "additionalItems": False}}},
         "outputSchema": {"type": "object"}},
        {"name": "list_roots", "inputSchema": {"type": "object"}}]}})
    assert list(tools) == ["read_file", "list_roots"]
    assert tools["list_roots"].parameters == {"type": "object", "properties": {}, "required": []}
    for good in ({}, {"range": [1, 2]}, {"size": 0.1}): assert validate_arguments(tools["read_file"], {"path": "a", **good}) == []
    for wrong in ({"range": [1, 2, 3]}, {"range": ["a"]}, {"size": 0}, {"mode": "r"}):
        assert validate_arguments(tools["read_file"], {"path": "a", **wrong}), wrong


def test_boolean_schemas():
    tool = as_tool({"name": "f", "parameters": {"properties": {"any": True, "none": False, "list": {"type": "array", "items": True}}}})
    assert validate_arguments(tool, {"any": [1], "list": [None]}) == [] and validate_arguments(tool, {"none": 1})


@pytest.mark.parametrize("key", ["größe", "日本語", "😀", "\u202e", "a.b", "a b", " ", "a/b~c", 'say "hi"', "it's", "line\nbreak", "\\",
                                 "$ref", "type", "properties"])
def test_any_text_is_a_key(key):
    tool = as_tool({"name": "f", "parameters": {"type": "object", "required": [key], "properties": {key: {
        "type": "object", "properties": {key: {"$ref": "#/$defs/x"}}, "required": [key]}}, "$defs": {"x": {"type": "integer"}}}})
    assert validate_arguments(tool, {key: {key: 3}}) == [] and validate_arguments(tool, {key: {key: "3"}}) and validate_arguments(tool, {})


def test_keys_that_are_none():
    rejects({"properties": {"": {}}}, "/properties: '' is not a name")
    rejects({"properties": {"caf\udce9": {}}}, "not valid Unicode")


def test_references_to_keys_of_any_text():
    defs = {"a/b~c": {"type": "integer"}, "x y": {"type": "null"}, "100%": {"type": "string"}}
    out = inline_refs({"$defs": defs, "prefixItems": [{"$ref": "#/$defs/a~1b~0c"}, {"$ref": "#/$defs/x%20y"}, {"$ref": "#/$defs/100%"}]})
    assert out["prefixItems"] == list(defs.values())


# Validation

CASES = {"date": ("2024-02-29", "2023-02-29"), "time": ("08:30:00Z", "25:00:00Z"),
         "date-time": ("2024-02-29T08:30:00+01:00", "2024-02-29 8:30"),
         "duration": ("P1DT2H", "2 hours"), "email": ("a@example.org", "example.org"), "uri": ("https://example.org/a?b=c", "example org"),
         "uuid": ("123e4567-e89b-12d3-a456-426614174000", "123e4567"), "ipv4": ("10.0.0.1", "10.0.0.256"), "ipv6": ("::1", "1::2::3"),
         "hostname": ("example.org", "-a-"), "regex": ("^a+$", "(["), "json-pointer": ("/a/0", "a"), "uri-template": ("/a/{b}", "/a/{b")}


@pytest.mark.parametrize("name", CASES)
def test_formats_are_checked(name):
    good, bad = CASES[name]
    check = schema_validator(normalise_schema({"type": "string", "format": name}))
    assert name in FORMATS and check.is_valid(good) and not check.is_valid(bad)


@pytest.mark.parametrize("name", ["int32", "int64", "float", "double", "enum", "password", "binary", "byte", "phone", "uuid4", 3])
def test_formats_of_others_rule_nothing_out(name): assert normalise_schema({"type": "string", "format": name}) == {"type": "string"}


# The registry

def tools(n): return [{"name": f"tool_{i}", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}} for i in range(n)]


def test_a_registry_builds_what_is_asked_for():
    registry = as_tools(tools(1000))
    assert isinstance(registry, Registry) and isinstance(registry, Mapping) and len(repr(registry)) < 200
    assert len(registry) == 1000 and list(registry)[7] == "tool_7" and "tool_7" in registry and "tool" not in registry
    assert not registry.built
    assert registry["tool_7"] is registry["tool_7"] and len(registry.built) == 1
    with pytest.raises(KeyError): registry["tool"]
    assert list(dict(registry)) == list(registry) and len(registry.built) == 1000 and as_tools(registry) is registry


def test_models_and_functions_are_read_late_too():
    class Late:
        "Counts how often its schema is asked for."
        asked = 0
        @classmethod
        def model_json_schema(cls): cls.asked += 1; return {"type": "object", "properties": {}}
    def undocumented(x): ...
    registry = as_tools([Late, undocumented])
    assert list(registry) == ["Late", "undocumented"] and Late.asked == 0
    registry["Late"], registry["Late"]
    assert Late.asked == 1
    with pytest.raises(ToolError, match="^function undocumented: "): registry["undocumented"]


@pytest.mark.parametrize("given_, says", [
    ([], "no tools"), ({}, "no tools"), (tools(2) * 2, "two tools are called 'tool_0'"), ([{"parameters": {}}], "needs a name"),
    ([{"name": " "}], "needs a name"), ([3], "cannot make a tool of 3"), ({"f": "x"}, "cannot make a tool of 'x'"),
    ({"": {}}, "needs a name"), ([{"function": 3}], "`function` must be a dictionary")])
def test_what_is_wrong_with_a_registry_is_said_at_once(given_, says):
    with pytest.raises(ToolError, match=says): as_tools(given_)


def test_what_is_wrong_with_a_tool_is_said_when_it_is_used(tmp_path):
    bad = {"name": "bad", "parameters": {"type": "object", "properties": {"to": {"type": "airport"}}}}
    (tmp_path / "t.json").write_text(json.dumps([*tools(2), bad]))
    registry = read_tools(tmp_path / "t.json")
    assert registry["tool_1"].name == "tool_1"
    for _ in range(2):
        with pytest.raises(ToolError) as e: registry["bad"]
        assert str(e.value) == f"tools file {tmp_path / 't.json'}: tool bad: /properties/to: unknown type 'airport'"


def test_a_schema_too_deep_is_refused():
    deep = {}
    for _ in range(5000): deep = {"type": "array", "items": deep}
    rejects({"type": "object", "properties": {"x": deep}}, "nested too deeply")
