"""A certificate for tests, made by the ``openssl`` command (Python's own library makes none)."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for localhost, 127.0.0.1 and ::1.

    Gives (certificate file, key file); the certificate is its own authority, so it is also
    what a client trusts (``tls_ca``). Skips the test where there is no openssl.
    """
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the test's certificate and is not installed")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1",
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


def server_context(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context with a fresh certificate, and the file that a client trusts."""
    certificate, key = make_certificate(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
