"""The TLS context of connections to Redis, for the service and for `willbuy collect`."""

import ssl
from pathlib import Path

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEY = b"PRIVATE KEY-----"


def tls_context(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """Return a context that checks the server's certificate and name, and shows the client's certificate, if any.

    Args:
        ca_file: certificate authorities to trust, in PEM; None: the system's.
        cert_file: the client's certificate and its chain, in PEM; None: no client certificate.
        key_file: the certificate's private key, in PEM, without a passphrase; None: it is in `cert_file`.

    Raises:
        ValueError: a file cannot be used; one line that begins with the setting's name.
    """
    if key_file is not None and cert_file is None:
        raise ValueError("WILLBUY_REDIS_KEY_FILE: needs WILLBUY_REDIS_CERT_FILE, the certificate of the key")
    if ca_file is not None:
        _check("WILLBUY_REDIS_CA_FILE", ca_file, _CERTIFICATE)
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except ssl.SSLError as exc:
        raise ValueError(f"WILLBUY_REDIS_CA_FILE: {ca_file}: not certificates in PEM ({_reason(exc)})") from exc
    if cert_file is None:
        return context
    key_setting = "WILLBUY_REDIS_CERT_FILE" if key_file is None else "WILLBUY_REDIS_KEY_FILE"
    _check("WILLBUY_REDIS_CERT_FILE", cert_file, _CERTIFICATE)
    _check(key_setting, key_file or cert_file, _KEY)
    try:
        # The empty passphrase keeps OpenSSL from asking for one at the terminal.
        context.load_cert_chain(cert_file, key_file, password="")  # nosec B106 - none
    except ssl.SSLError as exc:
        raise ValueError(
            f"{key_setting}: {key_file or cert_file}: not the private key of the certificate in {cert_file}, "
            f"or it has a passphrase ({_reason(exc)})"
        ) from exc
    return context


def _check(setting: str, path: Path, mark: bytes) -> None:
    """Raise `ValueError` unless the file can be read and has the PEM block."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ValueError(f"{setting}: {path}: {exc.strerror}") from exc
    if mark not in content:
        wanted = "certificate" if mark is _CERTIFICATE else "private key"
        raise ValueError(f"{setting}: {path}: has no {wanted} in PEM")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
