"Random JSON Schemas of the kinds that tools have, and a head that believes anything: for the test that what leaves is valid."
import random

import torch
from hypothesis import strategies as st

from smoldiff.head import Features, HeadConfig, SchemaDiffusionHead

KEYS = ("city", "people", "größe", "ключ", "a.b", "with space", "it's", '"quoted"', "emoji 🎉", "date", "id", "x")
TEXTS = ("tea", "Kaffee", "naïve café", "🎉", 'say "hi"', "back\\slash", "two\nlines", "", "1", "true", "null")
PATTERNS = ("^[A-Z]{3}$", r"^\d{5}(-\d{4})?$",
            "^(red|green|blue)$", "a", "^#[0-9a-fA-F]{6}$", r"^\w+@\w+\.com$", "^[^ ]+$", "[0-9]$", "^v[0-9]+")
FORMATS = ("date", "time", "date-time", "duration", "email", "uri", "uuid", "ipv4", "ipv6")


def ordered(draw, low, high, numbers):
    "Bounds under two names, either of which may be missing."
    a, b = sorted((draw(numbers), draw(numbers)))
    return {k: v for k, v in ((low, a), (high, b)) if draw(st.booleans())}


@st.composite
def strings(draw):
    kind = draw(st.sampled_from(("free", "free", "length", "pattern", "format")))
    if kind == "pattern":
        rare = draw(st.integers(0, 9)) == 0  # beyond any automaton: only what is copied may fit
        return {**({} if rare else {"type": "string"}), "pattern": r"^(?=.*\d)\w+$" if rare else draw(st.sampled_from(PATTERNS))}
    if kind == "format": return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
    return {"type": "string", **(ordered(draw, "minLength", "maxLength", st.integers(1, 12)) if kind == "length" else {})}


@st.composite
def numbers(draw):
    kind = draw(st.sampled_from(("integer", "number")))
    step = 1 if kind == "integer" else draw(st.sampled_from((1, .5, .01)))
    low = draw(st.integers(-300, 300))
    high = low + draw(st.integers(20, 2000))
    bounds = {"minimum": low * step, "maximum": high * step}
    if draw(st.booleans()): bounds = {"exclusiveMinimum": (low - 1) * step, "exclusiveMaximum": (high + 1) * step}
    kept = {k: v for k, v in bounds.items() if draw(st.booleans())}
    if draw(st.integers(0, 4)) == 0: kept["multipleOf"] = draw(st.sampled_from((1, 5, 7))) if kind == "integer" else .5
    return {"type": kind, **kept}


CONSTANTS = st.one_of(st.sampled_from(TEXTS), st.integers(-5, 500), st.booleans(), st.none())
choices = st.one_of(st.lists(CONSTANTS, min_size=1, max_size=5, unique_by=repr).map(lambda o: {"enum": o}),
                    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5, unique=True).map(lambda o: {"type": "string", "enum": o}),
                    st.integers(70, 90).map(lambda n: {"type": "string", "enum": [f"option {i}" for i in range(n)]}),
                    CONSTANTS.map(lambda c: {"const": c}))
plain = st.sampled_from(({"type": "boolean"}, {"type": "null"}, {}, {"type": "object"}, {"type": "array"}))
scalars = st.one_of(strings(), numbers(), choices, st.just({"type": "boolean"}))


@st.composite
def lists(draw, items):
    found = {"type": "array", "items": draw(items), **ordered(draw, "minItems", "maxItems", st.integers(0, 3))}
    if draw(st.integers(0, 4)) == 0 and found.get("minItems", 0) < 2: found["uniqueItems"] = True
    return found


@st.composite
def tuples(draw, inner):
    fixed = draw(st.lists(inner, min_size=1, max_size=3))
    further = draw(st.sampled_from((False, {"type": "integer"})))
    return {"type": "array", "prefixItems": fixed, "minItems": draw(st.integers(0, len(fixed))), "items": further}


@st.composite
def objects(draw, inner, least=0):
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=least, max_size=4, unique=True))
    found = {"type": "object", "properties": {k: draw(inner) for k in keys}, "required": [k for k in keys if draw(st.booleans())]}
    further = draw(st.sampled_from((None, None, False, True, "map")))
    if further is not None: found["additionalProperties"] = draw(scalars) if further == "map" else further
    if keys and draw(st.integers(0, 6)) == 0: found["minProperties"] = draw(st.integers(1, len(keys)))
    if further == "map" and draw(st.booleans()):
        found |= {"properties": {}, "required": [], "propertyNames": {"pattern": "^[a-z]+$"}, "minProperties": 1}
    return found


