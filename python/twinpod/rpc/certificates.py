"""Certificate authorities and leaf certificates (ECDSA P-256), for a job and for its platform.

The operator and local mode make them; nobody else holds an authority's key. Every leaf may be a server and a client,
because every process here is both.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_SKEW = datetime.timedelta(minutes=5)  # clocks of pods differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A CA. PEM bytes; the key is PKCS #8 without a password."""

    certificate: bytes
    key: bytes

    @property
    def sound(self) -> bool:
        """Whether both can be read and belong to each other."""
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate)
            key = serialization.load_pem_private_key(self.key, None)
        except (ValueError, TypeError):
            return False
        return certificate.public_key() == key.public_key()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """A leaf certificate with its key and the CA that signed it."""

    certificate: bytes
    key: bytes
    authority: bytes

    def write(self, folder: Path) -> None:
        """Put `ca.crt`, `tls.crt`, `tls.key` (0600) into the folder, each renamed into place."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data, mode in (
            ("ca.crt", self.authority, 0o644),
            ("tls.key", self.key, 0o600),
            ("tls.crt", self.certificate, 0o644),
        ):
            part = folder / f".{name}.part"
            part.unlink(missing_ok=True)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
            part.rename(folder / name)


def make_authority(name: str, *, valid_days: float = 3650) -> Authority:
    """A new self-signed CA whose subject is `name`; it may sign leaves, not other CAs."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(subject, subject, key.public_key(), valid_days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(public, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate=certificate.public_bytes(serialization.Encoding.PEM), key=_key_bytes(key))


def issue(authority: Authority, names: Sequence[str], ips: Sequence[str] = (), *, valid_days: float = 365) -> Pem:
    """A leaf for DNS `names` and `ips` (at least one of both); the first is also its common name."""
    hosts: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    hosts += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
    assert hosts, "a certificate needs a name or an address"
    signer_key = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(signer_key, ec.EllipticCurvePrivateKey)
    signer = x509.load_pem_x509_certificate(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        _builder(_name([*names, *ips][0]), signer.subject, key.public_key(), valid_days)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()), critical=False)
        .sign(signer_key, hashes.SHA256())
    )
    return Pem(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=_key_bytes(key),
        authority=authority.certificate,
    )


def expires(pem: bytes) -> datetime.datetime:
    """When the first certificate of a PEM stops being valid (UTC), so that its maker can renew it in time."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "twinpod"),
            x509.NameAttribute(NameOID.COMMON_NAME, common[:64]),  # X.520's limit; the full name is in the SANs
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid_days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=valid_days))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
