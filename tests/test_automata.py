"Token automata: exact against brute force, and nothing that leaves them breaks its schema."
import itertools
import json
import math
import re
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from smoldiff.automata import (FORMATS, Language, Spelling, backward, Canvas, compile_automaton, feasible_mass, number_regex, pattern_regex,
                               ranked, schema_language, schema_regex, score_options, token_automaton, viterbi)
from smoldiff.tools import SmoldiffError

checker = Draft202012Validator.FORMAT_CHECKER


def toy_tokenizer(words):
    "A tokenizer of some words, special tokens none."
    vocabulary = {w: i for i, w in enumerate(words)}
    return SimpleNamespace(get_vocab=lambda: vocabulary, added_tokens_decoder={}, all_special_ids=[],
                           encode=lambda text, add_special_tokens: [vocabulary.get("▁" + text, vocabulary.get(text, 0))],
                           convert_ids_to_tokens=lambda ids: [words[i] for i in ids])


# Against brute force

WORDS = ["a", "b", "ab", "ba", "aab", "Ã", "©", "é".encode().decode("latin-1")]   # the last three: halves of é, and é
NULL = len(WORDS) + 1
toy_spelling = Spelling(toy_tokenizer(WORDS), NULL)
pieces = st.recursive(st.sampled_from(["a", "b", "é", "ab", "[ab]"]), lambda x: st.one_of(
    st.tuples(x, x).map("".join), st.tuples(x, x).map(lambda p: f"(?:{p[0]}|{p[1]})"), x.map(lambda p: f"(?:{p})*"),
    x.map(lambda p: f"(?:{p})?"), x.map(lambda p: f"(?:{p}){{1,2}}")), max_leaves=5)


def brute_force(language, logp, fixed):
    "All texts of a language that fit, with their probabilities."
    P, found = len(logp), {}
    free = [logp[p] if fixed[p] is None else np.where(np.arange(NULL + 1) == fixed[p], 0., -np.inf) for p in range(P)]
    for n in range(P + 1):
        for tokens in itertools.product(range(len(WORDS)), repeat=n):
            try: text = b"".join(toy_spelling.bytes_of[t] for t in tokens).decode()
            except UnicodeDecodeError: continue
            if not re.fullmatch(language.regex, text): continue
            if language.counted and not language.low <= len(text) <= (language.high if language.high is not None else math.inf): continue
            whole = [*tokens, *[NULL] * (P - n)]
            score = sum(free[p][t] for p, t in enumerate(whole))
            if score > -np.inf: found[tuple(whole)] = score
    return found


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_all_results_equal_brute_force(data):
    "The best, all in order, and the sum: with and without bounds on the length, with revealed tokens, with impossible ones."
    low, high = data.draw(st.sampled_from([(0, None), (2, None), (0, 2), (1, 3), (3, 3), (0, 99)]))
    counted = "characters" if low or high is not None else ""
    language = Language(data.draw(pieces), counted, low, high)
    automaton = compile_automaton(language, toy_spelling)
    P, generator = data.draw(st.integers(1, 3)), torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    logits = 3 * torch.randn(P, NULL + 1, generator=generator, dtype=torch.float64)
    logits[torch.rand(P, NULL + 1, generator=generator) < data.draw(st.sampled_from([0, .3]))] = -math.inf
    logits[:, NULL - 1] = -math.inf
    assume((logits > -math.inf).any(1).all())
    logp = logits.float().log_softmax(-1)
    fixed = [data.draw(st.sampled_from([None] * 6 + [0, 2, 7, NULL])) for _ in range(P)]
    truth = brute_force(language, logp.double().numpy(), fixed)
    given_ids = [NULL - 1 if f is None and p % 2 else f for p, f in enumerate(fixed)]   # MASK is as good as None
    every = list(ranked(automaton, logp, NULL, 10**4, given_ids))
    assert {tuple(t) for t, _ in every} == set(truth) and len(every) == len(truth)
    scores = [x for _, x in every]
    assert np.allclose(scores, sorted(truth.values(), reverse=True), atol=1e-5)
    assert np.allclose(scores, [truth[tuple(t)] for t, _ in every], atol=1e-5)
    for k in (1, 3): assert np.allclose([x for _, x in ranked(automaton, logp, NULL, k, given_ids)], scores[:k], atol=1e-5)
    best = viterbi(automaton, logp, NULL, given_ids)
    if truth: assert math.isclose(best[1], scores[0], abs_tol=1e-5) and math.isclose(truth[tuple(best[0])], best[1], abs_tol=1e-5)
    else: assert best is None
    assert math.isclose(feasible_mass(automaton, logp, NULL, given_ids), sum(map(math.exp, truth.values())), rel_tol=1e-4, abs_tol=1e-12)


