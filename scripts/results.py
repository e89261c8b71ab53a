"""Write the README's block of results from results/*.json; with --check, only say whether it is up to date."""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by scripts/results.py, do not edit -->", "<!-- end of results -->"


def load(name: str) -> dict:
    "One results file, empty if it has not been made."
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def percent(x) -> str:
    "A share as a percentage with one decimal."
    return "–" if x is None else f"{100 * x:.1f}"


WAYS = {"smoldiff": "", "base + XGrammar": "-rival", "base alone": "-free"}


def row(label: str, found: dict) -> str:
    "One line of the table, from what each way reaches on one set."
    ours = found["smoldiff"]
    cells = [label, ours["n"]]
    for way, s in found.items():
        cells.append(f"{percent(s['call_match'])} ({'–'.join(map(percent, s['call_match_95']))})" if s else "–")
    cells += [percent(ours["field_exact"]), percent(ours["schema_valid"])]
    return "| " + " | ".join(map(str, cells)) + " |"


SETS = {"bfcl": {c: f"BFCL {c}" for c in ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple, others",
                                          "live_simple, SGD services")},
        "validation": {"single": "unseen tools, one call", "several": "unseen tools, several calls",
                       "conversations": "unseen tools, conversations",
                       "statements": "unseen schemas, information extraction", "bank": "kept-back tools of the tool bank",
                       "bank, several calls": "kept-back tools of the tool bank, several calls"}}


def headed(way: str) -> str:
    "The name of a way, and how many items of each BFCL category it was asked, where not all."
    limit = load(f"bfcl{WAYS[way]}")["about"].get("limit")
    return f"{way} (first {limit})" if limit else way


def block() -> str:
    "The results as Markdown."
    ways = [w for w, end in WAYS.items() if load(f"bfcl{end}")]
    lines = [BEGIN, "Whole calls right, in percent with 95% bootstrap intervals; the tool's name given. BFCL: all items, "
             "the official AST verdict. *Fields exact* and *valid*: smoldiff's.", "",
             f"| set | items | {' | '.join(map(headed, ways))} | fields exact | valid |", "|---|" + "---:|" * (3 + len(ways))]
    for name, labels in SETS.items():
        found = {w: load(name + WAYS[w]) for w in ways}
        lines += [row(label, {w: f.get(k, {}) for w, f in found.items()}) for k, label in labels.items() if k in found["smoldiff"]]
    auto = load("bfcl-auto")
    told = [f"{c} {percent(auto[c]['call_match'])} (the first {auto[c]['n']})" for c in auto if c != "about" and "," not in c]
    if told: lines += ["", f"End to end, where the base has to choose the tool as well (BFCL): {'; '.join(told)}."]
    looks = {k.split()[1]: v for k, v in load("decoding").get("options", {}).items() if k.startswith("steps")}
    if looks:
        seen = "; ".join(f"{k}: {percent(v['valid_fields'])} ({percent(v['valid_calls'])})" for k, v in looks.items())
        lines += ["", f"Fields right (whole calls right) on requests to unseen tools, by looks: {seen}."]
    if speed := load("latency"):
        seen = "; ".join(f"{way} {s['p50']:.0f} ({s['p5']:.0f}–{s['p95']:.0f})" for way, s in speed["ways"].items())
        threads = speed["about"]["threads"]
        where = f"{speed['about']['device']}, {threads} thread{'s' * (threads > 1)}"
        n = speed["ways"]["smoldiff"]["n"]
        lines += ["", f"Milliseconds a call, the median and the middle nine tenths ({where}; {n} items of simple_python): {seen}."]
    return "\n".join([*lines, "", "BFCL is a test set: nothing was trained or tuned on it.", END])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    text = readme.read_text()
    head, rest = text.split(BEGIN, 1)
    new = head + block() + rest.split(END, 1)[1]
    if not parser.parse_args().check:
        readme.write_text(new)
    elif new != text:
        print("README.md: results are out of date, run scripts/results.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
