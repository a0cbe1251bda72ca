"""Signed commits: what a key has signed nobody changes; keys are read as OpenSSH writes them."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, SHA256, cid_of
from cas_zarr.codecs import dagcbor
from cas_zarr.errors import (
    FormatError,
    InvalidArgumentError,
    MissingDependencyError,
    NotFoundError,
)
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.signing import (
    SignatureState,
    check,
    key_of,
    load_key,
    load_signers,
    sign,
    signer_key,
    signer_text,
)

pytest.importorskip("cryptography")

KEY = key_of(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
COMMIT = Commit(
    root=cid_of(DAG_JSON, BLAKE3, b"root"),
    parents=(cid_of(DAG_CBOR, BLAKE3, b"parent"),),
    author="Ada <ada@example.org>",
    time=1_700_000_000_000_000,
    message="first",
    metadata={"run": 7},
)

needs_ssh_keygen = pytest.mark.skipif(which("ssh-keygen") is None, reason="no ssh-keygen here")


def test_a_signature_is_of_the_block_without_it() -> None:
    signed = sign(COMMIT, KEY)
    assert replace(signed, signature=None) == COMMIT
    assert signed.signature is not None
    assert len(signed.signature) == 96
    assert signed.signature[:32] == PUBLIC
    KEY.public_key().verify(signed.signature[32:], COMMIT.to_block()[1])
    assert check(signed) == SignatureState(PUBLIC, True)
    assert sign(signed, KEY) == signed  # ed25519 has no chance in it


@pytest.mark.parametrize("function", [BLAKE3, SHA256])
def test_a_signed_commit_is_stored_and_read(function: object) -> None:
    cid, data = sign(COMMIT, KEY).to_block(function)  # type: ignore[arg-type]
    assert check(Commit.from_block(cid, data)).valid


@pytest.mark.parametrize(
    "change",
    [
        {"message": "second"},
        {"author": "Eve"},
        {"time": 0},
        {"parents": ()},
        {"metadata": {}},
        {"root": cid_of(DAG_JSON, BLAKE3, b"other")},
    ],
)
def test_no_field_can_be_changed(change: dict[str, object]) -> None:
    changed = replace(sign(COMMIT, KEY), **change)
    state = check(changed)
    assert (state.signer, state.valid) == (PUBLIC, False)
    assert "not that of this commit" in state.reason


def test_no_bit_of_a_signature_can_be_changed() -> None:
    signed = sign(COMMIT, KEY)
    assert signed.signature is not None
    for bit in range(0, 96 * 8, 5):
        changed = bytearray(signed.signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not check(replace(signed, signature=bytes(changed))).valid


@given(st.binary(min_size=32, max_size=32), st.text(max_size=50), st.integers(-(2**63), 2**63 - 1))
def test_any_key_signs_any_commit(secret: bytes, message: str, time: int) -> None:
    key = key_of(secret)
    commit = replace(COMMIT, message=message, time=time)
    state = check(sign(commit, key))
    assert state == SignatureState(key.public_key().public_bytes_raw(), True)
    assert not check(replace(commit, signature=sign(COMMIT, key).signature)).valid or (
        commit == COMMIT
    )


def test_what_is_no_signature() -> None:
    assert check(COMMIT) == SignatureState(None, False, "it is not signed")
    for odd in (b"", b"x", bytes(95), bytes(97), bytes(64)):
        commit = replace(COMMIT, signature=odd)
        assert Commit.from_block(*commit.to_block()) == commit  # read as ever
        state = check(commit)
        assert (state.signer, state.valid) == (None, False)
        assert "form" in state.reason
    assert not check(replace(COMMIT, signature=bytes(96))).valid
    assert not check(replace(COMMIT, signature=b"\xff" * 96)).valid


def test_only_keys_sign() -> None:
    for odd in (None, b"key", KEY.public_key()):
        with pytest.raises(InvalidArgumentError, match="load_key"):
            sign(COMMIT, odd)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="32 bytes, not 31"):
        key_of(bytes(31))


# -- keys in files ----------------------------------------------------------------------------


def written(kind: str, password: bytes | None = None) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    coding = form.NoEncryption() if password is None else form.BestAvailableEncryption(password)
    if kind == "raw":
        return KEY.private_bytes_raw()
    kinds = {"pem": form.PrivateFormat.PKCS8, "openssh": form.PrivateFormat.OpenSSH}
    return KEY.private_bytes(form.Encoding.PEM, kinds[kind], coding)


@pytest.mark.parametrize("kind", ["raw", "pem", "openssh"])
def test_keys_are_read(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(written(kind))
    for source in (file, str(file), file.read_bytes()):
        assert sign(COMMIT, load_key(source)) == sign(COMMIT, KEY)


def test_encrypted_keys_need_their_password(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(written("pem", b"secret"))
    assert sign(COMMIT, load_key(file, password="secret")) == sign(COMMIT, KEY)
    assert sign(COMMIT, load_key(file.read_bytes(), password=b"secret")) == sign(COMMIT, KEY)
    with pytest.raises(FormatError, match=f"key in {file} is encrypted; give its password"):
        load_key(file)
    with pytest.raises(FormatError, match="cannot be read"):
        load_key(file, password="wrong")
    file.write_bytes(written("pem"))
    with pytest.raises(FormatError, match="has no password"):
        load_key(file, password="secret")


def test_what_is_no_key(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    other = generate_private_key(SECP256R1()).private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )
    with pytest.raises(FormatError, match="of another kind"):
        load_key(other)
    for odd in (b"", b"x" * 31, b"x" * 33, written("openssh")[:-40], b"\xff" * 200):
        with pytest.raises(FormatError, match="cannot be read"):
            load_key(odd)
    with pytest.raises(NotFoundError, match="no file"):
        load_key(tmp_path / "absent")
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        load_key(tmp_path)
    (tmp_path / "long").write_bytes(bytes(70_000))
    with pytest.raises(FormatError, match="more than 65536"):
        load_key(tmp_path / "long")


@needs_ssh_keygen
@pytest.mark.parametrize("password", ["", "a password"])
def test_openssh_and_this_agree(tmp_path: Path, password: str) -> None:
    file = tmp_path / "id"
    arguments = ["-q", "-t", "ed25519", "-N", password, "-C", "ada@lab", "-f", str(file)]
    subprocess.run(["ssh-keygen", *arguments], check=True, timeout=60)
    if password and find_spec("bcrypt") is None:
        with pytest.raises(MissingDependencyError, match="needs bcrypt"):
            load_key(file, password=password)
        return
    key = load_key(file, password=password or None)
    public = (tmp_path / "id.pub").read_text()
    state = check(sign(COMMIT, key))
    assert state.valid
    assert state.signer == signer_key(public)
    assert public == f"{signer_text(signer_key(public))} ada@lab\n"


@pytest.mark.parametrize("password", [None, "x"])
def test_a_key_cannot_ask_for_years_of_work(password: str | None) -> None:
    def text(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    options = text(b"salt" * 4) + (1 << 31).to_bytes(4, "big")
    body = b"openssh-key-v1\0" + text(b"aes256-ctr") + text(b"bcrypt") + text(options)
    body += (1).to_bytes(4, "big") + text(b"public") + text(bytes(160))
    lines = b"\n".join(b64encode(body[i : i + 45]) for i in range(0, len(body), 45))
    mark = b"-----%s OPENSSH PRIVATE KEY-----\n"
    with pytest.raises(FormatError, match=r"2147483648 rounds of bcrypt.*ssh-keygen"):
        load_key(mark % b"BEGIN" + lines + b"\n" + mark % b"END", password=password)


# -- who may sign --------------------------------------------------------------------------------


def test_a_file_of_signers(tmp_path: Path) -> None:
    keys = [bytes([number]) * 32 for number in range(5)]
    lines = [
        "# people",
        "",
        f"{signer_text(keys[0])} Ada of the lab",
        f"  {signer_text(keys[1])}",
        f"bob@example.org {signer_text(keys[2])}",
        f'carol@x,carol@y namespaces="git,cas" {signer_text(keys[3])} laptop',
        f"{signer_text(keys[4])}\r",
    ]
    file = tmp_path / "signers"
    file.write_text("\n".join(lines))
    assert load_signers(file) == {
        keys[0]: "Ada of the lab",
        keys[1]: "",
        keys[2]: "bob@example.org",
        keys[3]: "carol@x,carol@y",
        keys[4]: "",
    }


@pytest.mark.parametrize(
    "line",
    [
        "nothing",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 A",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ== x",
        signer_text(bytes(32)).replace("ed25519 A", "ed25519 B"),
        signer_text(bytes(32))[:-4],
        signer_text(bytes(32)).replace("ssh-", "xssh-"),
        f"bob ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ== {signer_text(bytes(32))}",
        f'bob valid-before="20200101" {signer_text(bytes(32))}',
        f"bob cert-authority {signer_text(bytes(32))}",
        f'bob namespaces="x",Valid-After="20300101" {signer_text(bytes(32))}',
    ],
)
def test_lines_that_name_no_key(tmp_path: Path, line: str) -> None:
    file = tmp_path / "signers"
    file.write_text(f"{signer_text(bytes(32))}\n{line}\n")
    with pytest.raises(FormatError, match=f"line 2 of {file}"):
        load_signers(file)


def test_signers_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load_signers(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="no text"):
        load_signers(tmp_path / "binary")


@given(st.binary(min_size=32, max_size=32))
def test_public_keys_as_text(public: bytes) -> None:
    text = signer_text(public)
    assert text.startswith("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI")
    assert signer_key(text) == public
    assert signer_key(f"{text} comment ssh-like words") == public


def test_no_text_of_another_length() -> None:
    with pytest.raises(InvalidArgumentError, match="32 bytes, not 33"):
        signer_text(bytes(33))


def test_without_cryptography_only_signatures_are_missed() -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from cas_zarr.errors import MissingDependencyError\n"
        "from cas_zarr.repository import signing\n"
        "from cas_zarr.repository.commit import Commit\n"
        "from cas_zarr.cid import BLAKE3, DAG_JSON, cid_of\n"
        "commit = Commit(root=cid_of(DAG_JSON, BLAKE3, b''))\n"
        "assert not signing.check(commit).valid\n"
        "for call in (lambda: signing.load_key(bytes(32)), lambda: signing.sign(commit, None)):\n"
        "    try:\n"
        "        call()\n"
        "    except MissingDependencyError as error:\n"
        "        assert 'cas_zarr[sign]' in str(error)\n"
        "    else:\n"
        "        raise SystemExit('it was not missed')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_signature_with_a_field_more_is_not_read() -> None:
    value = dagcbor.decode(sign(COMMIT, KEY).to_block()[1])
    block: Callable[[], Commit] = lambda: Commit.from_block(  # noqa: E731
        cid_of(DAG_CBOR, BLAKE3, data), data
    )
    data = dagcbor.encode({**value, "signer": PUBLIC})
    with pytest.raises(FormatError, match="signer"):
        block()
