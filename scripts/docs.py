"""Render the notebooks, README.md and CONTRIBUTING.md as pages in _docs/: `python scripts/docs.py`.

Quarto renders them where it is installed (nbdev's own commands would try to install it, so they are not called). Elsewhere pandoc does,
from the wheel pypandoc_binary, with no network. Both start from the notebooks as nbdev processes them for the documentation, and both fail
on a warning, a stored error or a broken local link.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import yaml
from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html as html_name  # 00_tools.ipynb -> tools.html, as nbdev's links expect
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

here = Path(__file__).resolve().parent
root = here.parent
proc, docs = root / "_proc", root / "_docs"
top_pages = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}  # pages that are not notebooks
assets = {".png", ".jpg", ".jpeg", ".gif", ".svg", ".css", ".webp"}
ours = re.compile(r"nbdev|execnb|smoldiff|ipython-input")  # files whose warnings are ours to mend, not a dependency's


class DocsError(Exception):
    "Something a reader of the pages would trip over."


# Links: the same target has one name in the repository and another on the pages

link = re.compile(r"(?<=\]\()(?!https?:|mailto:|#|data:|attachment:)([^)\s#]+)(#[^)\s]*)?")


def page_link(target: str, folder: Path) -> str:
    "What a relative link of a source file in `folder` is called on the pages; an image is copied beside them."
    cfg, path = get_config(), (folder / unquote(target)).resolve()
    nbs = cfg.nbs_path.resolve()
    if not path.exists() or not path.is_relative_to(root): raise DocsError(f"{folder.relative_to(root)}/: link to a missing file: {target}")
    rel, up = path.relative_to(root).as_posix(), "../" * len(page_folder(folder).parts)
    if rel in top_pages: return up + Path(top_pages[rel]).with_suffix(".html").name
    if path.suffix == ".ipynb" and path.is_relative_to(nbs): return up + html_name(path.relative_to(nbs)).as_posix()
    if path.suffix not in assets: return f"{cfg.git_url}/blob/{cfg.branch}/{rel}"
    dest = page_folder(path.parent) / path.name
    (proc / dest).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, proc / dest)
    return up + dest.as_posix()


def page_folder(folder: Path) -> Path:
    "Where the pages of `folder` lie: notebooks at the top, everything else by its own path."
    nbs = get_config().nbs_path.resolve()
    return folder.relative_to(nbs if folder.is_relative_to(nbs) else root)


def localise(text: str, folder: Path) -> str:
    "Markdown with relative links renamed, and nbdev's links to symbols made relative, so that pages work offline."
    cfg = get_config()
    site, up = f"{cfg.doc_host}{cfg.doc_baseurl}/", "../" * len(page_folder(folder).parts)
    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.M | re.S)  # code is every other part
    for i, part in enumerate(parts):
        if i % 2: parts[i] = re.sub(rf"\[(`[^`]+`)\]\({re.escape(site)}[^)]*\)", r"\1", part)  # nbdev links names in comments too
        else: parts[i] = link.sub(lambda m: page_link(m[1], folder) + (m[2] or ""), part)
    return "".join(parts).replace(f"]({site}", f"]({up}")


# Preparing: notebooks with show_doc tables, configuration, sidebar

def prepare():
    "Fill _proc with what either renderer starts from."
    shutil.rmtree(proc, ignore_errors=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        refresh_quarto_yml()
        nbdev_sidebar.__wrapped__()
        try: proc_nbs(n_workers=0, force=True)  # one process: torch is imported once, and warnings are heard here
        except Exception as e: raise DocsError(f"{e}\n{e.__cause__!r}") from e
    say = [f"{w.category.__name__}: {w.message}" for w in seen if issubclass(w.category, UserWarning) and ours.search(w.filename)]
    if say: raise DocsError("\n".join(say))
    for path in sorted(proc.rglob("*.ipynb")): relink(path)
    for source, name in top_pages.items(): (proc / name).write_text(localise((root / source).read_text(), root))
    sidebar = yaml.safe_load((proc / "sidebar.yml").read_text())
    listed = sidebar["website"]["sidebar"]["contents"]
    sidebar["website"]["sidebar"]["contents"] = ["index.md", *listed, "contributing.md"]
    (proc / "sidebar.yml").write_text(yaml.dump(sidebar, sort_keys=False))


def name_heading(md: str, source: str) -> str:
    "Give show_doc's heading the name that links use: nbdev shortens it where a patched method has another decorator."
    shown = re.search(r"^show_doc\(([\w.]+)", source, flags=re.M)
    if not shown: return md
    name = shown[1]
    return re.sub(r"^(#+) (\S+)$", lambda m: m[0] if m[2] == name else f"{m[1]} {name} {{#{name.lower()}}}", md, count=1, flags=re.M)


def relink(path: Path):
    "Rename the links in one processed notebook's front matter, text and show_doc outputs."
    nb, folder = json.loads(path.read_text()), get_config().nbs_path.resolve() / path.parent.relative_to(proc)
    for cell in nb["cells"]:
        if cell["cell_type"] != "code": cell["source"] = localise("".join(cell["source"]), folder)
        for out in cell.get("outputs", []):
            if out["output_type"] == "error": raise DocsError(f"{path.name}: a stored output is an error: {out['ename']}")
            md = out.get("data", {}).get("text/markdown")
            if md: out["data"]["text/markdown"] = localise(name_heading("".join(md), "".join(cell["source"])), folder)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False))


# Rendering by Quarto

def by_quarto():
    "Render _proc with Quarto and move the site to _docs."
    command = ["quarto", "render", "--no-cache", "--no-execute"]
    done = subprocess.run(command, cwd=proc, text=True, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    print(done.stdout)
    if done.returncode or re.search(r"^(WARN|ERROR)", done.stdout, re.M): raise DocsError("quarto warned or failed; see above")
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc / docs.name, docs)


# Rendering by pandoc

def fence(text: str, kind: str) -> str: return f"\n``````{kind}\n{text.rstrip()}\n``````\n"


def output_markdown(out: dict, asis: bool) -> str:
    "One stored output as pandoc's Markdown: the richest form that needs no script."
    if out["output_type"] == "stream": return "" if out["name"] == "stderr" else fence("".join(out["text"]), "{.output}")
    data = {k: v if isinstance(v, str) else "".join(v) for k, v in out["data"].items() if isinstance(v, (str, list))}
    if "text/markdown" in data: return f"\n{data['text/markdown']}\n" if asis else f"\n::: {{.output}}\n{data['text/markdown']}\n:::\n"
    if "text/html" in data: return fence(f'<div class="output">{data["text/html"]}</div>', "{=html}")
    if "image/svg+xml" in data: return fence(f'<div class="output">{data["image/svg+xml"]}</div>', "{=html}")
    if "image/png" in data:
        return fence(f'<div class="output"><img alt="figure" src="data:image/png;base64,{data["image/png"].strip()}"></div>', "{=html}")
    if "text/latex" in data: return f"\n{data['text/latex']}\n"
    return fence(data.get("text/plain", ""), "{.output}")


def cell_markdown(cell: dict) -> str:
    "One processed cell as pandoc's Markdown, by Quarto's directives echo, include and output."
    source = "".join(cell["source"])
    if cell["cell_type"] != "code": return f"\n{source}\n" if cell["cell_type"] == "markdown" else ""
    option = dict(re.findall(r"^#\|\s*([\w-]+):\s*(\S+)", source, flags=re.M))
    code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
    if option.get("include") == "false": return ""
    text = fence(code, "python") if code and option.get("echo") != "false" else ""
    if option.get("output") == "false": return text
    return text + "".join(output_markdown(o, option.get("output") == "asis") for o in cell.get("outputs", []))


def read_page(path: Path) -> tuple[str, str]:
    "Title and Markdown of a page in _proc."
    if path.suffix == ".md":
        text = path.read_text()
        title = re.search(r"^# (.+)$", text, flags=re.M)
        return (title[1] if title else path.stem), text.replace(title[0], "", 1) if title else text
    cells = json.loads(path.read_text())["cells"]
    front = "".join(cells[0]["source"]).strip().strip("-") if cells and cells[0]["cell_type"] == "raw" else ""
    meta = yaml.safe_load(front) or {}
    purpose = f"::: description\n{meta['description']}\n:::\n" if "description" in meta else ""
    return meta.get("title", path.stem), purpose + "\n".join(map(cell_markdown, cells))


def navigation(contents: list, titles: dict, current: str) -> str:
    "The sidebar as nested lists; links are relative to the page `current`."
    up, items = "../" * current.count("/"), []
    for item in contents:
        if isinstance(item, dict):
            items.append(f"<li><span>{escape(item['section'])}</span>{navigation(item['contents'], titles, current)}</li>")
        elif item in titles and item != "index.md":  # the site's name above the list leads there
            name, title = titles[item]
            here_now = ' aria-current="page"' if name == current else ""
            items.append(f'<li><a href="{up}{name}"{here_now}>{escape(title)}</a></li>')
    return f"<ul>{''.join(items)}</ul>"


def pandoc(text: str, dest: Path, **variables):
    "Markdown to a page; any warning is an error."
    import pypandoc
    dest.parent.mkdir(parents=True, exist_ok=True)
    wanted = "markdown-yaml_metadata_block-implicit_figures+lists_without_preceding_blankline+autolink_bare_uris"
    cmd = [pypandoc.get_pandoc_path(), "-f", wanted, "-t", "html5", "--standalone", "--mathml", "--wrap=preserve", "--fail-if-warnings",
           "--syntax-highlighting=pygments", "--toc", "--toc-depth=3", f"--template={here / 'page.html'}", "-o", str(dest)]
    for key, value in variables.items(): cmd += ["-V" if key in ("navigation", "up") else "-M", f"{key}={value}"]
    done = subprocess.run(cmd, input=text, text=True, capture_output=True)
    if done.returncode or done.stderr.strip(): raise DocsError(f"{dest.name}: {done.stderr.strip() or 'pandoc failed'}")


def by_pandoc():
    "Render every page of _proc that the sidebar lists."
    shutil.rmtree(docs, ignore_errors=True)
    pages = {p.relative_to(proc).as_posix(): read_page(p) for p in [*proc.glob("*.md"), *proc.rglob("*.ipynb")]}
    titles = {k: (html_name(Path(k)).as_posix(), title) for k, (title, _) in pages.items()}
    contents = yaml.safe_load((proc / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    for key, (title, text) in pages.items():
        name = titles[key][0]
        pandoc(text, docs / name, title=title, site=get_config().title, up="../" * name.count("/"),
               navigation=navigation(contents, titles, name))
    for path in proc.rglob("*"):
        if path.suffix in assets: copy(path, docs / path.relative_to(proc))
    copy(here / "page.css", docs / "page.css")


def copy(source: Path, dest: Path):
    dest.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, dest)


# Checking

class Page(HTMLParser):
    "The anchors a page offers and the links it makes."
    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ("id", "name") and value: self.ids.add(value)
            if key in ("href", "src") and value: self.links.append(value)


def broken_links() -> list[str]:
    "Local links of the rendered pages that lead nowhere."
    pages = {p.resolve(): Page(p.read_text()) for p in docs.rglob("*.html")}
    bad = []
    for path, page in pages.items():
        for target in page.links:
            if re.match(r"[a-z][a-z+.-]*:|//", target, flags=re.I): continue
            name, _, anchor = target.partition("#")
            dest = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
            lost = not dest.exists() or (anchor and dest in pages and unquote(anchor) not in pages[dest].ids)
            if lost: bad.append(f"{path.relative_to(docs.resolve())}: broken link {target}")
    return sorted(set(bad))


def main():
    os.chdir(root)
    try:
        prepare()
        by_quarto() if shutil.which("quarto") else by_pandoc()
        if bad := broken_links(): raise DocsError("\n".join(bad))
    except DocsError as e:
        print(f"docs: {e}", file=sys.stderr)
        return 1
    print(f"{sum(1 for _ in docs.rglob('*.html'))} pages in {docs.name}/, no warnings, no broken links")


if __name__ == "__main__": sys.exit(main())
