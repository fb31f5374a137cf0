"""The committed CRDs are current, structural and bounded, and say what the models say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twinpod.api import crd
from twinpod.api.load import RULES
from twinpod.api.types import KINDS

Schema = dict[str, Any]


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def test_committed_files_are_current() -> None:
    assert crd.main(["--check"]) == 0


def test_a_stale_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(["--folder", str(tmp_path)]) == 0
    (tmp_path / "rljobs.yaml").write_text("old", encoding="utf-8")
    assert crd.main(["--check", "--folder", str(tmp_path)]) == 1
    assert "rljobs.yaml: is not current; run `python -m twinpod.api.crd`" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_below_200_kb(kind: str) -> None:
    assert len(crd.text_of(kind).encode()) < 200_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_structural_and_bounded(kind: str) -> None:
    for path, node in nodes(crd.schema(kind)):
        if path == "metadata" or path.startswith("metadata."):
            continue
        assert not {"$ref", "oneOf", "allOf", "nullable", "title"} & node.keys(), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert node.get("type") != "number", f"{path}: a float"
        if path.startswith("spec"):
            if node.get("type") == "string":
                assert "maxLength" in node or "enum" in node, f"{path}: unbounded text"
            if node.get("type") == "array":
                assert "maxItems" in node, f"{path}: unbounded list"
            if node.get("type") == "integer":
                assert {"minimum", "maximum"} <= node.keys(), f"{path}: unbounded number"


@pytest.mark.parametrize("kind", KINDS)
def test_kubectl_explain_tells_every_field_of_spec_and_status_and_its_default(kind: str) -> None:
    """Parts of the Pod API below podPatch tell themselves."""
    for path, node in nodes(crd.schema(kind)):
        if not path.startswith(("spec", "status")) or "podPatch." in path or path.endswith(("[]", "{}")):
            continue
        assert len(node.get("description", "")) > 8, path
        if path.startswith("spec") and isinstance(node.get("default"), str | int):
            assert "Default: " in node["description"], path


def test_a_default_is_told_as_it_is_written() -> None:
    spec = crd.schema("RLJob")["properties"]["spec"]["properties"]
    storage, algorithm = spec["storage"]["properties"], spec["algorithm"]["properties"]
    assert storage["snapshots"]["properties"]["size"]["description"].endswith(" Default: 1Gi.")
    assert algorithm["tau"]["description"].endswith(' Default: "0.1".')
    assert algorithm["betas"]["description"].endswith(' Default: "0.9", "0.95".')
    assert algorithm["eps"]["description"].endswith(' Default: "1e-8".')
    assert spec["suspend"]["description"].endswith(" Default: false.")
    assert "Default" not in algorithm["learningRate"]["description"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_with_a_default_has_it_in_full(kind: str) -> None:
    """The API server checks rules against defaults as they stand, without filling in the fields below."""
    for path, node in nodes(crd.schema(kind)):
        if isinstance(node.get("default"), dict) and "properties" in node:
            given = {name for name, child in node["properties"].items() if "default" in child}
            assert set(node["default"]) == given, path


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_stands_at_its_node_and_points_at_a_field_that_exists(kind: str) -> None:
    schema = crd.schema(kind)
    by_path = dict(nodes(schema))
    for rule in (rule for rule in RULES[kind] if rule.cel):
        assert rule.cel in [entry["rule"] for entry in by_path[rule.path]["x-kubernetes-validations"]]
        assert rule.where in by_path, rule.where
        assert "\n" not in rule.message
        assert "oldSelf" in rule.cel or not rule.transition


def test_columns_names_and_subresources() -> None:
    job, pool = crd.definition("RLJob")["spec"], crd.definition("RolloutPool")["spec"]
    columns = job["versions"][0]["additionalPrinterColumns"]
    assert [column["name"] for column in columns if not column.get("priority")] == [
        "Ready", "Reason", "Iteration", "Reward", "Pods", "GPUs", "Restarts", "Age",
    ]  # fmt: skip
    assert (job["names"]["shortNames"], pool["names"]["shortNames"]) == (["rlj"], ["rp"])
    assert job["names"]["categories"] == pool["names"]["categories"] == ["rl"]
    assert pool["versions"][0]["subresources"]["scale"]["labelSelectorPath"] == ".status.selector"
    assert "scale" not in job["versions"][0]["subresources"]


def test_a_default_that_a_field_gives_to_an_object_reaches_the_cluster() -> None:
    master = crd.schema("RLJob")["properties"]["spec"]["properties"]["master"]
    wanted = {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {}}
    assert master["properties"]["resources"]["default"] == wanted
    assert master["default"]["resources"] == wanted
