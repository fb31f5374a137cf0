"""Makes Twinpod's own packages importable in an image: metadata with entry points, and compiled files.

    project.py PYPROJECT [--from FOLDER] PACKAGE...

The packages were copied into site-packages before, or lie in FOLDER and are copied there now. A wheel would need a
build back end in every image; SGLang only looks for the entry points, and these come from pyproject.toml. Compiled
files are bound to their source by its hash, so that they stay valid whatever times a layer gives to files: with a
read-only root nothing could be compiled later.
"""

from __future__ import annotations

import argparse
import compileall
import py_compile
import shutil
import sysconfig
import tomllib
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))
SCRIPTS = Path(sysconfig.get_path("scripts"))


def main(pyproject: Path, source: Path | None, packages: list[str]) -> None:
    """Copies `packages` from `source`, writes the metadata and compiles them."""
    for package in packages if source is not None else ():
        shutil.copytree(source / package, SITE / package, dirs_exist_ok=True)
    project = tomllib.loads(pyproject.read_text())["project"]
    folder = SITE / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (folder / "entry_points.txt").write_text(entry_points(project))
    for name, target in project.get("scripts", {}).items():
        write_script(name, target)
    for package in packages:
        if not compileall.compile_dir(
            SITE / package, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        ):
            raise SystemExit(f"project: {package} does not compile")


def entry_points(project: dict[str, dict[str, dict[str, str]]]) -> str:
    """Text of entry_points.txt."""
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    parts = (f"[{group}]\n" + "".join(f"{name} = {to}\n" for name, to in one.items()) for group, one in groups.items())
    return "\n".join(parts)


def write_script(name: str, target: str) -> None:
    """A console script, as pip would write it."""
    module, _, function = target.partition(":")
    path = SCRIPTS / name
    path.write_text(f"#!{SCRIPTS}/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    path.chmod(0o755)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("packages", nargs="+")
    asked = parser.parse_args()
    main(asked.pyproject, asked.source, asked.packages)
