"""Certificates: what stands in them and how they are written."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from twinpod.rpc.certificates import Authority, expires, issue, make_authority


def test_a_leaf_has_its_names_and_is_signed_by_its_authority() -> None:
    authority = make_authority("job")
    pem = issue(authority, ["a.b.svc", "c"], ["127.0.0.7", "::1"])
    leaf, root = (x509.load_pem_x509_certificate(data) for data in (pem.certificate, pem.authority))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.b.svc", "c"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.7", "::1"]
    leaf.verify_directly_issued_by(root)
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_an_authority_is_sound_while_its_key_fits_its_certificate() -> None:
    one, other = make_authority("job"), make_authority("job")
    assert one.sound
    for certificate, key in ((one.certificate, other.key), (one.certificate, b""), (b"no PEM", one.key)):
        assert not Authority(certificate=certificate, key=key).sound


def test_its_life_is_what_was_asked_for() -> None:
    pem = issue(make_authority("job"), ["a"], valid_days=2)
    left = expires(pem.certificate) - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=1.9) < left <= datetime.timedelta(days=2)


def test_a_long_first_name_does_not_break_the_subject() -> None:
    issue(make_authority("job"), ["x" * 63 + ".y.svc"])


def test_the_key_is_written_for_its_owner_alone_and_again_over_an_old_one(tmp_path: Path) -> None:
    for _ in range(2):
        pem = issue(make_authority("job"), ["a"])
        pem.write(tmp_path)
    assert stat.S_IMODE((tmp_path / "tls.key").stat().st_mode) == 0o600
    assert (tmp_path / "tls.crt").read_bytes() == pem.certificate
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]
