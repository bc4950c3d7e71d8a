"""Content credentials (C2PA): a signed manifest in an image's file, which says that a trained model made it.

Needs the extra `provenance`. Whoever has a certificate from an authority signs with it; otherwise a key and a
certificate are made on this machine, which every reader calls untrusted. No time stamp is fetched: nothing here
uses the network.
"""

import io
import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sefi.core.errors import REMARKS, ConfigError, OutputError, PhotoError, suggest_install
from sefi.core.files import follow_link, hold_folder_lock, is_there, make_text_writer, write_file
from sefi.core.reading import list_mappings, read_bytes, read_mapping, translate_file_errors
from sefi.core.text import dump_json
from sefi.provenance.metadata import SOURCE_TYPE

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

LOGGER = logging.getLogger(REMARKS)
# What images are passed on as: by content, Pillow's name and the type.
MIME_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
# What Pillow calls the JPEG of many phones, which opens it as one: further images follow the first.
JPEG_OF_SEVERAL_IMAGES = "MPO"
LARGEST_IMAGE = 256 << 20  # bytes
LARGEST_KEY = 64 << 10  # bytes of a certificate chain or a key
YEARS = 5  # that a certificate of this machine holds
LOCAL_CERTIFICATE, LOCAL_KEY = "signing-certificate.pem", "signing-key.pem"
LOCAL_ISSUER = "sefi, local and untrusted"
# What the library raises of damaged manifests, besides its own error.
MANIFEST_ERRORS = (KeyError, ValueError, RecursionError)
REMOTE = "Remote"  # how the library's error begins where it would have to ask an address for the manifest
REMEDY = "Name a certificate chain and a private key (ECDSA P-256) as PEM files, or sign with a local key."


@dataclass(frozen=True)
class Credentials:
    """What an image's content credentials say.

    Attributes:
        present: it has a manifest.
        valid: image and manifest are as they were signed.
        trusted: the signer's certificate is from an authority that the reader trusts.
        signer: who the certificate was issued to.
        is_generated: the manifest says that a trained model made the image.
        remote: the image only names an address of its manifest, which is not asked for: whoever made the image would
            learn when and where it is verified.
    """

    present: bool
    valid: bool = False
    trusted: bool = False
    signer: str = ""
    is_generated: bool = False
    remote: bool = False


@dataclass(frozen=True)
class SigningKey:
    """A certificate chain and its private key, as PEM."""

    certificates: str
    private_key: str


def has_library() -> bool:
    """Return whether the library that signs and reads content credentials is installed."""
    return find_spec("c2pa") is not None


def read_signing_key(certificate: Path, private_key: Path) -> SigningKey:
    """Read a certificate chain and its private key, PEM files.

    Raises:
        ConfigError: one is missing, too long or no PEM.
    """
    texts: list[str] = []
    for path in (certificate, private_key):
        with translate_file_errors(path, ConfigError, "is no PEM file", REMEDY):
            text = read_bytes(path, LARGEST_KEY).decode("ascii")
            if "-----BEGIN" not in text:
                raise ConfigError(f"{path} is no PEM file.", REMEDY)
            texts.append(text)
    return SigningKey(*texts)


def get_local_key(folder: Path, say: Callable[[str], object] = LOGGER.warning) -> SigningKey:
    """Return the signing key of this machine, made if there is none; readers call its signatures untrusted.

    One that cannot sign any more is replaced and set aside: what it signed stays signed, as every image has the
    certificate.

    Args:
        folder: where certificate and key are stored, for their owner alone.
        say: gets the remark that a new key took the place of another.

    Raises:
        ConfigError: the library is missing, a file cannot be read, or somebody else's certificate is there that cannot
            sign.
        OutputError: the key cannot be written, or what is in its place cannot be renamed.
    """
    require_library()
    key, _ = read_local_key(folder, datetime.now(UTC))
    if key is not None:
        return key
    with hold_folder_lock(folder):  # else two processes write the key of one and the certificate of the other
        today = datetime.now(UTC)
        key, fault = read_local_key(folder, today)
        if key is None:
            key = create_local_key(today)
            aside = [set_aside(folder / name, today) for name in (LOCAL_KEY, LOCAL_CERTIFICATE)]
            write_file(folder / LOCAL_KEY, make_text_writer(key.private_key), mode=0o600)
            write_file(folder / LOCAL_CERTIFICATE, make_text_writer(key.certificates), mode=0o600)
            if names := [f"'{one.name}'" for one in aside if one is not None]:
                fault = fault or "there was a private key without a certificate"
                say(f"A new signing key was made in '{folder}': {fault}. What was there is in {' and '.join(names)}.")
    return key


