"The command as a user meets it: bad input gets one line on stderr and a code, good input gets exactly one JSON object on stdout."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smoldiff.agent import HybridSmolLM
from smoldiff.cli import main
from smoldiff.data import read_records

TOOLS = Path(__file__).parent / "data" / "tools.json"
SAMPLE = Path(__file__).parent / "data" / "sample" / "valid"
ASK = "Book a table for four at Luigi's in Rome"
ANSWER = {"mode", "text", "tool_calls", "tool_name", "tool_call", "fields", "timing_ms"}
SCORES = {"n", "call_exact", "call_match", "field_exact", "schema_valid", "null_rate_true", "null_rate_pred", "null_token_rate",
          "hallucination_rate", "latency_ms"}
RATES = SCORES - {"n", "latency_ms"}


@pytest.fixture(scope="module")
def toy_head(toy, make_head, tmp_path_factory):
    "Folder of an untrained head for the toy base."
    folder = tmp_path_factory.mktemp("heads") / "toy"
    HybridSmolLM(toy, make_head(toy).eval()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def toy_flags(toy_folder, toy_head): return ["--base", str(toy_folder), "--head", str(toy_head), "--device", "cpu"]


@pytest.fixture
def run(capsys):
    "A function that runs the command in this process: code, stdout, stderr."
    def run(*argv):
        capsys.readouterr()
        try: code = main([str(a) for a in argv])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return run


def process(*argv):
    "The command as a process of its own."
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "smoldiff.cli", *map(str, argv)], capture_output=True, text=True, env=env, timeout=600)
    return done.returncode, done.stdout, done.stderr


def refused(result, *says, usage=False):
    "One line that names the problem, nothing on stdout, a code; argparse puts its usage before it."
    code, out, err = result
    assert code not in (0, None) and out == "" and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.strip()]
    if usage: lines = lines[-1:]
    assert len(lines) == 1 and lines[0].startswith("smoldiff"), err
    for text in says: assert str(text) in lines[0], err


def only_json(result):
    "The one object on stdout."
    code, out, err = result
    assert code == 0, err
    assert out.count("\n") == 1 and out.startswith("{") and "Traceback" not in err
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# Bad input

def test_bad_tools_files(run, tmp_path):
    call = lambda tools, *more: run("call", ASK, "--tools", tools, *more)
    refused(call(tmp_path / "none.json"), "none.json", "no such file")
    refused(call(tmp_path), "directory")
    refused(call(write(tmp_path / "half.json", '[{"name": ')), "half.json", "not JSON, line 1")
    refused(call(write(tmp_path / "text.json", '"hello"')), "text.json", "cannot make a tool")
    refused(call(write(tmp_path / "empty.json", [])), "no tools")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    refused(call(tmp_path / "bytes.json"), "not UTF-8")
    bad = {"name": "fly", "parameters": {"type": "object", "properties": {"to": {"type": "airport"}}}}
    refused(call(write(tmp_path / "type.json", bad)), "tool fly: /properties/to: unknown type 'airport'")
    bad["parameters"]["properties"]["to"] = {"type": "string", "minLength": -1}
    refused(call(write(tmp_path / "length.json", bad)), "tool fly: /properties/to/minLength")
    bad["parameters"] = {"type": "object", "properties": {}, "required": ["from"]}
    refused(call(write(tmp_path / "required.json", bad)), "tool fly: /required: 'from'")
    refused(call(write(tmp_path / "deep.json", "[" * 100_000)), "deep.json")
    refused(call(write(tmp_path / "twice.json", [bad | {"parameters": {}}] * 2)), "two tools")


def test_unknown_tool(run):
    refused(run("call", ASK, "--tools", TOOLS, "--tool", "fly"), "unknown tool 'fly'", "book_table")
    refused(run("call", ASK, "--tool", "fly"), "--tools")


@pytest.mark.parametrize("request_text", ["", "  \n\t "])
def test_empty_query(run, request_text): refused(run("call", request_text, "--tools", TOOLS), "request is empty")


