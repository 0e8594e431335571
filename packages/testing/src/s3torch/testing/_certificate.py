"""A certificate for a test server on loopback, good for a day, signed by an authority of its own."""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError
from s3torch.testing._ports import HOST

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import CertificateBuilder, Name

AUTHORITY, CERTIFICATE, PRIVATE_KEY = "ca.pem", "server.pem", "server.key"


def _builder(subject: Name, issuer: Name, key: EllipticCurvePrivateKey) -> CertificateBuilder:
    from cryptography import x509

    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )


def certificate_files() -> dict[str, bytes]:
    """Makes the certificates of the authority and of the server, and the server's key, by file name.

    Raises:
        ConfigurationError: The library that makes them is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as exc:
        raise ConfigurationError(
            "a test server with TLS needs a certificate; run: python -m pip install cryptography"
        ) from exc
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "s3torch test authority")])
    server = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = [x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")]
    root = (
        _builder(authority, authority, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    leaf = (
        _builder(server, authority, server_key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        AUTHORITY: root.public_bytes(pem),
        CERTIFICATE: leaf.public_bytes(pem),
        PRIVATE_KEY: key,
    }
