"""A throw-away certificate authority, and servers with what it signs."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import warnings
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def file(self) -> Path:
        """Its own certificate, for `SSL_CERT_FILE`."""
        return self.folder / "authority.pem"

    def server(
        self, host: str = "127.0.0.1", ends: datetime.timedelta = DAY, newest: ssl.TLSVersion | None = None
    ) -> ssl.SSLContext:
        """A server's context with a certificate for `host` that ends that long from now.

        With `newest`, nothing newer than that version of TLS is spoken.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(host, key, self.key, self.certificate.subject, ends)
        path = self.folder / "server.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + _pem(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        if newest:
            oldest_allowed(context, newest)
        return context


def oldest_allowed(context: ssl.SSLContext, newest: ssl.TLSVersion) -> None:
    """Let a context speak old versions of TLS up to `newest`, with the weak ciphers these need."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        # Python warns of the old versions that are meant here.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = newest


def authority(folder: Path) -> Authority:
    """Make an authority that keeps its files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Throw-away authority {folder.name}")])
    result = Authority(folder, key, _certificate(None, key, key, name, DAY))
    result.file.write_bytes(result.certificate.public_bytes(serialization.Encoding.PEM))
    return result


def _certificate(
    host: str | None,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    ends: datetime.timedelta,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)]) if host else issuer
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 30 * DAY)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        # Python 3.13 demands what RFC 5280 does: https://docs.python.org/3/library/ssl.html#ssl.create_default_context
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_USAGE if host else _USAGE_OF_AUTHORITY, critical=True)
    )
    if host:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(host)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _usage(*kinds: str) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    every += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{kind: kind in kinds for kind in every})


_USAGE = _usage("digital_signature")
_USAGE_OF_AUTHORITY = _usage("key_cert_sign", "crl_sign")


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
