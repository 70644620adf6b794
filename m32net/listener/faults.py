"""Why a server could not be reached, in one line that says what to do where something can be done.

Texts only.  The faults of TLS come as OpenSSL and service-identity name them, which nobody who
wants to hear music understands.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from twisted.python.failure import Failure

from m32net.listener.address import ServerAddress

_LONGEST: Final = 160


def short(reason: str) -> str:
    """One line that is not too long."""
    text = " ".join(reason.split()).rstrip(".")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def explain(failure: Failure, address: ServerAddress, ca: str | None) -> str:
    """What went wrong with a connection.

    :param ca: file of the CA that is trusted; None for those of the system.
    """
    for one in (failure, *getattr(failure.value, "reasons", ())):
        found = _of_tls(one.value, address, ca)
        if found is not None:
            return found
    text = short(failure.getErrorMessage() or type(failure.value).__name__)
    if address.secure and "did not answer in time" in text:
        text += "; is https:// right for this port?"
    return text


def is_of_tls(failure: Failure | None) -> bool:
    """Whether it tells more of what went wrong than a WebSocket that was not opened."""
    return failure is not None and isinstance(
        failure.value, SSL.Error | CertificateError | VerificationError
    )


def is_untrusted(failure: Failure | None) -> bool:
    """Whether it is the certificate that was refused, which trying again does not cure."""
    if failure is None:
        return False
    if isinstance(failure.value, CertificateError | VerificationError):
        return True
    return isinstance(failure.value, SSL.Error) and "verify failed" in _texts(failure.value)


def _of_tls(error: Any, address: ServerAddress, ca: str | None) -> str | None:
    if isinstance(error, CertificateError | VerificationError):
        return (
            f"the server's certificate is not for {address.host}; "
            "use a name or address that is in it"
        )
    if not isinstance(error, SSL.Error):
        return None
    texts = _texts(error)
    if "verify failed" in texts:
        if ca is None:
            return (
                "the server's certificate is not trusted here; save its CA (/ca.pem, offered on "
                "the engineer's page) and name it with --ca FILE"
            )
        return f"the server's certificate is not signed by {ca}, or is out of date"
    if "wrong version number" in texts or "record layer failure" in texts:
        return "there is no TLS on this port; is http:// meant?"
    return short(f"TLS: {texts}") if texts else "the server ended the TLS handshake"


def _texts(error: SSL.Error) -> str:
    stack = error.args[0] if error.args else ()
    return "; ".join(str(one[-1]) for one in stack if one) if isinstance(stack, list) else ""