@st.composite
def unions(draw, inner):
    key = draw(st.sampled_from(("anyOf", "oneOf", "type", "null")))
    kinds = st.sampled_from(("string", "integer", "boolean", "null"))
    if key == "type": return {"type": draw(st.lists(kinds, min_size=1, max_size=3, unique=True))}
    if key == "null": return {"anyOf": [draw(inner), {"type": "null"}]}
    return {key: draw(st.lists(inner, min_size=1, max_size=3))}


@st.composite
def merged(draw, inner):
    "Two parts that can be met together."
    return {"allOf": [draw(objects(inner)), {"type": "object", "properties": {"extra": draw(scalars)}}]}


leaves = st.one_of(scalars, scalars, plain)
schemas = st.recursive(leaves, lambda inner: st.one_of(objects(inner), lists(scalars), lists(inner), tuples(inner), unions(inner),
                                                       merged(inner)), max_leaves=8)
NODE = {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/node"},
                                         "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "required": ["name"]}


@st.composite
def tools(draw):
    parameters = draw(objects(schemas, least=1))
    if draw(st.integers(0, 9)) == 0:
        parameters = {**parameters, "properties": {**parameters["properties"], "tree": {"$ref": "#/$defs/node"}}, "$defs": {"node": NODE}}
    return {"name": draw(st.sampled_from(("f", "book_table", "日程.add"))), "description": "does something", "parameters": parameters}


WORDS = ("Book", "a", "table", "for", "4", "twenty-four", "at", "Luigi's", "on", "May 3, 2024", "red", "ABC", "12345", "3.5", "yes", "tea,",
         "and", "2k", "ada@example.com", "🎉", "São Paulo", '"quoted"', "-7", "true", "null", "https://a.org/x", "{", "}", "[1, 2]",
         "7:30 pm", "1e999", "NaN")
requests = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


class WildHead(SchemaDiffusionHead):
    "A head whose every logit is random; only what no training can change (what is masked out of the softmax) is the real head's."
    def __init__(self, base, variant="slot"):
        config = HeadConfig(variant=variant, width=16, depth=1, heads=2, layers=(1,), base_hidden=4, base_vocab=base.vocab_size,
                            use_pairs=False)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(config, torch.zeros(base.vocab_size, 4))
        self.generator, self.temper = torch.Generator(), 1.
        self.table = torch.randn(64, base.vocab_size + 2, generator=self.generator)

    def believe(self, seed):
        "Other beliefs, from nearly even to nearly certain."
        self.generator.manual_seed(seed)
        self.temper = random.Random(seed).choice((.1, 1., 5., 30.))
        return self

    def draw(self, *shape): return torch.randn(*shape, generator=self.generator) * self.temper
    def encode(self, batch, state):
        B, S, T = *batch.kind_BS.shape, batch.ids_BT.shape[1]
        return self.draw(B, S, 16), self.draw(B, state.ids_BC.shape[1], 16), self.draw(B, T, 16), None

    def token_logp(self, canvas_ND):
        "Rows of one large table of random numbers, each turned by a random step: drawing anew would take most of the time."
        vocab, n = self.config.base_vocab, len(canvas_ND)
        picked = torch.randint(len(self.table), (n,), generator=self.generator).tolist()
        turns = torch.randint(vocab, (n,), generator=self.generator).tolist()
        logits = torch.stack([self.table[p].roll(k) for p, k in zip(picked, turns)]) * self.temper
        logits[:, vocab] = float("-inf")
        logits[:, -1] += 8 * self.temper * torch.rand(1, generator=self.generator)   # else a value never ends
        return logits.log_softmax(-1)


def small_tokenizer():
    "A byte-level BPE of some 800 tokens: like the embedded base's, but random logits over it cost little."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False)
    numbers = [f"{n} -{n} {n / 8} 20{n % 100:02}-0{n % 9 + 1}-1{n % 9}T0{n % 9}:3{n % 9}:00Z" for n in range(60)]
    texts = [" ".join(WORDS), " ".join(KEYS), " ".join(TEXTS), *PATTERNS, *FORMATS, *numbers, '["a", "b"] {"a": 1, "b": true}']
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def blank_features(prompt):
    "Features of the right shape that say nothing."
    n, s = len(prompt.offsets), len(prompt.rows)
    ids = torch.tensor(prompt.ids[prompt.start:prompt.start + n])
    return Features(ids, torch.zeros(n, 1), torch.zeros(s, 1), torch.zeros(s, n, 1))
