"""Our BFCL verdict is the official one: on every gold answer, and on every gold answer spoilt in many ways. The official checker is
imported from the fetched wheel; its model table, which pulls in the clients of every provider, is replaced by a stub."""
import json
import random
import sys
import types
import warnings
from collections import Counter, defaultdict

import pytest

from smoldiff.base import fetch_wheel
from smoldiff.evaluation import BFCL_CATEGORIES, BFCL_WHEEL, ast_check, bfcl_items, bfcl_language, source_calls
from smoldiff.tools import SmoldiffError

judged = [c for c in BFCL_CATEGORIES if not c.endswith("relevance")]


@pytest.fixture(scope="module")
def official():
    "The official verdict as a function of (item, calls): True, False, or the name of the exception it stops with."
    try: wheel = fetch_wheel(*BFCL_WHEEL)
    except SmoldiffError as e:
        warnings.warn(f"THE BFCL CHECKER WAS NOT COMPARED WITH THE OFFICIAL ONE: {e}")
        pytest.skip(str(e))
    before = set(sys.modules)
    stub = types.ModuleType("bfcl_eval.constants.model_config")
    stub.MODEL_CONFIG_MAPPING = defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
    sys.path.insert(0, str(wheel))
    sys.modules[stub.__name__] = stub
    try:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    finally: sys.path.remove(str(wheel))

    def verdict(item, calls):
        # the official runner rejects what has not this form before it asks the checker
        if not all(isinstance(c["arguments"], dict) for c in calls): return False
        output = [{c["name"]: c["arguments"]} for c in calls]
        language = Language(bfcl_language(item))
        try: return ast_checker(item["functions"], output, item["answers"], language, item["category"], "any")["valid"]
        except Exception as e: return type(e).__name__
    yield verdict
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "bfcl_eval": del sys.modules[name]


# Ways to spoil a value; each takes the value and a random generator

def letter(v, rng): return rng.choice("abcxyz0159 .,-_'\"*^/LfnE")
def shuffled(v, rng): return rng.sample(v, len(v))


spoil_text = [
    lambda v, r: v.upper(), lambda v, r: v.title(), lambda v, r: v + "q", lambda v, r: v[:-1], lambda v, r: v[1:], lambda v, r: f" {v}.",
    lambda v, r: v.replace(" ", "_"), lambda v, r: v.replace(" ", ""), lambda v, r: v.replace("'", '"'), lambda v, r: f"'{v}'",
    lambda v, r: f'"{v}"', lambda v, r: [v], lambda v, r: {"value": v},
    lambda v, r: v[: (i := r.randrange(len(v) + 1))] + letter(v, r) + v[i:],
    lambda v, r: v[: (i := r.randrange(len(v) + 1))] + v[i + 1:], lambda v, r: v + "L", lambda v, r: v + "f", lambda v, r: v + "n",
    lambda v, r: v.strip("Lfn"), lambda v, r: v.replace("true", "false"), lambda v, r: v.replace(",", ", ")]
spoil_number = [
    lambda v, r: v + 1, lambda v, r: -v, lambda v, r: v * 10, lambda v, r: str(v), lambda v, r: float(v), lambda v, r: int(v),
    lambda v, r: v + .5, lambda v, r: v + 1e-9, lambda v, r: bool(v), lambda v, r: [v], lambda v, r: str(v) + " ", lambda v, r: 10**400]
spoil_truth = [
    lambda v, r: not v, lambda v, r: int(v), lambda v, r: float(v), lambda v, r: str(v), lambda v, r: str(v).lower(), lambda v, r: [v]]
spoil_list = [
    lambda v, r: v[:-1], lambda v, r: v + v[-1:], lambda v, r: v[::-1], lambda v, r: shuffled(v, r), lambda v, r: [], lambda v, r: [v],
    lambda v, r: v + [None], lambda v, r: tuple(v), lambda v, r: [str(x) for x in v], lambda v, r: [spoilt(v[0], r), *v[1:]] if v else [0],
    lambda v, r: [spoilt(x, r) for x in v], lambda v, r: [float(x) if type(x) is int else x for x in v], lambda v, r: [bool(x) for x in v],
    lambda v, r: [int(x) if type(x) is float else x for x in v], lambda v, r: json.dumps(v), lambda v, r: ", ".join(map(str, v)),
    lambda v, r: v[0] if v else None, lambda v, r: {"items": v}, lambda v, r: ["x" for _ in v]]
spoil_object = [
    lambda v, r: {}, lambda v, r: dict(list(v.items())[1:]), lambda v, r: dict(list(v.items())[::-1]), lambda v, r: v | {"more": 1},
    lambda v, r: {k.upper(): x for k, x in v.items()},
    lambda v, r: {k: spoilt(x, r) if i == 0 else x for i, (k, x) in enumerate(v.items())},
    lambda v, r: {k: spoilt(x, r) for k, x in v.items()}, lambda v, r: {k: [x] for k, x in v.items()}, lambda v, r: {k: None for k in v},
    lambda v, r: {k: "" for k in v}, lambda v, r: json.dumps(v), lambda v, r: [v], lambda v, r: list(v), lambda v, r: {"inner": v}]
