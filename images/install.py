"""Installs third-party packages into an image's Python, as the constraints pin them. Runs during the image's build.

    install.py LIST [--constraints FILE]... [--without-dependencies FILE] [--leave-out FILE]

LIST names packages, one a line; what they need comes along. By default pip does it. Where the environment that
`make setup` made is mounted at /mnt/environment (tools/images does so), the very same files are copied from there, so
that seven gigabytes are neither downloaded nor unpacked twice. It says which way it took. `--leave-out` names globs of
files that a process on CPUs never opens. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

ENVIRONMENT = Path("/mnt/environment")
SITE = Path(sysconfig.get_path("purelib"))
SCRIPTS = Path(sysconfig.get_path("scripts"))


def main() -> None:
    """Reads the arguments, installs, takes away what is left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list", type=Path)
    parser.add_argument("--constraints", type=Path, action="append", default=[])
    parser.add_argument("--without-dependencies", type=Path, help="a list of NAME==VERSION, installed as it stands")
    parser.add_argument("--leave-out", type=Path, help="globs below site-packages, deleted at the end")
    asked = parser.parse_args()
    mounted = environment_site()
    if mounted is not None:
        loose = lines(asked.without_dependencies) if asked.without_dependencies else []
        copy_packages(mounted, lines(asked.list), [name_of(line) for line in loose])
    else:
        run_pip(asked.list, asked.constraints, asked.without_dependencies)
    if asked.leave_out:
        leave_out(lines(asked.leave_out))


def lines(path: Path) -> list[str]:
    """A list's lines without comments."""
    return [text for text in (line.split("#")[0].strip() for line in path.read_text().splitlines()) if text]


def name_of(requirement: str) -> str:
    """`Name[extra]>=1; marker` -> `name`, spelt as packages are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~;( ]", requirement.strip(), maxsplit=1)[0]).lower()


def environment_site() -> Path | None:
    """The mounted environment's packages; None when there is none or its Python is another one than ours."""
    site = ENVIRONMENT / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    return site if site.is_dir() else None


def copy_packages(site: Path, wanted: list[str], loose: list[str]) -> None:
    """Copies `wanted` with all they need, and `loose` alone, but for what this image has already."""
    have = {name_of(one.metadata["Name"]) for one in distributions(path=[str(SITE)])}
    known = {name_of(one.metadata["Name"]): one for one in distributions(path=[str(site)])}
    chosen = [name for name in closure(known, wanted, site) if name not in have]
    chosen += [name for name in loose if name not in {*have, *chosen}]
    missing = [name for name in chosen if name not in known]
    if missing:
        raise SystemExit(f"install: {ENVIRONMENT} lacks {', '.join(missing)}; run make setup")
    size = sum(copy_one(site, known[name]) for name in chosen)
    print(f"copied {len(chosen)} packages, {size / 2**20:.0f} MiB, from the environment of make setup")


def closure(known: dict[str, Distribution], wanted: list[str], site: Path) -> list[str]:
    """`wanted` and everything they require on this machine, extras included, in the order of their discovery."""
    sys.path.append(str(site))
    from packaging.requirements import Requirement  # needs nothing else; pip's own copy needs pip in some versions

    found: dict[tuple[str, str], None] = {}
    todo = [(Requirement(line), "") for line in wanted]
    while todo:
        requirement, asked_by = todo.pop(0)
        name = name_of(requirement.name)
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in found:
                continue
            found[name, extra] = None
            if name not in known:
                raise SystemExit(
                    f"install: {name}, needed by {asked_by or 'the list'}, is not in {site}; run make setup"
                )
            for text in known[name].requires or ():
                need = Requirement(text)
                if need.marker is None or need.marker.evaluate({"extra": extra}):
                    todo.append((need, name))
    return list(dict.fromkeys(name for name, _ in found))


def copy_one(site: Path, package: Distribution) -> int:
    """Copies a package's files by its record; returns the bytes. Times are kept, so that compiled files stay valid."""
    size = 0
    for entry in package.files or ():
        source = site / entry
        if ".." in entry.parts:
            if source.resolve().parent == (ENVIRONMENT / "bin").resolve():
                copy_script(source)
            continue
        target = SITE / entry
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            size += target.stat().st_size
    return size


def copy_script(source: Path) -> None:
    """Copies a console script; its first line names our interpreter."""
    if not source.is_file():
        return
    data, target = source.read_bytes(), SCRIPTS / source.name
    head, _, rest = data.partition(b"\n")
    if head.startswith(b"#!") and b"python" in head:
        data = b"#!" + str(SCRIPTS / "python").encode() + b"\n" + rest
    target.write_bytes(data)
    target.chmod(0o755)


def run_pip(wanted: Path, constraints: Iterable[Path], loose: Path | None) -> None:
    """Installs with pip into this Python, which may have no pip of its own."""
    pip = [*find_pip(), "--disable-pip-version-check", "--no-input", "--python", sys.executable, "install"]
    pinned = [text for path in constraints for text in ("--constraint", str(path))]
    print("no environment is mounted: pip installs")
    subprocess.run([*pip, *pinned, "--requirement", str(wanted)], check=True)
    if loose is not None:
        subprocess.run([*pip, "--no-deps", "--requirement", str(loose)], check=True)


def find_pip() -> list[str]:
    """Command that runs pip: the one of the base image's Python, or the mounted environment's."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    if subprocess.run([base, "-c", "import pip"], capture_output=True, check=False).returncode == 0:
        return [str(base), "-m", "pip"]
    for folder in ENVIRONMENT.glob("lib/python3*/site-packages/pip"):
        return [sys.executable, str(folder)]
    if importlib.util.find_spec("ensurepip"):
        subprocess.run([base, "-m", "venv", "/tmp/pip"], check=True)
        return ["/tmp/pip/bin/python", "-m", "pip"]
    raise SystemExit("install: the base image's Python has neither pip nor ensurepip; build with another BASE")


def leave_out(globs: list[str]) -> None:
    """Deletes what matches below site-packages. A glob that matches nothing is an error: the list has aged."""
    size = 0
    for pattern in globs:
        matches = list(matching(pattern))
        if not matches:
            raise SystemExit(f"install: nothing in {SITE} matches {pattern!r}; bring the list up to date")
        for path in matches:
            size += size_of(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"left out {size / 2**20:.0f} MiB that CPUs never use")


def matching(pattern: str) -> Iterator[Path]:
    """Files and folders below site-packages that match, longest first."""
    return iter(sorted(SITE.glob(pattern), key=lambda path: -len(path.parts)))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [Path(top, name) for top, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    return sum(one.lstat().st_size for one in files)


if __name__ == "__main__":
    main()