def test_extreme_probabilities_neither_vanish_nor_overflow():
    automaton = compile_automaton(Language("(?:ab)*b"), toy_spelling)
    logp = torch.full((3, NULL + 1), -3e4)
    assert 0 < feasible_mass(automaton, logp, NULL) <= 1
    assert math.isclose(viterbi(automaton, logp, NULL)[1], -9e4, rel_tol=1e-4)
    logp[1] = -math.inf
    assert viterbi(automaton, logp, NULL) is None and feasible_mass(automaton, logp, NULL) == 0 and not list(ranked(automaton, logp, NULL))


# Numbers and patterns as regexes

@settings(max_examples=300, deadline=None)
@given(st.integers(-3000, 3000), st.integers(0, 2000), st.booleans(), st.booleans())
def test_integer_ranges_are_exact(low, width, open_low, open_high):
    bounds = "exclusiveMinimum" if open_low else "minimum", "exclusiveMaximum" if open_high else "maximum"
    schema = {"type": "integer", bounds[0]: low, bounds[1]: low + width}
    regex = number_regex(schema)
    true = set(range(low + open_low, low + width + 1 - open_high))
    assert {x for x in range(-3100, 5100) if regex and re.fullmatch(regex, str(x))} == true
    assert not regex or not any(re.fullmatch(regex, x) for x in ("-0", "00", "01", "+1", "1.0", "1e2", "", "-"))


decimals = st.tuples(st.integers(-50000, 50000), st.integers(0, 4)).map(lambda x: x[0] / 10**x[1])


@settings(max_examples=100, deadline=None)
@given(decimals, decimals, st.booleans(), st.lists(st.tuples(st.integers(-60000, 60000), st.integers(0, 3)), min_size=30, max_size=30))
def test_decimal_ranges_are_exact_to_three_places(a, b, strict, tries):
    low, high = sorted((a, b))
    schema = {"type": "number", "exclusiveMinimum" if strict else "minimum": low, "maximum": high}
    regex = number_regex(schema)
    near = [(round(Fraction(str(x)) * 10**k) + d, k) for x in (low, high) for k in range(4) for d in (-1, 0, 1)]
    for x, k in tries + near:
        text = f"{Decimal(x).scaleb(-k):f}"
        if k and text.endswith("0"): continue
        inside = (low < float(text) if strict else low <= float(text)) and float(text) <= high
        assert bool(regex and re.fullmatch(regex, text)) == (inside and text != "-0"), text


def accepts(base, automaton, text):
    tokens = base.encode(text)[0]
    even = torch.zeros(len(tokens) + 1, base.vocab_size + 2).log_softmax(-1)
    return feasible_mass(automaton, even, base.null_id, [*tokens, base.null_id]) > 0