anything = [
    None, "", " ", 0, 1, -1, 1.0, .5, True, False, [], {}, [""], [None], [[]], [{}], [1], ["a"], [True], {"a": 1}, {"": ""}, "0", "1",
    "True", "true", "false", "None", "null", "5L", "2.5f", "3n", "1\n", "٣", "1_000", "nan", "[]", "{}", "[1, 2]", "[[1, 2], [3]]",
    "{'a': 1}", "{a: {b: 2}}", "new Array(1, 2)", "new int[]{1, 2}", "new ArrayList<>()", 'new ArrayList<String>(Arrays.asList("a", "b"))',
    "new HashMap<>()", 'new HashMap<String, Object>() {{ put("a", 1); }}']


def ways(v):
    if isinstance(v, bool): return spoil_truth
    by_kind = ((str, spoil_text), ((int, float), spoil_number), (list, spoil_list), (dict, spoil_object))
    return next((w for kind, w in by_kind if isinstance(v, kind)), [])


def spoilt(v, rng): return rng.choice(ways(v))(v, rng) if ways(v) else "None"


def allowed_values(answer):
    "What a possible answer may stand for, plain or with one value picked of each list inside an object."
    if isinstance(answer, dict): return [answer, {k: a[0] for k, a in answer.items() if a}, {k: a[-1] for k, a in answer.items() if a}]
    if not isinstance(answer, list) or not any(isinstance(a, dict) for a in answer): return [answer]
    return [answer, [allowed_values(a)[1] if isinstance(a, dict) else a for a in answer]]


def arguments_of(item, rng):
    "Variants of the arguments of the first gold call, each with a word for what was done."
    (_, allowed), = item["answers"][0].items()
    gold, names = item["calls"][0]["arguments"], list(allowed)
    properties = next((f["parameters"]["properties"] for f in item["functions"] if f["name"] == item["calls"][0]["name"]), {})
    for p in names:
        yield "dropped", {k: v for k, v in gold.items() if k != p}
        yield "renamed", {k + "_" if k == p else k: v for k, v in gold.items()}
        for value in [v for a in allowed[p] for v in allowed_values(a)]: yield "allowed", {**gold, p: value}
        for value in rng.sample(anything, 12): yield "anything", {**gold, p: value}
        if p in gold:
            for way in ways(gold[p]): yield "spoilt", {**gold, p: way(gold[p], rng)}
            yield "swapped", {**gold, p: gold.get(rng.choice(names), None)}
    for p in properties:
        if p not in gold: yield "optional", {**gold, p: properties[p].get("default", rng.choice(anything))}
    yield "unknown", {**gold, "no_such_parameter": 1}
    yield "empty", {}
    yield "no object", [gold]


def calls_of(item, rng):
    "Variants of all the calls of an item."
    gold = item["calls"]
    yield "gold", gold
    for what, arguments in arguments_of(item, rng): yield what, [{**gold[0], "arguments": arguments}, *gold[1:]]
    for i, call in enumerate(gold[1:], 1):
        for p, v in call["arguments"].items():
            yield "spoilt later", [*gold[:i], {**call, "arguments": {**call["arguments"], p: spoilt(v, rng)}}, *gold[i + 1:]]
    name = gold[0]["name"]
    others = {name + "x", name.replace(".", "_"), name.upper(), *(f["name"] for f in item["functions"])}
    for other in sorted(others - {name}):
        yield "wrong name", [{**gold[0], "name": other}, *gold[1:]]
    yield from (("no call", []), ("one less", gold[1:]), ("one more", gold + gold[:1]), ("other order", gold[::-1]),
                ("any order", shuffled(gold, rng)), ("same twice", gold[:1] * len(gold)))


def variants(item, rng):
    "Each variant as it is and, for Java and JavaScript, as source text too."
    for what, calls in calls_of(item, rng):
        yield what, calls
        if bfcl_language(item) == "python" or not all(isinstance(c["arguments"], dict) for c in calls): continue
        written = source_calls(item, calls)
        yield what, written
        for p, v in (written[0]["arguments"].items() if written and what == "gold" else ()):
            for value in [way(v, rng) for way in spoil_text] + anything:
                yield "source", [{**written[0], "arguments": {**written[0]["arguments"], p: value}}]


@pytest.mark.parametrize("category", judged)
def test_verdicts_equal_the_official_ones(category, official, capsys):
    rng, counts, differ = random.Random(category), Counter(), []
    for item in bfcl_items(category):
        for what, calls in variants(item, rng):
            theirs, ours = official(item, calls), ast_check(item, calls)[0]
            counts["right" if theirs is True else "wrong" if theirs is False else "official stops"] += 1
            # where the official checker stops with an exception, nothing has passed
            if ours != (theirs is True): differ.append((item["id"], what, theirs, calls))
    with capsys.disabled(): print(f"\n{category}: {sum(counts.values())} verdicts compared, {len(differ)} differ ({dict(counts)})", end="")
    assert not differ, differ[:3]
    assert counts["right"] >= len(bfcl_items(category)) * .9 and counts["wrong"] > counts["right"] / 2


def test_relevance_is_whether_there_is_a_call():
    for category, wants in (("irrelevance", False), ("live_irrelevance", False), ("live_relevance", True)):
        for item in bfcl_items(category, limit=20):
            assert ast_check(item, [])[0] is not wants
            assert ast_check(item, [{"name": "any", "arguments": {}}])[0] is wants
