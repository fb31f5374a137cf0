"""What images install, without building them: lists, constraints and Dockerfiles agree with the project."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import SourceFileLoader
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import pytest
from packaging.utils import canonicalize_name

TOP = Path(__file__).resolve().parents[2]
IMAGES = TOP / "images"
PROCESSES = ("base", "torch", "master", "operator", "trainer", "inference", "etcd", "cuda")
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]


def loaded(name: str, path: Path) -> ModuleType:
    """A script as a module; it lies outside the packages, and may have no suffix."""
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


install = loaded("install", IMAGES / "install.py")
beside = loaded("images_beside", IMAGES / "beside.py")
project = loaded("images_project", IMAGES / "project.py")
images = loaded("tools_images", TOP / "tools" / "images")


def listed(*images: str) -> set[str]:
    return {install.name_of(line) for image in images for line in install.lines(IMAGES / image / "packages.txt")}


def wanted(extra: str | None = None) -> set[str]:
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {install.name_of(line) for line in lines}


def pins(path: Path) -> dict[str, str]:
    pairs = (line.split("==") for line in install.lines(path))
    return {str(canonicalize_name(name)): version for name, version in pairs}


PLAIN = pins(TOP / "constraints/python.txt")


@pytest.mark.parametrize(
    ("lists", "project_names"),
    [
        (("base",), wanted()),
        (("master",), wanted("master")),
        (("operator",), wanted("operator")),
        (("torch", "trainer"), wanted("trainer")),
    ],
    ids=["base", "master", "operator", "trainer"],
)
def test_an_images_list_is_the_projects_list(lists: tuple[str, ...], project_names: set[str]) -> None:
    assert listed(*lists) == project_names


def test_the_engines_list_holds_the_projects_and_what_sglang_imports_at_start() -> None:
    text = (TOP / "constraints/sglang.txt").read_text()
    plain = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    named = {install.name_of(name) for name in plain.partition("constraints/python.txt:")[2].rstrip(".").split(",")}
    assert listed("torch", "inference") >= (named | wanted("inference")) - {"torch", "transformers"}


@pytest.mark.parametrize("image", ["base", "torch", "master", "operator", "trainer", "inference"])
def test_every_listed_package_is_pinned(image: str) -> None:
    assert listed(image) <= PLAIN.keys()


@pytest.mark.parametrize("image", ["base", "master", "operator"])
def test_images_without_torch_need_none(image: str) -> None:
    known = {install.name_of(one.metadata["Name"]): one for one in distributions()}
    site = Path(importlib.util.find_spec("pip").origin).parents[1]  # type: ignore[union-attr, arg-type]
    needed = set(install.closure(known, sorted(listed(image)), site))
    assert not needed & {"torch", "sglang", "transformers", "megatron-core", "triton"}


PINS = {"httpx": "0.28.1", "pydantic": "2.14.3", "protobuf": "7.36.2", "grpcio": "1.85.1", "torch": "2.14.1"}


class TestBeside:
    """What is laid over a vendor's image."""

    @pytest.mark.parametrize(
        ("have", "installed"),
        [
            ({}, ["httpx==0.28.1", "protobuf==7.36.2"]),
            ({"httpx": "0.28.0", "protobuf": "5.29.4"}, ["protobuf==7.36.2"]),
            ({"httpx": "0.29", "protobuf": "7.1"}, []),
            ({"httpx": "0.28.0rc1", "protobuf": "7.1"}, ["httpx==0.28.1"]),
        ],
    )
    def test_what_lacks_or_is_too_old_is_installed_as_pinned(self, have: dict[str, str], installed: list[str]) -> None:
        made = beside.plan(["httpx>=0.28", "protobuf>=7,<8"], PINS, {"torch": "2.9.0a0+50eac8.nv25.10", **have})
        assert list(made.install) == installed

    def test_what_the_vendor_built_together_is_held_and_the_rest_may_move(self) -> None:
        have = {"torch": "2.9.0a0+50eac8.nv25.10", "numpy": "1.26.4", "pydantic": "2.9", "transformer-engine": "2.8"}
        made = beside.plan(["pydantic>=2.11"], PINS, have)
        assert {"torch==2.9.0a0+50eac8.nv25.10", "numpy==1.26.4", "transformer-engine==2.8"} <= set(made.hold)
        assert {"grpcio==1.85.1", "httpx==0.28.1"} <= set(made.hold)  # what lacks there comes in our versions
        assert not [line for line in made.hold if line.startswith(("pydantic", "torch==2.14"))]

    def test_a_vendors_package_that_is_too_old_ends_the_build(self) -> None:
        with pytest.raises(SystemExit, match=r"this image has numpy 1\.21, which is not what Twinpod needs"):
            beside.plan(["numpy>=1.26"], {"numpy": "2.3.5"}, {"numpy": "1.21"})

    @pytest.mark.parametrize("half", ["trainer", "inference"])
    def test_no_torch_is_asked_for_and_everything_has_a_pin(self, half: str, tmp_path: Path) -> None:
        for source in ("pyproject.toml", f"images/cuda/{half}.txt"):
            shutil.copy(TOP / source, tmp_path)
        wanted_there = beside.wanted_by(half, tmp_path)
        names = {install.name_of(text) for text in wanted_there}
        assert not names & {"torch", "sglang", "triton"}
        assert names >= wanted()
        assert names <= PLAIN.keys()
        assert half == "inference" or "megatron-core==0.16.1" in wanted_there

    def test_a_layer_sees_the_vendors_packages_and_the_vendor_not_the_layers(self, tmp_path: Path) -> None:
        vendor = tmp_path / "vendor"
        (vendor / "linked").mkdir(parents=True)
        (vendor / "there.py").write_text("")
        (vendor / "linked" / "editable.py").write_text("")
        (vendor / "editable.pth").write_text(f"{vendor / 'linked'}\n")  # as SGLang's image installs SGLang
        python = beside.make_layer(tmp_path / "layer", [str(vendor)])
        subprocess.run([python, "-c", "import there, editable"], check=True)

    @pytest.mark.parametrize(("half", "base"), [("trainer", "NVIDIA's PyTorch image"), ("inference", "SGLang's image")])
    def test_an_image_that_lacks_what_gpus_need_ends_the_build(self, half: str, base: str) -> None:
        with pytest.raises(SystemExit, match=f"lacks .*(transformer_engine|sgl_kernel).*; BASE must be {base}"):
            beside.check(half)