def set_aside(path: Path, today: datetime) -> Path | None:
    """Rename a file whose place another takes, as it may be somebody's only copy; None where there is none.

    Raises:
        OutputError: it cannot be renamed.
    """
    if not os.path.lexists(path):
        return None
    names = (path.with_name(f"{path.name}.{today:%Y-%m-%d}.{number}.replaced") for number in itertools.count(1))
    free = next(name for name in names if not os.path.lexists(name))
    with translate_file_errors(f"'{path}'", OutputError, "cannot be renamed", "Move it away, and run it again."):
        return path.rename(free)


def read_local_key(folder: Path, today: datetime) -> tuple[SigningKey | None, str]:
    """Return the signing key of this machine, or None and what is wrong with it; that is empty where there is none.

    Raises:
        ConfigError: a file cannot be read, or somebody else's certificate is there that cannot sign.
    """
    from cryptography import x509  # noqa: PLC0415  optional

    certificate, private_key = folder / LOCAL_CERTIFICATE, folder / LOCAL_KEY
    if not is_there(certificate):  # it is written last: a key alone may be of a process that was ended in between
        return None, ""
    remedy = f"Move '{certificate}' and '{private_key}' away, and run it again: new ones are made."
    with translate_file_errors(f"'{certificate}'", ConfigError, "is no certificate", remedy):
        chain = x509.load_pem_x509_certificates(read_bytes(certificate, LARGEST_KEY))
        fault = find_key_fault(chain, private_key, today, remedy)
        if not fault:
            return read_signing_key(certificate, private_key), ""
        issuers = [name.value for name in chain[0].issuer.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)]
        if issuers != [LOCAL_ISSUER]:
            raise ConfigError(f"Nothing can be signed by '{certificate}': {fault}.", remedy)
    return None, fault


def find_key_fault(chain: "list[Certificate]", private_key: Path, today: datetime, remedy: str) -> str:
    """Return why a certificate chain and its private key cannot sign; empty if they can.

    Raises:
        ConfigError: the key is there and cannot be read; with this remedy.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  optional
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    if any(today >= one.not_valid_after_utc for one in chain):
        return f"the certificate has expired on {min(one.not_valid_after_utc for one in chain):%Y-%m-%d}"
    if any(today < one.not_valid_before_utc for one in chain):
        return "the certificate is not valid yet, by this machine's clock"
    with translate_file_errors(f"'{private_key}'", ConfigError, "is no private key", remedy):
        try:
            key = load_pem_private_key(read_bytes(private_key, LARGEST_KEY), None)
        except FileNotFoundError:
            return "the private key is missing"
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return "the private key is damaged"
    return "" if key.public_key() == chain[0].public_key() else "certificate and private key do not belong together"


def create_local_key(today: datetime) -> SigningKey:
    """Make a key, and a certificate that an authority of this machine alone vouches for.

    C2PA's certificate profile allows no self-signed certificate, so there are two: the authority's and the signer's.
    """
    require_library()
    from cryptography import x509  # noqa: PLC0415  optional
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: PLC0415

    def make_name(name: str) -> x509.Name:
        parts = [(NameOID.ORGANIZATION_NAME, LOCAL_ISSUER), (NameOID.COMMON_NAME, name)]
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])

    def start(subject: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(make_name(subject))
            .issuer_name(make_name("local authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - timedelta(days=1))
            .not_valid_after(today + timedelta(days=365 * YEARS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )

    authority, signer = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    signs, issues = (
        x509.KeyUsage(
            digital_signature=not issuing, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=issuing, crl_sign=issuing, encipher_only=False, decipher_only=False,
        )
        for issuing in (False, True)
    )  # fmt: skip
    issuer = (
        start("local authority", authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(issues, critical=True)
        .sign(authority, hashes.SHA256())
    )
    certificate = (
        start("images of this machine", signer.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(signs, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = signer.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return SigningKey("".join(one.public_bytes(pem).decode() for one in (certificate, issuer)), private.decode())


def require_library() -> None:
    """Refuse to go on without the library.

    Raises:
        ConfigError: it is not installed.
    """
    if not has_library():
        raise ConfigError("Content credentials need the library c2pa-python.", suggest_install("provenance"))


def make_manifest(version: str) -> dict[str, Any]:
    """Make what is signed: that a trained model created the image, and with which program; nobody's name."""
    return {
        "claim_generator_info": [{"name": "sefi", "version": version}],
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {
                    "actions": [
                        {
                            "action": "c2pa.created",
                            "softwareAgent": {"name": "sefi", "version": version},
                            "digitalSourceType": SOURCE_TYPE,
                        }
                    ]
                },
            }
        ],
    }