@pytest.mark.parametrize("more", [["--tools", TOOLS], ["--tools", TOOLS, "--tool", "book_table"], ["--mode", "think"], []])
def test_query_longer_than_the_context(run, toy, toy_flags, more):
    refused(run("call", "very " * toy.context + ASK, *toy_flags, *more), f"{toy.context}")


def test_query_that_is_no_text(run, toy_flags):
    refused(run("call", "caf\udce9", "--tools", TOOLS, *toy_flags), "not valid Unicode")


def test_modes_that_cannot_be(run, toy_flags):
    refused(run("call", ASK, "--mode", "tool", *toy_flags), "at least one tool")
    refused(run("call", ASK, "--mode", "sing"), "sing", usage=True)
    refused(run("call", ASK, "--device", "abacus", *toy_flags[:4]), "abacus")


@pytest.mark.parametrize("steps", ["0", "-1", "many", "1.5"])
def test_steps_that_cannot_be(run, steps): refused(run("call", ASK, "--steps", steps), "--steps", steps, usage=True)


@pytest.mark.parametrize("argv", [[], ["dance"], ["call"], ["train"], ["eval", "--limit", "0"]])
def test_usage_errors(run, argv): refused(run(*argv), "error:", usage=True)


def test_missing_head(run, tmp_path, toy_folder, toy_head):
    refused(run("call", ASK, "--head", tmp_path / "none"), "no head in", tmp_path / "none")
    half = shutil.copytree(toy_head, tmp_path / "half")
    (half / "head.safetensors").unlink()
    refused(run("info", "--head", half, "--base", toy_folder), "no head in", "head.safetensors")


def test_head_for_another_base(run, toy_folder, head_folder):
    result = run("call", ASK, "--tools", TOOLS, "--head", head_folder, "--base", toy_folder)
    refused(result, "was made for SmolLM2-135M-Instruct", toy_folder)