PATTERNS = [r"^[A-Z]{2,4}$", r"^\d{3}-\d{4}$", "foo", "^foo", "foo$", "^a|b$", "^(a|b$)", "(^|,)x(,|$)",
            r"^[^\d,]+$", r"^\w+\s\w+$", r"^\S+$", "^.*x$",
            r"^[a-z]+(-[a-z]+)*$", r"^#?([a-f0-9]{6}|[a-f0-9]{3})$", r"^a|ab|abc$",
            r"^(1|12|123)$", r"^a*?b$", r"^[A-Za-z0-9_-]{1,64}$",
            r"\.(png|jpe?g)$", r"^\W\D$", r"^[\s\S]{3}$", r"^\[\"x\"\]$", "^.{30}$", r"^[^\W_]+$", "^東京.?$", r"^\u0041\x42\t?c$"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_python_means(base, pattern):
    "Every text from a pattern's automaton is found by `re.search`; texts of plain characters that are found are in it."
    schema = {"type": "string", "pattern": pattern}
    automaton = token_automaton(base, schema)
    if pattern == r"^[^\W_]+$": assert automaton is None; return
    for text in samples(base, automaton, 30): assert re.search(pattern, text), (pattern, text)
    plain = ["foo", "a foo b", "AB", "ABCDE", "123-4567", "a", "b", "ab", "abc", "x", "x,y", "1", "12", "123",
             "one two", "no-go", "#a0ff00", "#a0f",
             "aab", "me.png", "b.jpeg", "!?", '["x"]', "é", "ééé", "x" * 30, "a_b-9", "東京", "東京x", "a, b", "Bx", "ABc", "ab\ncd x"]
    for text in plain: assert accepts(base, automaton, text) == bool(re.search(pattern, text)), (pattern, text)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_random_patterns(base, data):
    "Grown from pieces, anchored or not; a text that the pattern makes is accepted, a text of the automaton is found."
    # no loop inside a loop: `re` itself, which judges, takes exponential time on those
    leaves = ["a", "b1", "[ab]", r"\d", r"\w", "[^a]", ".", "a+?", r"\w+", ".*?"]
    body = data.draw(st.recursive(st.sampled_from(leaves), lambda x: st.one_of(
        st.tuples(x, x).map("".join), st.tuples(x, x).map("({0[0]}|{0[1]})".format), x.map("({})?".format)), max_leaves=4))
    pattern = data.draw(st.sampled_from(["^", ""])) + body + data.draw(st.sampled_from(["$", ""]))
    assume(pattern_regex(pattern))
    automaton = token_automaton(base, {"type": "string", "pattern": pattern})
    seed = data.draw(st.integers(0, 10**6))
    for text in samples(base, automaton, 4, seed): assert re.search(pattern, text)
    text = data.draw(st.from_regex(rf"\A{pattern}\Z" if "$" not in pattern else pattern, alphabet=st.sampled_from("ab1 _-")))
    if text.strip() == text and text and re.search(pattern, text): assert accepts(base, automaton, text)


def test_patterns_without_a_regular_language_or_too_large():
    for pattern in ["(?=x)", r"\bx", r"(a)\1", "a^b", "a$b", "(?i)a", "(", r"^\p{L}$", "[A-Z].{1,20}x", "^(a|b)*a[ab]{12}$", "(a*)*",
                    r"^(\w{1,24}){24}$", "^" + "((a?)?)?" * 40 + "[ab]{80}[cd]{80}$"]:
        assert pattern_regex(pattern) is None, pattern


# What leaves an automaton validates

def looks(base, n, seed=0, bias=6.):
    "Random looks at a canvas: lengths, temperatures and the weight of NULL differ."
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        places = int(torch.randint(1, 28, (1,), generator=generator))
        logits = torch.randn(places, base.vocab_size + 2, generator=generator) * (1 + 4 * torch.rand(1, generator=generator))
        logits[:, base.null_id] += bias * torch.randn(1, generator=generator) + torch.arange(places) / 4
        logits[:, base.mask_id] = -math.inf
        yield logits.log_softmax(-1)


def samples(base, automaton, n, seed=0, k=3):
    "Texts of an automaton from random looks: the best ones of each."
    out = []
    for logp in looks(base, n, seed):
        found = list(ranked(automaton, logp, base.null_id, k))
        best = viterbi(automaton, logp, base.null_id)
        assert (best is None) == (not found) and (best is None or math.isclose(best[1], found[0][1], abs_tol=1e-3))
        for tokens, _ in found:
            assert len(tokens) == len(logp)
            assert b"".join(automaton.spelling.bytes_of[t] for t in tokens if t != base.null_id).decode() == automaton.text(tokens)
            out.append(automaton.text(tokens))
    return out


def string(**rules): return {"type": "string", **rules}
def array(items, **rules): return {"type": "array", "items": items, **rules}


SCHEMAS = [
    *(string(format=f) for f in FORMATS), *(string(format=f) for f in ("iri", "uri-reference", "idn-email", "color")),
    string(), string(minLength=5), string(maxLength=3), string(minLength=2, maxLength=2),
    string(minLength=30, maxLength=40),
    string(pattern="^.{30,50}$", maxLength=40), string(pattern="[a-z]{3}", maxLength=9), string(maxLength=200),
    string(format="email", maxLength=12),
    *({"type": k} for k in ("integer", "number", "boolean", "null")), {"type": ["integer", "null"]}, {"type": ["string", "null"]},
    {"type": "integer", "minimum": 18, "maximum": 120}, {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 1e3},
    {"type": "integer", "minimum": 2.5, "maximum": 1e30}, {"type": "integer", "multipleOf": 7, "minimum": -30, "maximum": 3000},
    {"type": "integer", "multipleOf": 2.5, "minimum": 0, "maximum": 100},
    {"type": "number", "minimum": -1.5, "maximum": 2.25}, {"type": "number", "exclusiveMinimum": 0}, {"type": "number", "maximum": -0.001},
    {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 5}, {"type": "number", "multipleOf": 0.1, "minimum": -3, "maximum": 30},
    {"type": "number", "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.9},
    {"type": "number", "multipleOf": 15, "minimum": 0, "maximum": 360},
    {"enum": ["red", "a \"b\"", 3, None, "東京"]}, {"const": 2.5}, {"enum": ["1", "12", "123"], "type": "string"},
    array({"type": "string"}), array({"type": "string"}, minItems=2, maxItems=3),
    array({"type": "integer", "minimum": 0}, maxItems=4),
    array({"type": "number", "maximum": 5}, minItems=3), array({"enum": ["a", "b, c", 1]}, maxItems=2),
    array({"type": "boolean"}, minItems=1),
    array(string(format="date")), array(string(pattern="^[^x]{2}$"), maxItems=2), array({"type": "null"}, minItems=2, maxItems=5),
    array({"enum": ["x"]}, minItems=2), array({"type": "integer"}, maxItems=0), array({"type": "object"}), {"type": "array"},
    {"type": "object"}, {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9}},
    {"type": "object", "additionalProperties": False}]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:60])
