"Training must repeat itself: from a seed, after a kill in the middle, in several processes, and in several batches a step."
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smoldiff.data import expand_bank, length_batches, read_bank
from smoldiff.head import collate
from smoldiff.noise import NoiseConfig
from smoldiff.recipe import Recipe, train_head
from smoldiff.training import Run, TrainConfig, cache_features, filling_loss, train

ROOT = Path(__file__).parents[1]
CONFIG = TrainConfig(epochs=2, batch_tokens=1200, lr=2e-3, evaluations=0, checkpoint_minutes=1e9, seed=3)


@pytest.fixture(scope="module")
def cache(toy, tmp_path_factory):
    "A few records of the tool bank, read by the toy base."
    import random
    records = [r for r in expand_bank(read_bank(), 60, random.Random(1)) if r["calls"]]
    return cache_features(toy, records, tmp_path_factory.mktemp("features"), (1, 2), progress=False)


@pytest.fixture(scope="module")
def make_run(toy, cache, make_head):
    "A function that sets up a run of a small head with dropout."
    def make(config=CONFIG, folder=None, limit=None, seed=0, **options):
        head = make_head(toy, seed=seed, **options)
        assert head.config.dropout == .1
        return Run(head, filling_loss(head, NoiseConfig()), lambda g: length_batches(cache.lengths(), config.batch_tokens, g),
                   lambda ids: collate([cache.example(i) for i in ids]), config, None, folder, limit)
    return make


def trained(run):
    "The weights after training."
    history = train(run, progress=False)
    assert len(history) == len(run.step_batches()) and history.loss.notna().all()
    return {k: v.clone() for k, v in run.model.state_dict().items()}


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_seed_repeats_a_run(make_run):
    torch.manual_seed(1)
    first = trained(make_run())
    torch.manual_seed(2)  # what else the process draws does not matter
    assert equal(first, trained(make_run()))
    assert not equal(first, trained(make_run(replace(CONFIG, seed=4))))


def test_training_leaves_the_generator_of_torch_alone(make_run):
    run, state = make_run(), torch.get_rng_state()
    trained(run)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{}, {"variant": "token"}, {"encoder": "residual_mlp", "step_embedding": True}], ids=str)