def test_corrupted_head(run, tmp_path, toy_head, toy_folder):
    def with_head(name, change):
        folder = shutil.copytree(toy_head, tmp_path / name)
        change(folder)
        return run("call", ASK, "--tools", TOOLS, "--head", folder, "--base", toy_folder)

    def flip(folder):
        data = bytearray((folder / "head.safetensors").read_bytes())
        data[len(data) // 2] ^= 1  # one bit
        (folder / "head.safetensors").write_bytes(data)
    def config(**changes): return lambda f: write(f / "config.json", json.loads((f / "config.json").read_text()) | changes)
    refused(with_head("bit", flip), "damaged", "head.safetensors")
    refused(with_head("cut", lambda f: os.truncate(f / "head.safetensors", 100)), "damaged")
    refused(with_head("json", lambda f: write(f / "config.json", "{")), "config.json is not JSON")
    refused(with_head("list", lambda f: write(f / "config.json", [])), "describes no head")
    refused(with_head("part", config(head=None)), "describes no head")
    refused(with_head("later", config(head={"wings": 2})), "another version", "wings")


def test_bases_that_are_not_there(run, tmp_path, make_toy_base, toy_head):
    refused(run("info", "--head", toy_head, "--base", tmp_path / "no" / "such" / "base"), "cannot load base", "such")
    refused(run("info", "--head", toy_head, "--base", tmp_path), "holds no model")
    folder = make_toy_base(tmp_path / "cut")
    os.truncate(folder / "model.safetensors", 5000)
    refused(run("info", "--head", toy_head, "--base", folder), "cannot load base")


def test_nothing_to_evaluate(run, tmp_path, toy_flags):
    refused(run("eval"), "--data", "--bfcl")
    refused(run("eval", "--data", "x.jsonl", "--bfcl", "simple_python"), "either")
    refused(run("eval", "--data", tmp_path / "none.jsonl"), "none.jsonl", "cannot be read")
    refused(run("eval", "--bfcl", "simple_cobol"), "unknown BFCL category 'simple_cobol'", "simple_python")
    refused(run("eval", "--bfcl", "simple_python,"), "unknown BFCL category")
    refused(run("eval", "--data", write(tmp_path / "empty.jsonl", ""), *toy_flags), "nothing to evaluate")


def test_broken_records(run, tmp_path, toy_flags):
    good = next(read_records(SAMPLE / "toolrl.jsonl"))
    judged = lambda text: run("eval", "--data", write(tmp_path / "r.jsonl", text), *toy_flags)
    refused(judged(json.dumps(good) + '\n{"id": "b", '), "r.jsonl, line 2: not JSON")
    refused(judged("[1]"), "r.jsonl, line 1: expected a JSON object")
    for key in ("id", "tools", "query", "calls"):
        refused(judged(json.dumps({k: v for k, v in good.items() if k != key})), key)
    refused(judged(json.dumps(good | {"tools": [{"name": "f", "parameters": {"type": "spoon"}}]})), "spoon")
    refused(judged(json.dumps(good | {"calls": [{"name": "f"}]})), good["id"], "arguments")
    refused(judged(json.dumps(good | {"messages": "hello"})), good["id"], "messages")


def test_predictions_that_cannot_be_written(run, tmp_path, toy_flags):
    "Said before the work is done, and nothing is left behind."
    for path in (tmp_path / "no" / "folder" / "p.jsonl", tmp_path):
        refused(run("eval", "--data", SAMPLE / "toolrl.jsonl", "--predictions", path, *toy_flags), "predictions file", path)
    assert list(tmp_path.iterdir()) == []


def test_training_that_cannot_begin(run, tmp_path, toy_folder):
    train = lambda *argv: run("train", "--base", toy_folder, "--out", tmp_path / "out", *argv)
    refused(train("--config", tmp_path / "none.yaml"), "none.yaml")
    refused(train("--config", write(tmp_path / "bad.yaml", "a: [")), "bad.yaml")
    refused(train("--config", write(tmp_path / "odd.yaml", "wings: 2")), "odd.yaml", "wings")
    refused(train("--config", write(tmp_path / "deep.yaml", "train: {wings: 2}")), "deep.yaml", "wings")
    refused(train("--share", "2"), "--share")
    refused(train("--data-dir", tmp_path), "not a data folder")
    (tmp_path / "file").write_text("")
    refused(train("--data-dir", tmp_path / "file"), "not a data folder")


# As processes: imports, exit codes and stderr of the real thing

def test_processes_refuse_in_one_line(tmp_path, toy_folder, head_folder):
    refused(process("call", ASK, "--tools", tmp_path / "none.json"), "none.json")
    refused(process("call", ASK, "--tools", TOOLS, "--base", toy_folder, "--head", head_folder), "was made for")


def test_a_process_prints_one_object(head_folder):
    answer = only_json(process("call", ASK, "--tools", TOOLS, "--tool", "book_table", "--head", head_folder, "--device", "cpu", "--json"))
    assert set(answer) == ANSWER and answer["tool_name"] == "book_table"


def test_help_has_an_example(run):
    for command in ("call", "train", "eval", "info", "demo"):
        code, out, err = run(command, "--help")
        assert code == 0 and "example: smoldiff " + command in out and err == ""


# Good input

@pytest.mark.parametrize("more", [["--tools", TOOLS, "--tool", "book_table"], ["--tools", TOOLS, "--mode", "tool", "--steps", "1"]])
def test_a_call_as_json(run, toy_flags, more):
    answer = only_json(run("call", ASK, *toy_flags, *more, "--json"))
    assert set(answer) == ANSWER and answer["mode"] == "tool" and answer["text"] is None
    first = answer["tool_calls"][0]
    assert answer["tool_call"] == first and answer["tool_name"] == first["name"] and set(first) == {"name", "arguments"}
    names = {t["name"]: t["parameters"] for t in json.loads(TOOLS.read_text())}
    assert [f["path"] for f in answer["fields"]] == list(names[first["name"]]["properties"])
    for field in answer["fields"]:
        assert {"path", "value", "confidence", "source"} <= set(field) and 0 <= field["confidence"] <= 1
        assert field["source"] in {"copy", "option", "write", "default", "absent"}
        assert (field["path"] in first["arguments"]) == (field["source"] != "absent")
    assert all(isinstance(v, (int, float)) for v in answer["timing_ms"].values())


@pytest.mark.parametrize("more", [["--mode", "chat"], ["--mode", "think", "--tools", TOOLS], []])
def test_an_answer_in_words_as_json(run, toy_flags, more):
    answer = only_json(run("call", "Hello there", *toy_flags, *more, "--json"))
    assert set(answer) == ANSWER and answer["mode"] == (more[1] if more else "chat") and isinstance(answer["text"], str)
    assert (answer["tool_calls"], answer["tool_name"], answer["tool_call"], answer["fields"]) == ([], None, None, [])


def test_an_answer_for_people(run, toy_flags):
    code, out, err = run("call", ASK, *toy_flags, "--tools", TOOLS, "--tool", "book_table", "--trace")
    assert code == 0 and "restaurant" in out and "confidence" in out and "look 1" in err


def test_info_as_json(run, toy_flags, toy_head):
    facts = only_json(run("info", *toy_flags, "--json"))
    assert facts["head_folder"] == str(toy_head) and "layers" in facts["base"] and "cpu" in facts["device"]


def check_scores(scores, n):
    assert set(scores) == SCORES and scores["n"] == n and set(scores["latency_ms"]) == {"p50", "p95"}
    assert all(scores[k] is None or 0 <= scores[k] <= 1 for k in RATES)


def test_eval_of_records(run, toy_flags, tmp_path):
    "With and without the names; one line for every item, those that fail and those without a call too."
    records = [next(read_records(SAMPLE / f"{s}.jsonl")) for s in ("toolrl", "sgd")]
    long = records[0] | {"id": "long", "query": "very " * 2000}
    none = records[0] | {"id": "none", "calls": [], "neg": "irrelevant"}
    file, out = tmp_path / "r.jsonl", tmp_path / "p.jsonl"
    write(file, "".join(json.dumps(r) + "\n" for r in [*records, long, none]))
    scores = only_json(run("eval", "--data", file, "--oracle-name", "--predictions", out, *toy_flags, "--json"))
    check_scores(scores, 3)  # a record without a call has no name to give
    lines = list(read_records(out))
    assert [line["id"] for line in lines] == [*(r["id"] for r in records), "long"]
    for line in lines: assert {"id", "mode", "calls", "fields", "ms"} <= set(line) and line["ms"] >= 0
    for record, line in zip(records, lines): assert [c["name"] for c in line["calls"]] == [c["name"] for c in record["calls"]]
    assert lines[2]["calls"] == [] and "at most" in lines[2]["error"]

    scores = only_json(run("eval", "--data", file, "--mode", "tool", "--predictions", out, *toy_flags, "--json"))
    check_scores(scores, 4)
    lines = list(read_records(out))
    assert [line["id"] for line in lines] == [*(r["id"] for r in records), "long", "none"]
    scores = only_json(run("eval", "--data", file, "--limit", 1, *toy_flags, "--json"))
    check_scores(scores, 1)


def test_eval_of_bfcl_categories(run, toy_flags, tmp_path):
    out = tmp_path / "p.jsonl"
    argv = ["--oracle-name", "--limit", 2, "--predictions", out, *toy_flags, "--json"]
    scores = only_json(run("eval", "--bfcl", "simple_python,multiple", *argv))
    assert set(scores) == {"simple_python", "multiple"}
    for part in scores.values():
        check_scores(part, 2)
        assert part["schema_valid"] == 1
    lines = list(read_records(out))
    assert [line["id"] for line in lines] == ["simple_python_0", "simple_python_1", "multiple_0", "multiple_1"]
    check_scores(only_json(run("eval", "--bfcl", "irrelevance", "--mode", "tool", "--limit", 1, *toy_flags, "--json")), 1)
