"""What was seen, and what we wrote ourselves: the newest of both is what is read."""

from __future__ import annotations

from typing import Any

import pytest

from twinpod.api import names
from twinpod_operator import cache
from twinpod_operator.cache import KindCache
from twinpod_operator.nouns import ChildView, Key
from twinpod_operator.reading import child_view, pod_view, unix
from twinpod_operator.world import World


def pod(name: str = "x-master-a1", version: int = 1, uid: str = "p1", owner: str = "j1", **more: Any) -> dict[str, Any]:
    labels = {names.LABEL_JOB_UID: owner, names.LABEL_ROLE: "master"}
    metadata = {"namespace": "n", "name": name, "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"kind": "Pod", "metadata": metadata, "status": {"phase": "Pending"}} | more


def config(version: int, owned: str, uid: str = "c1") -> dict[str, Any]:
    managed = [{"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": {"f:data": {"f:a": {}}}}]
    return {
        "kind": "ConfigMap",
        "metadata": {
            "namespace": "n",
            "name": "x-job",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {names.LABEL_JOB_UID: "j1"},
            "annotations": {names.ANNOTATION_REVISION: "r1"},
            "managedFields": managed,
        },
        "data": {"a": owned},
    }


def job(version: int = 1, name: str = "x", uid: str = "j1", kind: str = "RLJob", **metadata: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {"namespace": "n", "name": name, "uid": uid, "resourceVersion": str(version), "generation": 1}
        | metadata,
        "spec": {"job": "x"} if kind == "RolloutPool" else {},
    }


class Scene:
    def __init__(self) -> None:
        self.woken: list[str] = []
        self.pods = cache.pods(self.woken.append)
        self.children: KindCache[ChildView] = cache.children(self.woken.append)

    def names(self) -> list[str]:
        return [view.name for view in self.pods.of("j1")]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_pod_wakes_its_owner_once(scene: Scene) -> None:
    scene.pods.put(pod())
    scene.pods.put(pod(version=2))
    assert scene.woken == ["j1"], "the second one says nothing new"
    scene.pods.put(pod(version=3, status={"phase": "Running"}))
    assert scene.woken == ["j1", "j1"]


def test_older_news_does_not_undo_our_own_write(scene: Scene) -> None:
    scene.pods.own(pod(version=10, status={"phase": "Running"}))
    scene.pods.put(pod(version=9))
    assert scene.pods.of("j1")[0].phase == "Running"


def test_a_list_that_is_older_than_our_create_does_not_remove_what_we_made(scene: Scene) -> None:
    scene.pods.put(pod("old", version=3, uid="p0"))
    scene.pods.own(pod(version=10))
    scene.pods.keep_only(set(), version=5)
    assert scene.names() == ["x-master-a1"]


def test_what_we_deleted_stays_deleted_whatever_late_news_say(scene: Scene) -> None:
    scene.pods.put(pod())
    scene.pods.gone("n", "x-master-a1", "p1")
    scene.pods.put(pod(version=2))
    assert scene.names() == []
    scene.pods.remove(pod(version=3))
    scene.pods.put(pod(version=4, uid="p2"))
    assert scene.names() == ["x-master-a1"], "another one of that name"


def test_an_answer_that_news_of_the_end_overtook_brings_nothing_back(scene: Scene) -> None:
    scene.pods.put(pod())
    scene.pods.remove(pod(version=7))
    scene.pods.own(pod(version=6, status={"phase": "Running"}))
    assert scene.names() == []
    scene.pods.own(pod(version=8))
    assert scene.names() == ["x-master-a1"], "it had lost the label that we select by, and has it again"


def test_news_of_an_earlier_namesake_s_end_does_not_touch_the_next_one(scene: Scene) -> None:
    scene.pods.put(pod(version=5, uid="p2"))
    scene.pods.remove(pod(version=6, uid="p1"))
    assert scene.names() == ["x-master-a1"]


def test_a_namesake_of_another_owner_moves(scene: Scene) -> None:
    scene.pods.put(pod(version=1, uid="p1", owner="j0"))
    scene.pods.put(pod(version=2, uid="p2", owner="j1"))
    assert scene.pods.of("j0") == []
    assert scene.names() == ["x-master-a1"]
    assert (scene.pods.owner_of("p1"), scene.pods.owner_of("p2")) == ("", "j1")


def test_what_our_apply_led_to_is_remembered_until_somebody_applies_something_else(scene: Scene) -> None:
    scene.children.own(config(2, "mutated by a policy"))
    mine = scene.children.of("j1")[0]
    assert mine.applied == mine.digest
    scene.children.put(config(3, "edited by hand"))
    edited = scene.children.of("j1")[0]
    assert edited.applied == mine.digest
    assert edited.digest != mine.digest
    scene.children.put(config(4, "mutated by a policy", uid="c2"))
    assert scene.children.of("j1")[0].applied == "", "another object"


class WorldScene:
    def __init__(self) -> None:
        self.woken: list[tuple[str, bool]] = []
        self.now = 0.0
        self.world = World(self.wake, lambda: self.now)

    def wake(self, key: Key, *, urgent: bool = False) -> None:
        self.woken.append((key.name, urgent))

    def take(self) -> list[tuple[str, bool]]:
        woken, self.woken = self.woken, []
        return woken


def test_a_change_by_a_person_is_urgent_and_our_own_write_wakes_nobody() -> None:
    scene = WorldScene()
    scene.world.put(job(1))
    assert scene.take() == [("x", True)]
    scene.world.put(job(2), own=True)
    scene.world.put(job(2))
    assert scene.take() == []
    scene.world.put(job(3))
    assert scene.take() == [("x", False)]
    scene.world.put(job(4, generation=2))
    assert scene.take() == [("x", True)]
    scene.world.put(job(5, generation=2, deletionTimestamp="2026-01-01T00:00:00Z"))
    assert scene.take() == [("x", True)]


def test_a_job_wakes_the_pools_that_serve_it_also_when_it_goes() -> None:
    scene = WorldScene()
    scene.world.put(job(1, "p", "u-p", "RolloutPool"))
    scene.take()
    scene.world.put(job(2))
    assert scene.take() == [("x", True), ("p", False)]
    scene.world.remove(job(2))
    assert scene.take() == [("x", True), ("p", False)]


def test_a_late_answer_brings_no_resource_back_that_is_gone() -> None:
    scene = WorldScene()
    scene.world.put(job(1))
    scene.world.remove(job(3))
    scene.world.put(job(2), own=True)
    assert list(scene.world) == []
    scene.world.put(job(4, uid="j2"))
    assert [key.name for key in scene.world] == ["x"], "the next one of that name"


def test_a_child_of_a_job_that_is_not_known_yet_is_there_when_the_job_comes() -> None:
    scene = WorldScene()
    scene.world.pods.put(pod())
    assert scene.take() == []
    scene.world.put(job(1))
    assert [view.name for view in scene.world.pods.of("j1")] == ["x-master-a1"]


def test_what_went_while_nobody_watched_is_gone_after_a_list() -> None:
    scene = WorldScene()
    scene.world.put(job(1))
    scene.world.put(job(9, "later", "j2"))
    scene.world.keep_only("RLJob", set(), version=5)
    assert [key.name for key in scene.world] == ["later"]


def test_an_event_about_a_pod_wakes_its_job() -> None:
    scene = WorldScene()
    scene.world.put(job(1))
    scene.world.pods.put(pod())
    scene.take()
    event = {
        "type": "Warning",
        "reason": "FailedMount",
        "message": "no such secret",
        "involvedObject": {"kind": "Pod", "name": "x-master-a1", "uid": "p1"},
    }
    scene.world.events.put(event)
    scene.world.events.put(event)
    assert scene.take() == [("x", False)]


def test_a_master_s_last_word_is_read_for_a_minute_after_its_end() -> None:
    scene = WorldScene()
    scene.world.put(job(1))
    ended = {"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T00:00:00Z"}}
    over = {"phase": "Succeeded", "containerStatuses": [{"name": "master", "state": ended}]}
    scene.world.pods.put(pod(status={"phase": "Running"}))
    assert list(scene.world.telling()) == ["j1"]
    scene.world.pods.put(pod(version=2, status=over))
    scene.now = unix("2026-01-01T00:00:59Z")
    assert list(scene.world.telling()) == ["j1"]
    scene.now = unix("2026-01-01T00:01:01Z")
    assert scene.world.telling() == {}