def test_every_kind_of_head_learns(make_run, options):
    epochs = 1 if options.get("variant") == "token" else 6  # logits over the vocabulary at every token are slow
    run = make_run(replace(CONFIG, epochs=epochs), **options)
    history = train(run, progress=False)
    n = min(10, len(history) // 2)
    assert history.loss.tail(n).mean() < history.loss.head(n).mean()


def test_stopped_in_the_middle_and_resumed(make_run, tmp_path):
    "Each of several sessions does a step or more; the last one ends with the weights of a run without a stop."
    through, sessions, done = trained(make_run()), 0, 0
    while True:
        run = make_run(folder=tmp_path, limit=0., seed=sessions)  # other initial weights: the checkpoint's count
        history = train(run, progress=False)
        assert len(history) == done + 1 and list(history.step) == list(range(1, done + 2))
        sessions, done = sessions + 1, len(history)
        if done == len(run.step_batches()): break
    assert sessions > 3 and equal(through, run.model.state_dict())


def test_half_a_checkpoint_is_not_used(make_run, tmp_path):
    "Cut off while a checkpoint is written, or between the two moves that put it in its place."
    through = trained(make_run())
    train(make_run(folder=tmp_path, limit=0.), progress=False)
    (tmp_path / "last.partial").mkdir()
    (tmp_path / "last.partial" / "model.safetensors").write_bytes(b"half")
    os.replace(tmp_path / "last", tmp_path / "last.old")
    assert equal(through, trained(make_run(folder=tmp_path, seed=5)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_accumulation_drops_nothing_but_the_remainder(make_run):
    for accumulate in (2, 3):
        run = make_run(replace(CONFIG, accumulate=accumulate))
        batches = [run.epoch_batches(e) for e in range(CONFIG.epochs)]
        assert len(run.step_batches()) == sum(max(1, len(b) // accumulate) for b in batches)
        assert all(len(b) == accumulate for b in run.step_batches())
        trained(run)


def test_accumulated_batches_are_averaged():
    "Two batches of one example each give the step of one batch of both, for a loss that is a mean."
    def weights(batches, accumulate):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = torch.nn.Linear(3, 1)
        x = torch.eye(3)
        run = Run(model, lambda b, g: {"loss": model(b).square().mean()}, lambda g: batches, lambda ids: x[ids],
                  TrainConfig(epochs=4, accumulate=accumulate, evaluations=0))
        train(run, progress=False)
        return torch.cat([p.flatten() for p in model.parameters()])
    assert torch.allclose(weights([[0, 1]], 1), weights([[0], [1]], 2), atol=1e-6)
    assert not torch.allclose(weights([[0, 1]], 1), weights([[0], [2]], 2), atol=1e-6)


# The whole recipe, killed as an out-of-memory killer would do it

RECIPE = Recipe(records=40, valid_records=24, max_tokens=320, seed=2, head={"width": 32, "depth": 1, "heads": 4},
                train=replace(CONFIG, evaluations=1, epochs=3, checkpoint_minutes=0.))
SESSION = """
import sys, time
sys.path.insert(0, {tests!r})
from smoldiff.base import load_base
from test_training import RECIPE, train_head
import smoldiff.training as training
whole = training.save_checkpoint
def save(*args):
    whole(*args)
    print("saved", flush=True)
    time.sleep(.3)  # so that the kill comes in the middle
training.save_checkpoint = save
train_head(load_base({base!r}, "cpu"), RECIPE, {out!r}, None, {work!r}, progress=False)
"""


def session(*args): return [sys.executable, "-c", SESSION.format(tests=str(ROOT / "tests"), **args[0])]


def environment(): return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def test_killed_and_resumed(toy, toy_folder, tmp_path):
    names = {"base": str(toy_folder), "out": str(tmp_path / "cut"), "work": str(tmp_path / "work")}
    process = subprocess.Popen(session(names), env=environment(), stdout=subprocess.PIPE, text=True)
    for _ in range(3): assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "cut").exists()
    position = json.loads(next((tmp_path / "work").glob("checkpoints-*/last/progress.json")).read_text())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cut = train_head(toy, RECIPE, tmp_path / "cut", None, tmp_path / "work", progress=False)
        through = train_head(toy, RECIPE, tmp_path / "through", None, tmp_path / "other", progress=False)
    finally: torch.set_num_threads(threads)
    assert 3 <= position["step"] < cut["steps"] == through["steps"]
    assert equal(load_file(tmp_path / "cut" / "head.safetensors"), load_file(tmp_path / "through" / "head.safetensors"))
    timing = {"last_session_minutes"}
    assert {k: v for k, v in cut.items() if k not in timing} == {k: v for k, v in through.items() if k not in timing}
    again = train_head(toy, RECIPE, tmp_path / "cut", None, tmp_path / "work", progress=False)  # nothing is left to do
    assert again["steps"] == cut["steps"] and again["finished"]


def test_out_of_time_and_resumed_with_accumulation(toy, tmp_path):
    recipe = replace(RECIPE, train=replace(RECIPE.train, accumulate=2, epochs=1, evaluations=0))
    first = train_head(toy, recipe, tmp_path / "head", None, tmp_path / "work", minutes=1e-9, progress=False)
    assert not first["finished"] and first["steps"] == 1 < first["of"] and not (tmp_path / "head").exists()
    last = train_head(toy, recipe, tmp_path / "head", None, tmp_path / "work", progress=False)
    assert last["finished"] and last["steps"] == first["of"]
    files = {"head.safetensors", "config.json", "config.yaml", "metrics.json", "history.csv"}
    assert files <= {p.name for p in (tmp_path / "head").iterdir()}


# Two processes

WORKER = """
import sys
import torch
from accelerate import PartialState
from safetensors.torch import save_file
from smoldiff.training import Run, TrainConfig, train

state = PartialState(cpu=True)
torch.manual_seed(state.process_index)  # other initial weights: those of the first process must win
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(.1), torch.nn.Linear(8, 1), torch.nn.Linear(1, 1))
data = torch.randn(14, 4, generator=torch.Generator().manual_seed(0))
seen = []

def loss(x, generator):  # calls the model itself, as a head's loss does; the last layer has a gradient in one process only
    y = model[:3](x)
    extra = model[3](y).mean() if len(seen) % 3 == state.process_index else 0
    return {{"loss": (y - x.sum(1, keepdim=True)).square().mean() + extra}}

def collate(i):
    seen.append(i)
    return data[[i]]

config = TrainConfig(epochs=3, lr=1e-2, evaluations=2, checkpoint_minutes=0., seed=1)
folder, limit = {folder!r}, {limit!r}
run = Run(model, loss, lambda g: torch.randperm(7, generator=g).tolist(), collate, config, lambda: {{"size": 1.}}, folder, limit)
history = train(run, progress=False)
assert state.num_processes == 2
held = dict(model.state_dict(), seen=torch.tensor(seen), steps=torch.tensor(len(history)))
save_file(held, {out!r} + f"/{{state.process_index}}.safetensors")
"""


def two_processes(tmp_path, name, folder=None, limit=None):
    "What both processes hold after training."
    out = tmp_path / name
    out.mkdir()
    script = tmp_path / f"{name}.py"
    script.write_text(WORKER.format(out=str(out), folder=folder and str(folder), limit=limit))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(out / f"{i}.safetensors") for i in range(2)]


def test_two_processes_hold_equal_weights(tmp_path):
    a, b = two_processes(tmp_path, "through")
    seen = [w.pop("seen").tolist() for w in (a, b)]
    assert equal(a, b) and a["steps"] == 9
    assert not torch.equal(a["0.weight"], load_start()["0.weight"])
    for epoch in range(3):  # six of seven batches an epoch, each seen by one process
        assert len({*seen[0][3 * epoch:3 * epoch + 3], *seen[1][3 * epoch:3 * epoch + 3]}) == 6


def load_start():
    "The initial weights of the first process."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(.1), torch.nn.Linear(8, 1)).state_dict()


def test_two_processes_stop_together_and_resume(tmp_path):
    folder = tmp_path / "checkpoints"
    a, b = two_processes(tmp_path, "stopped", folder, limit=1e-3)
    assert a["steps"] == b["steps"] < 9
    a, b = two_processes(tmp_path, "resumed", folder)
    for w in (a, b): w.pop("seen")
    assert equal(a, b) and a["steps"] == 9
