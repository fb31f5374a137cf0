"""Small pure parts of the operator's machinery: status patches, order of actions, Secrets, settings, login, metrics."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from twinpod.api import names
from twinpod.errors import InputError
from twinpod_operator.actions import AT_ONCE, batches
from twinpod_operator.certificates import due, etcd_hosts, secret
from twinpod_operator.liveness import Metrics
from twinpod_operator.login import find_login
from twinpod_operator.nouns import Apply, Create, Delete, Emit, Finding, Key, SetFinalizers
from twinpod_operator.reconcile import REFUSED_S, Refusals, difference
from twinpod_operator.settings import from_environment

NEEDED = {
    "TWINPOD_MASTER_IMAGE": "m",
    "TWINPOD_TRAINER_IMAGE": "t",
    "TWINPOD_INFERENCE_IMAGE": "i",
    "TWINPOD_ETCD": "a:1,b:2",
}


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1, "b": 2}, {"a": 1}, {"b": None}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"c": 3}}),
        ({"a": [1]}, {"a": [1, 2]}, {"a": [1, 2]}),
        ({"a": {"b": 1}}, {"a": 1}, {"a": 1}),
        ({}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_a_status_patch_holds_what_differs(before: Any, after: Any, change: Any) -> None:
    assert difference(before, after) == change


def test_actions_keep_their_order_and_neighbours_go_together() -> None:
    apply, create = Apply(manifest={"n": 1}), Create(manifest={"n": 2})
    finalizers = SetFinalizers(finalizers=("f",))
    delete, emit = Delete(kind="Pod", name="a", uid="u"), Emit(type="Normal", reason="r", message="m")
    plan = (finalizers, apply, apply, create, delete, finalizers, emit)
    assert list(batches(plan)) == [(finalizers,), (apply, apply), (create,), (delete,), (finalizers,), (emit,)]
    assert [len(batch) for batch in batches((create,) * (AT_ONCE + 1))] == [AT_ONCE, 1]


def test_refusals_are_tried_again_less_and_less_often_until_all_goes_well() -> None:
    refusals, key = Refusals(), Key(kind="RLJob", namespace="n", name="x")
    finding = Finding(reason="QuotaRefused", message="m")
    waits = [refusals.set(key, [finding, finding], now=0.0) for _ in range(8)]
    assert waits[: len(REFUSED_S)] == list(REFUSED_S)
    assert waits[-1] == REFUSED_S[-1]
    assert refusals.get(key) == (finding,)
    assert refusals.set(key, [], now=0.0) is None
    assert refusals.get(key) == ()
    assert refusals.set(key, [finding], now=0.0) == REFUSED_S[0]


def test_what_was_refused_waits_for_its_time_or_a_new_spec_however_often_it_is_woken() -> None:
    refusals, key = Refusals(), Key(kind="RLJob", namespace="n", name="x")
    finding, other = Finding(reason="QuotaRefused", message="m"), Finding(reason="NameTaken", message="n")
    pod, service = ("Create", "Pod", "p"), ("Apply", "Service", "s")
    refusals.set(key, [finding], [pod], generation=1, now=100.0)
    assert refusals.held(key, 1, 100.5) == {pod}
    assert refusals.wait_s(key, 100.25) == REFUSED_S[0] - 0.25
    refusals.add(key, [other], [service])
    assert refusals.held(key, 1, 100.9) == {pod, service}
    assert refusals.get(key) == (other, finding)
    assert refusals.held(key, 2, 100.5) == frozenset(), "a person changed the spec"
    assert refusals.held(key, 1, 100.0 + REFUSED_S[0]) == frozenset()


def test_a_secret_says_when_it_is_due_and_shows_that_it_was_edited() -> None:
    made = secret({"metadata": {"name": "x", "namespace": "n"}}, {"tls.key": b"k"}, renew_at=100.5)
    assert made["data"] == {"tls.key": base64.b64encode(b"k").decode()}
    assert not due(made, 99)
    assert due(made, 100)
    edited = {**made, "data": {"tls.key": ""}}
    assert due(edited, 0)
    assert due({"metadata": {}}, 0), "made by somebody else, without our annotations"


def test_the_first_name_of_etcd_s_certificate_is_its_service() -> None:
    hosts = etcd_hosts("twinpod-system", ("10.0.0.1:2379", "e.example:2379"))
    assert hosts[0] == "twinpod-etcd.twinpod-system.svc"
    assert {"10.0.0.1", "e.example", "localhost", "127.0.0.1", "*.twinpod-etcd.twinpod-system.svc"} <= set(hosts)
    assert len(set(hosts)) == len(hosts)


def test_settings_have_their_defaults() -> None:
    settings = from_environment(NEEDED)
    assert settings.platform.etcd == ("a:1", "b:2")
    assert (settings.namespace, settings.workers, settings.lease_s, settings.etcd_access) == (
        "twinpod-system",
        16,
        15,
        False,
    )
    assert from_environment(NEEDED).identity != settings.identity


@pytest.mark.parametrize(
    ("name", "value", "field", "read"),
    [
        ("TWINPOD_CERTIFICATE_S", "180", "certificate_s", 180),
        ("TWINPOD_CERTIFICATE_S", "3m", "certificate_s", 180),
        ("TWINPOD_CERTIFICATE_S", "24h", "certificate_s", 86_400),
        ("TWINPOD_RESYNC_S", "1m", "resync_s", 60),
        ("TWINPOD_ETCD_ACCESS", "true", "etcd_access", True),
        ("TWINPOD_NAMESPACE", "ours", "namespace", "ours"),
    ],
)
def test_settings_are_read(name: str, value: str, field: str, read: object) -> None:
    assert getattr(from_environment(NEEDED | {name: value}), field) == read


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TWINPOD_MASTER_IMAGE", "", "TWINPOD_MASTER_IMAGE: is not set"),
        ("TWINPOD_ETCD", "nowhere", 'TWINPOD_ETCD: "nowhere" is no host:port'),
        ("TWINPOD_WORKERS", "many", 'TWINPOD_WORKERS: "many" is no number'),
        ("TWINPOD_WORKERS", "0", "TWINPOD_WORKERS: 0 is not from 1 to 256"),
        ("TWINPOD_CERTIFICATE_S", "1s", "TWINPOD_CERTIFICATE_S: 1s is less than 60 s"),
        ("TWINPOD_CERTIFICATE_S", "xh", 'TWINPOD_CERTIFICATE_S: "xh" is no duration'),
        ("TWINPOD_IMAGE_PULL_POLICY", "Sometimes", 'TWINPOD_IMAGE_PULL_POLICY: "Sometimes" is none of'),
        ("TWINPOD_ETCD_ACCESS", "yes", 'TWINPOD_ETCD_ACCESS: "yes" is none of'),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_environment(NEEDED | {name: value})
    assert said in str(caught.value)


def test_a_kubeconfig_is_read_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"authority")
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://h:1/", "certificate-authority": "ca.pem"}}],
        "users": [{"name": "u", "user": {"token": "t", "client-key-data": base64.b64encode(b"key").decode()}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(document))
    login = find_login({"KUBECONFIG": str(tmp_path / "config")})
    assert (login.server, login.authority, login.key, login.token) == ("https://h:1", b"authority", b"key", "t")


def test_a_pod_uses_its_own_account(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_bytes(b"ca")
    login = find_login({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert (login.server, login.authority, login.token_file) == ("https://[fd00::1]:6443", b"ca", tmp_path / "token")


@pytest.mark.parametrize("text", ["", "a: [", "current-context: c"])
def test_what_is_no_kubeconfig_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(InputError, match="is no kubeconfig"):
        find_login({"KUBECONFIG": str(tmp_path / "config")})


def test_no_api_server_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="KUBECONFIG: no API server is known"):
        find_login({"HOME": str(tmp_path)}, tmp_path)


def test_metrics_are_text_that_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.request("create", "Pod", 201)
    metrics.request("create", "Pod", 201)
    metrics.reconcile(0.02, "ok")
    metrics.reconcile(99, "error")
    metrics.gauges["twinpod_operator_queue_depth"] = lambda: 3.0
    lines = metrics.text().splitlines()
    assert 'twinpod_operator_api_requests_total{verb="create",kind="Pod",code="201"} 2' in lines
    assert 'twinpod_operator_reconcile_seconds_bucket{le="0.025"} 1' in lines
    assert 'twinpod_operator_reconcile_seconds_bucket{le="+Inf"} 2' in lines
    assert 'twinpod_operator_reconciles_total{outcome="error"} 1' in lines
    assert "twinpod_operator_queue_depth 3" in lines


def test_names_of_the_platform_s_secrets_are_stable() -> None:
    assert (names.ETCD_AUTHORITY, names.ETCD_SERVER, names.ETCD_CLIENT) == (
        "twinpod-etcd-ca",
        "twinpod-etcd-server",
        "twinpod-etcd-client",
    )
