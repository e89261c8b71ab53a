"Build smoldiff from settings.ini, which nbdev reads too, so that names, versions and requirements stand in one place."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(root / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
lib, path = cfg["lib_name"], root / cfg["lib_path"]


def lines(key): return cfg.get(key, "").split("\n")[1:]  # one requirement a line, below the key


def package_data():
    "The heads that are shipped: weights, configuration and model cards."
    kinds = {".safetensors", ".json", ".jsonl", ".md", ".txt", ".gz"}
    return [p.relative_to(path).as_posix() for p in path.rglob("*") if p.suffix in kinds and "__pycache__" not in p.parts]


setup(
    name=lib,
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8") if (root / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
    ],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[lib, f"{lib}.*"]),
    package_data={lib: package_data()},
    install_requires=lines("requirements"),
    extras_require={"dev": lines("dev_requirements"), "ar": lines("ar_requirements")},
    entry_points={"console_scripts": [cfg["console_scripts"]], "nbdev": [f"{lib}={lib}._modidx:d"]},
    zip_safe=False,
)