class TestInstall:
    @pytest.mark.parametrize(
        ("requirement", "name"),
        [
            ("Torch==2", "torch"),
            ("PyYAML", "pyyaml"),
            ("megatron_core>=1 ; python_version > '3'", "megatron-core"),
            ("cuda-toolkit[cublas,cudart]==13", "cuda-toolkit"),
            ("flashinfer_python (==1)", "flashinfer-python"),
        ],
    )
    def test_a_requirement_is_known_by_its_canonical_name(self, requirement: str, name: str) -> None:
        assert install.name_of(requirement) == name

    def test_a_pattern_that_matches_nothing_stops_the_build(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(install, "SITE", tmp_path)
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "a.so").write_bytes(b"x")
        install.leave_out(["lib/*.so"])
        assert not list((tmp_path / "lib").iterdir())
        with pytest.raises(SystemExit, match="nothing in"):
            install.leave_out(["lib/*.so"])

    def test_entry_points_are_the_projects(self) -> None:
        text = project.entry_points(PROJECT)
        assert "[sglang.srt.plugins]\ntwinpod = twinpod.inference.plugins:register" in text
        assert "[console_scripts]\ntwinpod = twinpod.cli.__main__:main" in text


@pytest.mark.parametrize("process", PROCESSES)
class TestDockerfiles:
    def test_it_takes_a_base(self, process: str) -> None:
        text = (IMAGES / process / "Dockerfile").read_text()
        assert re.search(r"^ARG BASE\b", text, re.MULTILINE)

    def test_it_copies_only_what_is_there_and_in_the_builds_context(self, process: str) -> None:
        text = (IMAGES / process / "Dockerfile").read_text().replace("\\\n", " ")
        allowed = {
            line[1:].split("/")[0] for line in (TOP / ".dockerignore").read_text().splitlines() if line[:1] == "!"
        }
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
            for source in line.split()[:-1]:
                assert (TOP / source).exists(), source
                assert source.split("/")[0] in allowed, source

    def test_what_it_copies_is_in_its_tag(self, process: str) -> None:
        """A file that is copied but not hashed would change an image without a new tag."""
        if process == "cuda":
            return  # docker builds it, with the tag that a person gives
        inputs = next(image.inputs for image in images.IMAGES if image.name == process)
        text = (IMAGES / process / "Dockerfile").read_text().replace("\\\n", " ")
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
            for source in line.split()[:-1]:
                assert any(Path(source).is_relative_to(path) for path in inputs), source

    def test_it_runs_as_the_user_that_pods_demand(self, process: str) -> None:
        lines = (IMAGES / process / "Dockerfile").read_text().splitlines()
        users = [line for line in lines if line.startswith("USER")]
        assert process == "etcd" or users[-1] == "USER 1000:1000"


def test_the_references_are_printed_as_json_with_a_tag_each() -> None:
    done = subprocess.run(
        [sys.executable, TOP / "tools/images", "list", "--registry", "r:1"], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found.keys() == {f"twinpod/{name}" for name in ("operator", "etcd", "master", "trainer", "inference")}
    assert all(re.fullmatch(rf"r:1/{name}:[0-9a-f]{{12}}", reference) for name, reference in found.items())


def listed_with(base: str) -> str:
    command = [sys.executable, TOP / "tools/images", "list"]
    environment = {**os.environ, "TWINPOD_BASE": base}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_another_base_image_gives_other_tags() -> None:
    assert listed_with("python:3.11-slim") != listed_with("")


class Registry(BaseHTTPRequestHandler):
    """Has etcd, wants a login for the trainer, knows nothing else."""

    def do_HEAD(self) -> None:
        self.send_response(200 if "/etcd/" in self.path else 401 if "/trainer/" in self.path else 404)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Not on the terminal."""


def missing(registry: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOP / "tools/images", "missing", "--registry", registry]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_what_a_registry_lacks_is_told_a_line_each() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = missing(f"127.0.0.1:{server.server_port}")
        server.shutdown()
    assert (done.returncode, done.stdout.split()) == (0, ["master", "operator", "trainer", "inference"])


def test_a_registry_that_is_not_there_is_told_before_anything_is_built() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        done = missing(f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 1
    assert "does not answer as a registry" in done.stderr
