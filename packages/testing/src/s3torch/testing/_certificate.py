"""A certificate for test servers on loopback, signed by an authority of its own."""

from __future__ import annotations

AUTHORITY, CERTIFICATE, PRIVATE_KEY = "ca.pem", "server.pem", "server.key"


def certificate_files() -> dict[str, bytes]:
    """Makes the certificates of the authority and of the server, and the server's key, by file name."""
    import trustme

    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    return {
        AUTHORITY: authority.cert_pem.bytes(),
        CERTIFICATE: server.cert_chain_pems[0].bytes(),
        PRIVATE_KEY: server.private_key_pem.bytes(),
    }