def test_whatever_the_head_believes_the_text_validates(base, schema):
    "Random logits through ranked and viterbi: with formats checked, every text reads back as a value that validates."
    assert not {"date", "time", "duration", "uri", "iri", "ipv6"} - checker.checkers.keys(), "install jsonschema[format-nongpl]"
    validator = Draft202012Validator(schema, format_checker=checker)
    automaton, raw = token_automaton(base, schema), "string" in schema.get("type", []) or "enum" in schema or "const" in schema
    texts = samples(base, automaton, 36, seed=len(json.dumps(schema)))
    assert len(set(texts)) > (3 if schema.get("type") in ("string", "integer", "number") and "enum" not in schema else 0)
    for text in texts:
        options = [o for o in schema.get("enum", [schema.get("const")]) if o == text]
        value = options[0] if options else text if raw and not {"enum", "const"} & schema.keys() else json.loads(text)
        assert validator.is_valid(value), (text, schema)


def test_lengths_count_characters_not_bytes(base):
    "東京都庁 is four characters of twelve bytes, more tokens than characters."
    text = "東京都庁é🙂"
    tokens = base.encode(text)[0]
    assert len(tokens) > len(text)
    logp = torch.full((len(tokens), base.vocab_size + 2), -20.)
    logp[range(len(tokens)), tokens] = 0
    for low, high in ((6, 6), (6, None), (0, 6)):
        schema = string(minLength=low) if high is None else string(minLength=low, maxLength=high)
        assert token_automaton(base, schema).text(viterbi(token_automaton(base, schema), logp, base.null_id)[0]) == text
    shorter, longer = (token_automaton(base, s) for s in (string(maxLength=5), string(minLength=7)))
    assert len(shorter.text(viterbi(shorter, logp, base.null_id)[0])) <= 5 and len(longer.text(viterbi(longer, logp, base.null_id)[0])) >= 7


def greedy_repaired(automaton, logp, null_id):
    "Left to right, at each position the likeliest token (or NULL for good) from which a valid end can still be reached."
    canvas = Canvas(automaton, logp, null_id)
    ends, state, total = backward(canvas), (automaton.initial, 0), 0.
    bounds = np.append(automaton.class_C, len(automaton.tokens_N))
    for p in range(len(logp)):
        step = [(float(logp[p, null_id]), None)] if ends.end_SK[state] and canvas.tail_P[p] > -np.inf else []
        for e in np.flatnonzero(automaton.edges_E4[:, 0] == state[0]):
            to = ends.to_EK[e, state[1]]
            if ends.ahead_PSK[p + 1].flat[to] == -np.inf: continue
            c = automaton.edges_E4[e, 2]
            step.append((float(canvas.token_PN[p, bounds[c]:bounds[c + 1]].max()), divmod(int(to), ends.end_SK.shape[1])))
        score, onward = max(step, key=lambda x: x[0])
        if onward is None: return total + canvas.tail_P[p]
        total, state = total + score, onward
    return total


@pytest.mark.parametrize("schema", [string(), string(format="date"), string(maxLength=12), array({"type": "integer"}, maxItems=3),
                                    string(format="email")], ids=json.dumps)
