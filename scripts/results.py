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


def row(label: str, s: dict) -> str:
    "One line of the table."
    low, high = s["call_match_95"]
    cells = [label, s["n"], f"{percent(s['call_match'])} ({percent(low)}–{percent(high)})",
             percent(s["field_exact"]), percent(s["schema_valid"]),
             f"{percent(s['null_rate_true'])} / {percent(s['null_rate_pred'])}", f"{s['latency_ms']['p50']:.0f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def block() -> str:
    "The results as Markdown."
    bfcl, auto, valid = load("bfcl"), load("bfcl-auto"), load("validation")
    lines = [BEGIN, "The shipped head. Milliseconds a call at the median, on two CPU cores that were busy; 95% bootstrap intervals.", "",
             "| set | items | calls right, % | fields exact, % | valid, % | optional slots left out: true / predicted, % | ms |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    lines += [row(f"BFCL {c}, tool named", bfcl[c]) for c in bfcl if c != "about"]
    lines += [row(f"BFCL {c}, end to end, the first items", auto[c]) for c in ("simple_python", "multiple", "live_simple") if c in auto]
    names = dict(single="single requests", conversations="conversations")
    lines += [row(f"tools unseen in training, {names[k]}, tool named", valid[k]) for k in names if k in valid]
    looks = {k.split()[1]: v for k, v in load("decoding").get("options", {}).items() if k.startswith("steps")}
    if looks:
        seen = "; ".join(f"{k}: {percent(v['valid_fields'])} ({percent(v['valid_calls'])})" for k, v in looks.items())
        lines += ["", "Looking again helps. On requests to unseen tools, fields right (whole calls right) in percent, by looks:", seen]
    return "\n".join([*lines, "", "BFCL is the official AST verdict, and a test set: nothing was trained or tuned on it.", END])


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
