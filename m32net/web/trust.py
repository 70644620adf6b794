"""The local CA's certificate for the people who install it, and how secure connections stand.

Everybody may fetch the certificate (it is no secret, and a phone that scans the QR code is not
logged in); whether it is the right one is told by its fingerprint, which the engineer compares.
Nothing here makes or reads certificates: :class:`m32net.interfaces.ITrust` does.
"""

from __future__ import annotations

import plistlib
import ssl
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin

from twisted.web.server import Request

from m32net.interfaces import ITrust, RefusedError, TrustStatus
from m32net.web.answers import answer, json_answer, set_header
from m32net.web.app import app
from m32net.web.public import PublicRoutes

CERTIFICATE_TYPE: Final = "application/x-x509-ca-cert"
PEM_TYPE: Final = "application/x-pem-file"
PROFILE_TYPE: Final = "application/x-apple-aspen-config"
SVG_TYPE: Final = "image/svg+xml"


@dataclass(frozen=True, slots=True)
class TrustBody:
    """``GET /api/trust``.

    :ivar tls: whether the server listens with TLS at all.
    :ivar ca_url: where a phone fetches the local CA's certificate; None: nothing to install.
    :ivar profile_url: the same as a configuration profile for iPhone and iPad.
    :ivar certificate: of the server; None without TLS.
    """

    tls: bool
    ca_url: str | None
    profile_url: str | None
    certificate: TrustStatus | None


class TrustRoutes(PublicRoutes):
    """Mixed into :class:`m32net.web.api.WebApi`, which sets the attributes.

    :ivar trust: None without TLS.
    """

    trust: ITrust | None = None
    qr_svg: Callable[[str], bytes]

    @app.route("/ca.crt", methods=["GET"])
    def ca_der(self, request: Request) -> bytes:
        return self._certificate_file(
            request, _der(self._ca_pem()), CERTIFICATE_TYPE, "m32net-ca.crt"
        )

    @app.route("/ca.pem", methods=["GET"])
    def ca_pem(self, request: Request) -> bytes:
        return self._certificate_file(request, self._ca_pem(), PEM_TYPE, "m32net-ca.pem")

    @app.route("/ca.mobileconfig", methods=["GET"])
    def ca_profile(self, request: Request) -> bytes:
        der = _der(self._ca_pem())
        return self._certificate_file(
            request, profile(der, self.status.name), PROFILE_TYPE, "m32net-ca.mobileconfig"
        )

    @app.route("/ca-qr.svg", methods=["GET"])
    def ca_qr(self, request: Request) -> bytes:
        self._ca_pem()
        return answer(request, self.qr_svg(self._ca_url("ca.crt")), SVG_TYPE)

    @app.route("/api/trust", methods=["GET"])
    def trust_status(self, request: Request) -> bytes:
        self.admin(request)
        local = self.trust is not None and self.trust.ca_pem() is not None
        return json_answer(
            request,
            TrustBody(
                tls=self.trust is not None,
                ca_url=self._ca_url("ca.crt") if local else None,
                profile_url=self._ca_url("ca.mobileconfig") if local else None,
                certificate=None if self.trust is None else self.trust.status(),
            ),
        )

    def _ca_url(self, name: str) -> str:
        # By plain HTTP: who does not have the certificate yet can't check a secure connection.
        return urljoin(self.status.page_url, f"/{name}")

    def _ca_pem(self) -> bytes:
        """:raises RefusedError: 404, nothing needs to be installed."""
        pem = None if self.trust is None else self.trust.ca_pem()
        if pem is None:
            why = (
                "this server runs without TLS"
                if self.trust is None
                else "this server has a certificate of its own, and no local CA to install"
            )
            raise RefusedError("no_local_ca", why, 404)
        return pem

    @staticmethod
    def _certificate_file(request: Request, body: bytes, media_type: str, name: str) -> bytes:
        # Not "attachment": phones would put it among the downloads instead of offering to install.
        set_header(request, "Content-Disposition", f'inline; filename="{name}"')
        return answer(request, body, media_type)


def _der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))


def profile(der: bytes, server: str) -> bytes:
    """A configuration profile for iPhone and iPad that holds one root certificate.

    Apple's "Configuration Profile Reference", payload type ``com.apple.security.root``.  The
    identifiers follow from the certificate, so that installing it again replaces it.

    :param der: the certificate.
    :param server: whose it is, for the person who installs it.
    """
    server = "".join(one for one in server if one.isprintable())
    inner = uuid.uuid5(uuid.NAMESPACE_OID, der.hex())
    outer = uuid.uuid5(inner, "profile")
    identifier = f"net.m32net.ca.{inner.hex[:12]}"
    return plistlib.dumps(
        {
            "PayloadType": "Configuration",
            "PayloadVersion": 1,
            "PayloadIdentifier": identifier,
            "PayloadUUID": str(outer).upper(),
            "PayloadDisplayName": f"m32net: {server}",
            "PayloadDescription": (
                f"Lets this device check that it talks to {server}. Then switch it on under "
                "Settings, General, About, Certificate Trust Settings."
            ),
            "PayloadRemovalDisallowed": False,
            "PayloadContent": [
                {
                    "PayloadType": "com.apple.security.root",
                    "PayloadVersion": 1,
                    "PayloadIdentifier": f"{identifier}.certificate",
                    "PayloadUUID": str(inner).upper(),
                    "PayloadDisplayName": f"m32net CA of {server}",
                    "PayloadCertificateFileName": "m32net-ca.crt",
                    "PayloadContent": der,
                }
            ],
        }
    )