def waiting(uid: str, owner: str, created: int, **more: Any) -> dict[str, Any]:
    raw = pod(f"{owner}-master-a1", uid=uid, owner=owner, spec={"schedulingGates": [{"name": names.GANG_GATE}]} | more)
    raw["metadata"]["creationTimestamp"] = f"2026-01-01T00:00:0{created}Z"
    raw["metadata"]["labels"] |= {names.LABEL_DEVICE_CLASS: "gpu", names.LABEL_ATTEMPT: "1"}
    return raw


def test_the_turn_goes_on_when_its_job_is_placed_or_gone_and_wakes_the_next() -> None:
    scene = WorldScene()
    scene.world.pods.put(waiting("p2", "j2", 2))  # seen before its job
    scene.world.put(job(1, "b", "j2"))
    assert scene.world.turn("gpu") == scene.world.key_of("j2")
    scene.world.put(job(2, "a", "j1"))
    scene.world.pods.put(waiting("p1", "j1", 1))
    assert scene.world.turn("gpu") == scene.world.key_of("j1"), "who has waited longest"
    scene.take()
    placed = waiting("p1", "j1", 1, schedulingGates=[], nodeName="n")
    placed["metadata"]["resourceVersion"] = "9"
    scene.world.pods.put(placed)
    assert ("b", False) in scene.take()
    assert scene.world.turn("gpu") == scene.world.key_of("j2")
    scene.world.remove(job(10, "b", "j2"))
    assert scene.world.turn("gpu") is None


@pytest.mark.parametrize("text", ["abc", "1e400", "-1", "", "9" * 5000, "nan"])
def test_what_people_write_into_our_annotations_breaks_nothing(text: str) -> None:
    notes = {names.ANNOTATION_RENEW_AT: text, names.ANNOTATION_FAILURES: text}
    metadata = {"name": "x-tls", "namespace": "n", "uid": "u", "resourceVersion": "1", "annotations": notes}
    assert child_view({"kind": "Secret", "metadata": metadata}).renew_at == 0.0
    assert pod_view({"kind": "Pod", "metadata": metadata}).failures == 0
