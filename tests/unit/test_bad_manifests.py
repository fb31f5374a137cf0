"""What `twinpod validate` says of bad manifests: the Python side of the table that the cluster tests apply."""

from __future__ import annotations

import json

import pytest
from tests.cluster.bad_manifests import BAD, CHANGED, GOOD, Bad

from twinpod.api.load import ManifestError, load_resource


def test_the_table_is_long_enough_and_names_every_row_apart() -> None:
    assert len(BAD) >= 40
    assert len({(row.name, row.kubectl) for row in (*BAD, *CHANGED)}) == len(BAD) + len(CHANGED)


@pytest.mark.parametrize("kind", GOOD)
def test_the_manifests_that_rows_change_are_good(kind: str) -> None:
    assert load_resource(json.dumps(GOOD[kind])).kind == kind


@pytest.mark.parametrize("row", BAD, ids=lambda row: row.name)
def test_a_bad_manifest_gets_this_line(row: Bad) -> None:
    with pytest.raises(ManifestError) as caught:
        load_resource(json.dumps(row.manifest))
    assert caught.value.problems[0] == row.validate


@pytest.mark.parametrize("row", CHANGED, ids=lambda row: row.name)
def test_what_is_refused_as_a_change_is_good_by_itself(row: Bad) -> None:
    assert load_resource(json.dumps(row.manifest)).kind == row.kind