def sign_image(path: Path, key: SigningKey, version: str) -> None:
    """Sign an image's file, PNG, JPEG or WebP, in its place and atomically; to be done last.

    Raises:
        ConfigError: the library is missing, or does not take the key.
        OutputError: it is another file, or cannot be written.
    """
    remedy = "Sign PNG, JPEG and WebP images."
    also = (SyntaxError, Image.DecompressionBombError)
    with translate_file_errors(path, OutputError, "is no image that can be signed", remedy, also):
        content = sign_content(read_bytes(path, LARGEST_IMAGE), key, version)
    write_file(follow_link(path), lambda partial: partial.write_bytes(content))


def sign_content(content: bytes, key: SigningKey, version: str) -> bytes:
    """Return an image's bytes with signed content credentials.

    Raises:
        ConfigError: the library is missing, or does not take the key.
        UnidentifiedImageError: it is no PNG, JPEG or WebP image.
    """
    require_library()
    import c2pa  # noqa: PLC0415  optional

    mime = find_mime_type(content)
    signed = io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo("es256", key.certificates.encode("ascii"), key.private_key.encode("ascii"), None)
        # Without a thumbnail, which the library adds: it would be a second image of the subject, and larger than all.
        settings = c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}})
        manifest = dump_json(make_manifest(version))
        with (
            c2pa.Context(settings) as context,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(manifest, context) as builder,
        ):
            builder.sign(signer, mime, io.BytesIO(content), signed)
    except c2pa.C2paError as error:
        raise ConfigError(f"The image cannot be signed: {str(error)[:200]}.", REMEDY) from error
    return signed.getvalue()


def find_mime_type(content: bytes) -> str:
    """Find as what an image's bytes are passed on.

    Raises:
        UnidentifiedImageError: it is no PNG, JPEG or WebP image.
    """
    with Image.open(io.BytesIO(content), formats=tuple(MIME_TYPES)) as image:
        return MIME_TYPES["JPEG" if image.format == JPEG_OF_SEVERAL_IMAGES else str(image.format)]


def read_credentials(content: bytes) -> Credentials | None:
    """Read the content credentials of an image's bytes; None where the library is not installed.

    A manifest elsewhere, whose address the image names, is not asked for.

    Raises:
        PhotoError: it is no PNG, JPEG or WebP image.
    """
    if not has_library():
        return None
    import c2pa  # noqa: PLC0415  optional

    also, remedy = (SyntaxError, Image.DecompressionBombError), "Name a PNG, JPEG or WebP image."
    with translate_file_errors("The image", PhotoError, "is no image whose credentials are read", remedy, also):
        mime = find_mime_type(content)
    settings = c2pa.Settings.from_dict({"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}})
    try:
        with c2pa.Context(settings) as context:
            reader = c2pa.Reader.try_create(mime, io.BytesIO(content), context=context)
        if reader is None:
            return Credentials(present=False)
        with reader:
            return _read_manifest(str(reader.get_validation_state()), reader.get_active_manifest())
    except (c2pa.C2paError, *MANIFEST_ERRORS) as error:
        return Credentials(present=True, remote=str(error).startswith(REMOTE))


def _read_manifest(state: str, manifest: object) -> Credentials:
    """Return what a manifest says, which strangers write: any value may be of another type than the standard's."""
    said = read_mapping({"manifest": manifest}, "manifest")
    signature = read_mapping(said, "signature_info")
    return Credentials(
        present=True,
        valid=state in ("Valid", "Trusted"),
        trusted=state == "Trusted",
        signer=str(signature.get("common_name") or signature.get("issuer") or ""),
        is_generated=_is_made_by_model(said),
    )


def _is_made_by_model(manifest: dict[str, Any]) -> bool:
    """Return whether an action of a manifest created the image by a trained model."""
    data = [read_mapping(one, "data") for one in list_mappings(manifest.get("assertions"))]
    actions = [action for one in data for action in list_mappings(one.get("actions"))]
    return any(action.get("digitalSourceType") == SOURCE_TYPE for action in actions)


def find_signing_key(settings: Path, say: Callable[[str], object] = LOGGER.warning) -> SigningKey:
    """Return the key that SEFI_C2PA_CERTIFICATE and SEFI_C2PA_KEY name, or this machine's; errors as in those two."""
    named = os.environ.get("SEFI_C2PA_CERTIFICATE"), os.environ.get("SEFI_C2PA_KEY")
    if named[0] and named[1]:
        return read_signing_key(Path(named[0]), Path(named[1]))
    if named[0] or named[1]:
        raise ConfigError("SEFI_C2PA_CERTIFICATE and SEFI_C2PA_KEY belong together.", "Set both, or none.")
    return get_local_key(settings, say)
