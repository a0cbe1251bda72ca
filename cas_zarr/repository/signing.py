"""Signed commits: Ed25519, through `cryptography` (the extra ``cas_zarr[sign]``).

A signature is 96 bytes: the public key, 32 bytes, and the Ed25519 signature (RFC 8032), 64 bytes,
of the commit's block as it is without the signature.

A signature says that the holder of a key has made a commit; whose key it is, a file of allowed
signers says. The keys are those of OpenSSH, whose files are read, encrypted ones as well.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cas_zarr.errors import (
    FormatError,
    InvalidArgumentError,
    MissingDependencyError,
    NotFoundError,
)
from cas_zarr.repository.commit import Commit

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    PrivateKey: TypeAlias = Ed25519PrivateKey

__all__ = [
    "SignatureState",
    "check",
    "key_of",
    "load_key",
    "load_signers",
    "sign",
    "signer_key",
    "signer_text",
]

KEY_SIZE = 32
SIGNATURE_SIZE = 96

_TYPE = b"ssh-ed25519"
_PREFIX = len(_TYPE).to_bytes(4, "big") + _TYPE + KEY_SIZE.to_bytes(4, "big")
_MAX_KEY_FILE = 64 * 1024
_MAX_SIGNERS_FILE = 16 << 20
_MAX_ROUNDS = 4096  # of bcrypt; ssh-keygen does 24 unless told otherwise
_SIGNER = re.compile(r"(?:^|\s)ssh-ed25519\s+([A-Za-z0-9+/=]+)(?:\s+(.*))?$")
_OTHER_KEY = re.compile(r"(?:^|\s)(?:ssh|ecdsa|sk)-\S+\s+AAAA")
_LIMIT = re.compile(
    r"(?:^|[\s,])(cert-authority|valid-after|valid-before)(?:[\s,=]|$)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class SignatureState:
    """What the signature of a commit is worth.

    Attributes
    ----------
    signer : bytes or None
        The public key that it names, 32 bytes; None where there is no signature, or one of a form
        that is not known here.
    valid : bool
        Whether the holder of that key has signed this commit.
    reason : str
        Why it is not valid; empty where it is.
    """

    signer: bytes | None
    valid: bool
    reason: str = ""


def load_key(
    source: str | os.PathLike[str] | bytes, *, password: str | bytes | None = None
) -> PrivateKey:
    """Return a private Ed25519 key.

    Parameters
    ----------
    source : path or bytes
        A file, or the content of one: OpenSSH's format (``ssh-keygen -t ed25519``), PEM (PKCS 8),
        or the 32 raw bytes of a key.
    password : str or bytes, optional
        Of an encrypted key.

    Raises
    ------
    NotFoundError
        If there is no such file.
    FormatError
        If it holds no Ed25519 key, or the password is missing or wrong.
    MissingDependencyError
        If `cryptography` is not installed.
    """
    where = "the key"
    if isinstance(source, bytes):
        data = source
    else:
        where = f"the key in {os.fspath(source)}"
        data = _read(source, _MAX_KEY_FILE)
    if len(data) == KEY_SIZE:
        return key_of(data)
    _need()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    secret = password.encode() if isinstance(password, str) else password
    openssh = b"BEGIN OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
    if openssh and (rounds := _rounds(data)) > _MAX_ROUNDS:
        raise FormatError(
            f"{where} asks for {rounds} rounds of bcrypt, which would take hours; at most "
            f"{_MAX_ROUNDS} are done: give it a password anew, with ssh-keygen -p -a 100"
        )
    try:
        key = load(data, secret)
    except TypeError:
        needed = "is encrypted; give its password" if secret is None else "has no password"
        raise FormatError(f"{where} {needed}") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        if "bcrypt" in str(error):  # of encrypted keys in OpenSSH's format
            raise MissingDependencyError(
                f"{where} is encrypted, and to read it needs bcrypt as well; install it beside "
                "cas_zarr[sign]"
            ) from None
        raise FormatError(
            f"{where} cannot be read: {str(error).lower() or 'it is no private key'}; give an "
            "ed25519 key as ssh-keygen -t ed25519 makes it, and its password if it has one"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise FormatError(
            f"{where} is of another kind; commits are signed with ed25519, as ssh-keygen -t "
            "ed25519 makes a key"
        )
    return key


def key_of(data: bytes) -> PrivateKey:
    """Return the private key of 32 raw bytes."""
    if len(data) != KEY_SIZE:
        raise InvalidArgumentError(f"a raw ed25519 key has {KEY_SIZE} bytes, not {len(data)}")
    _need()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(data)


def sign(commit: Commit, key: PrivateKey) -> Commit:
    """Return a commit with a signature by a key; one that it has is replaced."""
    _need()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidArgumentError(
            f"a commit is signed with a key that load_key gives, not with a {type(key).__name__}"
        )
    public = key.public_key().public_bytes_raw()
    return replace(commit, signature=public + key.sign(_signed(commit)))


def check(commit: Commit) -> SignatureState:
    """Tell who signed a commit, and whether that is true.

    Raises
    ------
    MissingDependencyError
        If there is a signature and `cryptography` is not installed.
    """
    signature = commit.signature
    if signature is None:
        return SignatureState(None, False, "it is not signed")
    if len(signature) != SIGNATURE_SIZE:
        return SignatureState(None, False, "its signature is of a form that is not known here")
    _need()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = signature[:KEY_SIZE]
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature[KEY_SIZE:], _signed(commit))
    except (InvalidSignature, ValueError):
        return SignatureState(public, False, "its signature is not that of this commit")
    return SignatureState(public, True)


def signer_text(public: bytes) -> str:
    """Return a public key as OpenSSH writes it, ``ssh-ed25519 AAAA…``."""
    if len(public) != KEY_SIZE:
        raise InvalidArgumentError(f"a public ed25519 key has {KEY_SIZE} bytes, not {len(public)}")
    return f"{_TYPE.decode()} {b64encode(_PREFIX + public).decode()}"


def signer_key(text: str) -> bytes:
    """Return the 32 bytes of a public key that OpenSSH has written; FormatError if it is none."""
    match = _SIGNER.search(text.strip())
    # What follows a key of another kind is its comment, whatever it looks like.
    if match is None or _OTHER_KEY.search(text.strip(), 0, match.start()):
        raise FormatError(
            f"{text[:80]!r} is no public ed25519 key; it reads ssh-ed25519 AAAA… comment"
        )
    try:
        data = b64decode(match[1], validate=True)
    except Base64Error:
        data = b""
    if len(data) != len(_PREFIX) + KEY_SIZE or not data.startswith(_PREFIX):
        raise FormatError(f"{text[:80]!r} is no public ed25519 key: its base64 is damaged")
    return data[len(_PREFIX) :]


def load_signers(path: str | os.PathLike[str]) -> Mapping[bytes, str]:
    """Return the public keys of a file, with whom they belong to.

    Its lines are public keys, ``ssh-ed25519 AAAA… name``, or lines of OpenSSH's allowed signers,
    ``name ssh-ed25519 AAAA…``. Empty lines and those that begin with # say nothing. Of the options
    of OpenSSH ``namespaces`` is passed over; those that take trust from a key are refused.

    Raises
    ------
    NotFoundError
        If there is no such file.
    FormatError
        If a line is something else; keys of other kinds are told as well, since none signs a
        commit.
    """
    signers: dict[bytes, str] = {}
    try:
        text = _read(path, _MAX_SIGNERS_FILE).decode()
    except UnicodeDecodeError:
        raise FormatError(f"{os.fspath(path)} is no file of public keys: it is no text") from None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            key = signer_key(line)
        except FormatError as error:
            raise FormatError(f"line {number} of {os.fspath(path)}: {error}") from None
        before, _, behind = line.partition(_TYPE.decode())
        if (limit := _LIMIT.search(before)) is not None:
            raise FormatError(
                f"line {number} of {os.fspath(path)} has the option {limit[1]}, which is not known "
                "here and would have to be obeyed; leave out the line, or the option"
            )
        name = before.split()[0] if before.strip() else " ".join(behind.split()[1:])
        signers[key] = name
    return signers


def _rounds(data: bytes) -> int:
    """Return how many rounds of bcrypt a key in OpenSSH's format asks for; 0 if that is unclear."""
    try:
        rest = b64decode(b"".join(data.split(b"-----")[2].split()))[len(b"openssh-key-v1\0") :]
        options = b""
        for _ in range(3):  # cipher, key derivation function, and its options
            end = 4 + int.from_bytes(rest[:4], "big")
            options, rest = rest[4:end], rest[end:]
    except (Base64Error, IndexError):
        return 0
    behind = options[4 + int.from_bytes(options[:4], "big") :]  # the salt
    return int.from_bytes(behind[:4], "big")


def _signed(commit: Commit) -> bytes:
    """Return the bytes that a signature is over; the hash of CIDs plays no part in them."""
    return replace(commit, signature=None).to_block()[1]


def _read(path: str | os.PathLike[str], limit: int) -> bytes:
    try:
        with open(Path(path), "rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {os.fspath(path)}; check the path") from None
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{os.fspath(path)!r} cannot be read: {error}") from None
    if len(data) > limit:
        raise FormatError(f"{os.fspath(path)} has more than {limit} bytes, which no such file has")
    return data


def _need() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "signatures need cryptography; install cas_zarr[sign]"
        ) from None