def test_viterbi_is_never_below_greedy_with_repair(base, schema):
    automaton, won = token_automaton(base, schema), 0
    for logp in looks(base, 25, seed=1):
        best = viterbi(automaton, logp, base.null_id)
        if best is None: continue
        greedy = greedy_repaired(automaton, logp, base.null_id)
        assert best[1] >= greedy - 1e-3
        won += best[1] > greedy + 1e-3
    assert won > 0   # and often above


def test_revealed_tokens_stay(base):
    automaton = token_automaton(base, string(format="date"))
    digit = {c: base.encode(c)[0][0] for c in "0123456789-"}
    for logp in looks(base, 20, seed=2):
        if len(logp) < 10: continue
        fixed = [None] * len(logp)
        fixed[5], fixed[6], fixed[7] = digit["0"], digit["2"], base.mask_id
        tokens, _ = viterbi(automaton, logp, base.null_id, fixed)
        assert automaton.text(tokens)[5:7] == "02" and tokens[10:] == [base.null_id] * (len(logp) - 10)
        assert feasible_mass(automaton, logp, base.null_id, fixed) > feasible_mass(automaton, logp, base.null_id)
        fixed[8] = digit["3"]   # no 30th of February
        assert viterbi(automaton, logp, base.null_id, fixed) is None and feasible_mass(automaton, logp, base.null_id, fixed) == 0


def test_what_cannot_be_is_none(base):
    logp = next(looks(base, 1, seed=3))
    for schema in [{"type": "integer", "minimum": 3, "maximum": 2}, string(pattern="(?!x)"), string(format="hostname"), {}, {"not": {}},
                   {"enum": ["a"], "type": "integer"}, string(pattern="^a+$", format="date"),
                   array({"type": "object"}, maxItems=3), {"anyOf": [{}]},
                   {"type": "object", "properties": {"a": {}}}, {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.0001}]:
        assert schema_regex(schema) is None and token_automaton(base, schema) is None, schema
    for schema in [string(minLength=9, maxLength=8), string(minLength=10**6), array({"type": "null"}, minItems=100)]:
        automaton = token_automaton(base, schema)
        assert viterbi(automaton, logp, base.null_id) is None and feasible_mass(automaton, logp, base.null_id) == 0
    assert schema_language(string(pattern="^.+$", format="date")).regex == FORMATS["date"]


def test_no_marker_can_be_written(base):
    "Special and added tokens are in no automaton, nor is a byte that the compiler keeps for itself."
    automaton = token_automaton(base, string(pattern="^[\\s\\S]*$"))
    assert not set(automaton.tokens_N.tolist()) & (set(base.tokenizer.added_tokens_decoder) | {base.null_id, base.mask_id})
    options = token_automaton(base, {"enum": ["a\u0000b", "fine"]})
    assert {options.text(t) for t, _ in ranked(options, next(looks(base, 1)), base.null_id)} <= {"fine"}


# Other tokenizers

def test_sentencepiece_puts_a_space_before_the_text():
    words = ["<0x41>", "<0xC3>", "<0xA9>", "▁", "▁a", "a", "▁b", "b", "b▁a"]
    mine, null = Spelling(toy_tokenizer(words), len(words) + 1), len(words) + 1
    automaton = compile_automaton(Language("[Aabé](?:[Aabé ]*[Aabé])?", "characters", 2, 3), mine)
    found = {mine.text(t) for t, _ in ranked(automaton, torch.zeros(4, null + 1).log_softmax(-1), null, 10**5)}
    letters = "Aabé"
    true = {a + b for a in letters for b in letters} | {a + b + c for a in letters for b in letters + " " for c in letters}
    assert found < true and {"ab", "b a", "é", "aAb"} & true <= found and "A" * 3 in found


def test_a_tokenizer_that_cannot_be_spelled_is_refused():
    with pytest.raises(SmoldiffError, match="neither byte-level nor sentencepiece"): Spelling(toy_tokenizer(["##a", "東"]), 3)


def test_options_as_wholes():
    "Equal to adding up the tokens and the tail by hand."
    logp = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    scores = score_options([[1, 2], [3], [], [1, 2, 3, 4]], logp, 7, .25)
    true = [logp[0, 1] + logp[1, 2] + logp[2, 7] + .5, logp[0, 3] + logp[1:, 7].sum() + .25, logp[:, 7].sum(), -math.inf]
    assert np.allclose(scores, [float(x) for x in true])
