"""Certificates for loopback servers: good ones, and such as a client must not trust."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

__all__ = ["Authority"]

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class _Pair:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class Authority:
    """An authority of one's own; ``file`` holds its certificate, which makes a client trust what it issues."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = _made("an authority of our own", None, lambda built: built, authority=True)
        self.file = folder / "authority.pem"
        self.file.write_bytes(self._own.certificate.public_bytes(Encoding.PEM))

    def server(self, host: str = "127.0.0.1", *, expired: bool = False, by_itself: bool = False) -> ssl.SSLContext:
        """What a server needs. ``host``: a name or an address. ``expired``: since yesterday. ``by_itself``: not issued
        by the authority, but signed with its own key."""

        def named(built: x509.CertificateBuilder) -> x509.CertificateBuilder:
            name = x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
            return built.add_extension(x509.SubjectAlternativeName([name]), critical=False)

        pair = _made(host, None if by_itself else self._own, named, until=-_DAY if expired else _DAY)
        file = self._folder / "server.pem"
        key = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write_bytes(key + pair.certificate.public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


def _made(
    name: str,
    issuer: _Pair | None,
    extended: Callable[[x509.CertificateBuilder], x509.CertificateBuilder],
    *,
    authority: bool = False,
    until: timedelta = _DAY,
) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, signer = datetime.now(timezone.utc), issuer.key if issuer else key
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 30 * _DAY)
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        # Python 3.13 verifies strictly (RFC 5280, section 4.2.1): an authority must say that it may sign, and all must
        # tell whose key is whose.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_usage(authority), critical=True)
    )
    return _Pair(key, extended(built).sign(signer, hashes.SHA256()))


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
