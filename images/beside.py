"""Lays our packages over a vendor's image, which keeps its own. Runs during the build of images/cuda.

    beside.py trainer|inference FOLDER            makes an environment over the vendor's in FOLDER, installs what lacks
    beside.py trainer|inference FOLDER --check    says what an image for GPUs must have and this one has not

What the vendor built for each other (torch, its kernels, numpy, SGLang) is never replaced: pip is held to the versions
that are there. Anything else that is too old for us is installed in FOLDER, where only our processes see it. Needs the
standard library and the vendor's pip.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from install import lines, name_of

VENDORS = (
    *(
        "torch",
        "torch-*",
        "torchvision",
        "torchaudio",
        "torchao",
        "triton",
        "pytorch-triton",
        "numpy",
        "apex",
        "xformers",
    ),
    *("transformer-engine*", "flash-attn*", "flashinfer*", "nvidia-*", "cuda-*", "sglang*", "sgl-*", "deep-*", "cupy*"),
)
NEEDED = {
    "trainer": ("torch", "transformer_engine", "megatron.core", "transformers"),
    "inference": ("torch", "sglang", "sgl_kernel", "flashinfer", "torch_memory_saver", "pynvml"),
}
OLDEST = (3, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What pip is to be told."""

    install: tuple[str, ...]  # NAME==VERSION, what lacks or is too old
    hold: tuple[str, ...]  # NAME==VERSION, constraints


def plan(wanted: Sequence[str], pins: Mapping[str, str], have: Mapping[str, str]) -> Plan:
    """`wanted`: requirements of ours; `pins`: our versions by name; `have`: the vendor's versions by name. Pure."""
    requirement = requirement_class()
    lacking = []
    for text in wanted:
        need = requirement(text)
        name = name_of(need.name)
        if name not in have or not need.specifier.contains(have[name], prereleases=True):
            lacking.append(name)
    unpinned = [name for name in lacking if name not in pins]
    if unpinned:
        raise SystemExit(f"beside: constraints/python.txt has no version of {', '.join(unpinned)}")
    fixed = {name: version for name, version in have.items() if any(fnmatch.fnmatch(name, one) for one in VENDORS)}
    clash = sorted(set(lacking) & fixed.keys())
    if clash:
        words = ", ".join(f"{name} {have[name]}" for name in clash)
        raise SystemExit(f"beside: this image has {words}, which is not what Twinpod needs: {', '.join(wanted)}")
    ours = {name: version for name, version in pins.items() if name not in have}
    return Plan(
        install=tuple(f"{name}=={pins[name]}" for name in lacking),
        hold=tuple(f"{name}=={version}" for name, version in sorted((ours | fixed).items())),
    )


def requirement_class() -> type:
    """packaging's, or the one inside pip."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    return Requirement


def wanted_by(half: str, folder: Path) -> list[str]:
    """Our requirements: the project's own, and those of the half's list as the project words them."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    worded = {name_of(text): text for extra in project["optional-dependencies"].values() for text in extra}
    listed = [worded.get(name_of(line), line) for line in lines(folder / f"{half}.txt")]
    return [*project["dependencies"], *listed]


def pins_of(paths: Iterable[Path]) -> dict[str, str]:
    """NAME==VERSION of the constraints, by canonical name."""
    found = {}
    for path in paths:
        for line in lines(path):
            name, _, version = line.partition("==")
            found[name_of(name)] = version.strip()
    return found


def vendors_python() -> tuple[dict[str, str], list[str]]:
    """The packages of the Python that runs this, and the folders that they are in."""
    import site
    from importlib.metadata import distributions

    have: dict[str, str] = {}
    for one in distributions():
        have.setdefault(name_of(one.metadata["Name"]), one.version)
    return have, [folder for folder in site.getsitepackages() if Path(folder).is_dir()]


def make_layer(folder: Path, sites: Sequence[str]) -> Path:
    """An environment without pip that has the vendor's folders behind its own; returns its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    (own,) = folder.glob("lib/python3*/site-packages")
    (own / "vendor.pth").write_text("".join(f"import site; site.addsitedir({json.dumps(one)})\n" for one in sites))
    return folder / "bin" / "python"


def install(half: str, folder: Path) -> None:
    """The verb without --check."""
    if sys.version_info[:2] < OLDEST:
        raise SystemExit(f"beside: Python {sys.version.split()[0]} is older than 3.11; choose a newer image as BASE")
    here = Path(__file__).parent
    have, sites = vendors_python()
    made = plan(wanted_by(half, here), pins_of([here / "python.txt"]), have)
    python = make_layer(folder, sites)
    if made.install:
        held = here / "hold.txt"
        held.write_text("\n".join(made.hold) + "\n")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-input",
            "--python",
            str(python),
            "install",
        ]
        subprocess.run([*pip, "--constraint", str(held), *made.install], check=True)
    print(f"beside: {len(made.install)} packages were lacking: {', '.join(made.install) or 'none'}")


def check(half: str) -> None:
    """The verb with --check, in the layer's Python."""
    lacking = [name for name in NEEDED[half] if not found(name)]
    if lacking:
        base = "NVIDIA's PyTorch image" if half == "trainer" else "SGLang's image"
        raise SystemExit(f"beside: the image lacks {', '.join(lacking)}; BASE must be {base}")
    if half == "inference":
        wanted = pins_of([Path(__file__).parent / "sglang.txt"])["sglang"]
        from importlib.metadata import version

        if version("sglang") != wanted:
            raise SystemExit(f"beside: the image has sglang {version('sglang')}, Twinpod is written against {wanted}")
    print(f"beside: the image has {', '.join(NEEDED[half])}")


def found(module: str) -> bool:
    """Whether a module can be imported, as far as looking for it tells; a build has no GPU to import all on."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("half", choices=sorted(NEEDED))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    check(asked.half) if asked.check else install(asked.half, asked.folder)
