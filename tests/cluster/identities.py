"""The cluster's own CA, its certificates and the kubeconfigs made of them.

Kubernetes reads a user from the common name and its groups from the organisations of a client certificate.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.cluster.layout import DOMAIN, Layout

VALID = datetime.timedelta(days=3650)
CLIENTS = {
    "admin": ("kubernetes-admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "dns": ("twinpod:dns", "system:masters"),
    "storage": ("twinpod:storage", "system:masters"),
    "devices": ("twinpod:devices", "system:masters"),
    "apiserver-kubelet": ("kube-apiserver-kubelet-client", "system:masters"),
    "apiserver-etcd": ("kube-apiserver", ""),
}


def make_identities(layout: Layout) -> None:
    """Everything under `pki` and all kubeconfigs; what is there already stays as it is."""
    layout.pki.mkdir(parents=True, exist_ok=True)
    if not (layout.pki / "ca.crt").exists():
        _make_authority(layout.pki)
    if not (layout.pki / "service-accounts.key").exists():
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        _write(layout.pki / "service-accounts.pub", _public(key))
        _write(layout.pki / "service-accounts.key", _private(key))
    first = str(next(ipaddress.ip_network(layout.service_range).hosts()))
    names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{DOMAIN}",
    ]
    _issue(layout.pki, "apiserver", "kube-apiserver", "", names, ["127.0.0.1", first, layout.control_address])
    _issue(layout.pki, "etcd", "etcd", "", ["localhost"], ["127.0.0.1"])
    for file, (user, group) in CLIENTS.items():
        _issue(layout.pki, file, user, group)
    for node in layout.nodes:
        _issue(layout.pki, node, f"system:node:{node}", "system:nodes", [node], [layout.node_address(node)])
    inside = f"https://{layout.control_address}:{layout.port('api')}" if layout.full else layout.server
    for file in (*CLIENTS, *layout.nodes):
        outside = file in ("admin", "storage", "devices")
        _write_kubeconfig(layout, file, layout.server if outside else inside)
    layout.kubeconfig.unlink(missing_ok=True)
    _write(layout.kubeconfig, (layout.pki / "admin.kubeconfig").read_bytes())


def _make_authority(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("twinpod-cluster", "")
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment"), False),
        **dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False),
    )
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _private(key))
    _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _issue(
    folder: Path, file: str, user: str, group: str, names: Sequence[str] = (), addresses: Sequence[str] = ()
) -> None:
    if (folder / f"{file}.crt").exists():
        return
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    hosts: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    hosts += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        _builder(_name(user, group), authority.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    _write(folder / f"{file}.key", _private(key))
    _write(folder / f"{file}.crt", builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _write_kubeconfig(layout: Layout, file: str, server: str) -> None:
    def text(name: str) -> str:
        return base64.b64encode((layout.pki / name).read_bytes()).decode()

    user = {"client-certificate-data": text(f"{file}.crt"), "client-key-data": text(f"{file}.key")}
    name = f"twinpod-{layout.name}"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": text("ca.crt")}}],
        "users": [{"name": file, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": file}}],
        "current-context": name,
    }
    path = layout.pki / f"{file}.kubeconfig"
    path.unlink(missing_ok=True)
    _write(path, json.dumps(content, indent=1).encode())  # JSON is YAML


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + VALID)
    )


def _name(user: str, group: str) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    part.rename(path)
