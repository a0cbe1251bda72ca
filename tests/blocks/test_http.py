"""The HTTP client alone, against servers over bare sockets: right, bounded, and clear when not."""

from __future__ import annotations

import gzip
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from servers.certificates import Authority
from servers.loopback import Scripted, Talk

from cas_zarr.blocks.http import HttpClient, Watch
from cas_zarr.blocks.transport import Connection
from cas_zarr.errors import InvalidArgumentError, RemoteError

Script = Callable[[Talk], object]
Start = Callable[..., Scripted]

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"  # up to the end of the connection
SECRET = "s3cret"


@pytest.fixture
def serving() -> Iterator[Start]:
    """Start servers that end with the test."""
    with ExitStack() as stack:

        def start(*scripts: Script, **options: object) -> Scripted:
            return stack.enter_context(Scripted(*scripts, **options))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with HttpClient(timeout=5.0) as client:
        yield client


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def says(*pieces: bytes, then: Script = Talk.hold) -> Script:
    """Return a script that takes one request and sends bytes."""

    def script(talk: Talk) -> None:
        talk.request()
        talk.send(*pieces)
        then(talk)

    return script


def hangs_up(talk: Talk) -> None:
    """End the connection."""


def echoes(talk: Talk) -> None:
    """Answer every request with what it was."""
    while True:
        request = talk.request()
        talk.answer(b"" if request.method == "HEAD" else request.body)


# -- requests and answers ---------------------------------------------------------------------


def test_an_answer_has_status_headers_and_body(serving: Start, client: HttpClient) -> None:
    server = serving(
        says(b"HTTP/1.1 418 Tea\r\nX-One: a\r\nx-one: b\r\nContent-Length: 3\r\n\r\npot")
    )
    answer = client.request("GET", f"{server.url}/a/b?c=d#e", headers={"X-Mine": "1"})
    assert (answer.status, answer.body, answer.headers["x-one"]) == (418, b"pot", "a, b")
    asked = server.requests[0]
    assert (asked.method, asked.target) == ("GET", "/a/b?c=d")
    assert asked.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": "cas_zarr",
        "accept-encoding": "identity",
        "x-mine": "1",
    }


def test_bodies_of_known_and_unknown_length_arrive_whole(
    serving: Start, client: HttpClient
) -> None:
    server = serving(echoes)
    large = bytes(range(256)) * 4096  # 1 MiB
    for body in (b"", b"x", large):
        assert client.request("POST", server.url, body=body).body == body
    pieces = [b"", b"one", b"", b"two" * 100_000, large, b"end"]
    assert client.request("POST", server.url, body=iter(pieces)).body == b"".join(pieces)
    assert client.request("POST", server.url, body=iter([])).body == b""
    assert client.request("POST", server.url).body == b""
    known, unknown, none = server.requests[0], server.requests[3], server.requests[5]
    assert known.headers["content-length"] == "0"
    assert unknown.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in unknown.headers
    assert none.headers["content-length"] == "0"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_answers_without_a_body_end_with_their_headers(
    serving: Start, client: HttpClient, status: str
) -> None:
    def script(talk: Talk) -> None:
        talk.request()
        talk.send(f"HTTP/1.1 {status}\r\n\r\n".encode())
        echoes(talk)

    server = serving(script)
    assert client.request("GET", server.url).status == int(status[:3])
    assert client.request("POST", server.url, body=b"next").body == b"next"
    assert server.connections == 1


def test_head_ends_with_the_headers(serving: Start, client: HttpClient) -> None:
    def script(talk: Talk) -> None:
        talk.request()
        talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        echoes(talk)

    server = serving(script)
    answer = client.request("HEAD", server.url, limit=10)
    assert (answer.headers["content-length"], answer.body) == ("100000000", b"")
    assert client.request("POST", server.url, body=b"next").body == b"next"
    assert server.connections == 1


@pytest.mark.parametrize("code", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_what_comes_before_the_answer_is_skipped(
    serving: Start, client: HttpClient, code: str
) -> None:
    def script(talk: Talk) -> None:
        talk.request()
        talk.send(f"HTTP/1.1 {code}\r\nLink: </x>\r\n\r\n".encode() * 2)
        talk.wait(0.1)
        talk.answer(b"first")
        echoes(talk)

    server = serving(script)
    assert client.request("GET", server.url).body == b"first"
    assert client.request("POST", server.url, body=b"second").body == b"second"


def test_a_server_that_changes_the_protocol_is_refused(serving: Start, client: HttpClient) -> None:
    server = serving(says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"))
    with pytest.raises(RemoteError, match="101") as caught:
        client.request("GET", server.url)
    assert caught.value.status == 101


def test_chunks_with_extensions_and_trailers_are_read(serving: Start, client: HttpClient) -> None:
    body = b"4;a=b\r\nWiki\r\n005\r\npedia\r\n0\r\nX-Stream-Error: broke off\r\nX-More: 1\r\n\r\n"

    def script(talk: Talk) -> None:
        talk.request()
        talk.send(CHUNKED)
        for at in range(len(body)):
            talk.send(body[at : at + 1])
        echoes(talk)

    server = serving(script)
    with client.stream("GET", server.url) as stream:
        assert not stream.trailers
        assert stream.read_all() == b"Wikipedia"
        assert stream.trailers == {"x-stream-error": "broke off", "x-more": "1"}
    assert client.request("POST", server.url, body=b"next").body == b"next"
    assert server.connections == 1


def test_lines_come_as_they_are_sent(serving: Start, client: HttpClient) -> None:
    asked = threading.Event()

    def script(talk: Talk) -> None:
        talk.request()
        talk.send(CHUNKED, b"6\r\none\ntw\r\n")
        asked.wait(10)
        talk.send(b"9\r\no\n\nthree\n\r\n4\r\nfour\r\n0\r\n\r\n")
        talk.hold()

    with client.stream("GET", serving(script).url) as stream:
        lines = stream.lines(5)
        assert next(lines) == b"one"
        asked.set()
        assert list(lines) == [b"two", b"", b"three", b"four"]


def test_a_stream_is_read_as_a_file(serving: Start, client: HttpClient) -> None:
    server = serving(says(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"))
    with client.stream("GET", server.url) as stream:
        assert stream.readable()
        assert not stream.seekable()
        assert stream.read(0) == b""
        assert stream.read(4) == b"0123"
        assert stream.read(-1) == b"456789"
        assert stream.read() == b""


# -- answers that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
        CHUNKED,
        CHUNKED + b"5\r\n123",
        CHUNKED + b"5\r\n12345",
        CHUNKED + b"5\r\n12345\r\n",
        CHUNKED + b"5\r\n12345\r\n0\r\nX-Half",
        CHUNKED + b"5\r\n12345\r\n0\r\n",
        CHUNKED + b"what\r\n12345\r\n0\r\n\r\n",
    ],
)
def test_a_body_that_is_cut_off_is_no_body(
    serving: Start, client: HttpClient, answer: bytes
) -> None:
    server = serving(says(answer, then=hangs_up))
    with pytest.raises(RemoteError, match="cut off; try again"):
        client.request("GET", server.url)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: identity, GZIP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    ],
)
def test_an_encoding_that_was_not_asked_for_is_refused(
    serving: Start, client: HttpClient, answer: bytes
) -> None:
    server = serving(says(answer, gzip.compress(b"data"), then=hangs_up))
    with pytest.raises(RemoteError, match=r"encoding .* not asked for; use") as caught:
        client.request("GET", server.url)
    assert caught.value.status == 200


@pytest.mark.parametrize("encoding", ["identity", "IDENTITY", ""])
def test_no_encoding_is_accepted(serving: Start, client: HttpClient, encoding: str) -> None:
    server = serving(
        lambda talk: talk.head() or talk.answer(b"x", extra=f"Content-Encoding: {encoding}\r\n")
    )
    assert client.request("GET", server.url).body == b"x"


def test_a_body_beyond_the_limit_is_not_read(serving: Start, client: HttpClient) -> None:
    limit = 100_000
    for head, piece in (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", b""),
        (ENDLESS, bytes(limit + 1)),
        (CHUNKED, b"186a1\r\n" + bytes(limit + 1) + b"\r\n"),
    ):
        server = serving(says(head, piece))
        with pytest.raises(RemoteError, match=r"at most 100000 |more than the 100000 "):
            client.request("GET", server.url, limit=limit)
    server = serving(says(CHUNKED, b"186a0\r\n" + bytes(limit) + b"\r\n0\r\n\r\n"))
    assert client.request("GET", server.url, limit=limit).body == bytes(limit)


def test_a_claimed_length_allocates_nothing(serving: Start, client: HttpClient) -> None:
    server = serving(says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\nabc"))
    with client.stream("GET", server.url) as stream:
        assert stream.read(-1) == b"abc"
    server = serving(says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", b"abc"))
    tracemalloc.start()
    try:
        with client.stream("GET", server.url) as stream:
            assert stream.read(1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_body_in_small_pieces_takes_no_more_memory(serving: Start, client: HttpClient) -> None:
    size = 60_000
    server = serving(says(CHUNKED, b"2\r\nab\r\n" * (size // 2), b"0\r\n\r\n"))
    with client.stream("GET", server.url) as stream:
        first = stream.read()
        tracemalloc.start()
        try:
            body = stream.read_all()
            assert tracemalloc.get_traced_memory()[1] < 6 * size
        finally:
            tracemalloc.stop()
    assert first + body == b"ab" * (size // 2)


def test_a_line_beyond_the_limit_is_not_given(serving: Start, client: HttpClient) -> None:
    for body in (b"5\r\nshort\r\n1\r\n\n\r\n8\r\ntoo long\r\n", b"f\r\nshort\ntoo long\n\r\n"):
        got: list[bytes] = []
        stream = client.stream("GET", serving(says(CHUNKED, body)).url)
        with stream, pytest.raises(RemoteError, match="more than 7 bytes"):
            got.extend(stream.lines(7))
        assert got == [b"short"]


def test_headers_beyond_the_limit_are_refused_before_they_are_read(
    serving: Start, client: HttpClient
) -> None:
    def one_line(talk: Talk) -> None:
        talk.request()
        talk.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
        fill(talk, b"x" * 1000)

    def many_lines(talk: Talk) -> None:
        talk.request()
        talk.send(b"HTTP/1.1 200 OK\r\n")
        fill(talk, b"X-Long: " + b"x" * 10_000 + b"\r\n")

    def many_continues(talk: Talk) -> None:
        talk.request()
        fill(talk, b"HTTP/1.1 103 Early Hints\r\nX-A: " + b"x" * 1000 + b"\r\n\r\n")

    def fill(talk: Talk, piece: bytes) -> None:
        # Neither more than what is looked at first, nor an end: who reads on waits for ever.
        rest = 90_000
        while rest > 0:
            talk.send(piece)
            rest -= len(piece)
        talk.hold()

    for script in (one_line, many_lines, many_continues):
        server = serving(script)
        with pytest.raises(RemoteError, match=r"headers have more than|not that of an http server"):
            client.request("GET", server.url)


def test_headers_up_to_the_limit_are_read(serving: Start, client: HttpClient) -> None:
    extra = "".join(f"X-{row}: {'x' * 6000}\r\n" for row in range(10))
    server = serving(lambda talk: talk.head() or talk.answer(bytes(100_000), extra=extra))
    answer = client.request("GET", server.url)
    assert len(answer.body) == 100_000
    assert answer.headers["x-9"] == "x" * 6000


@pytest.mark.parametrize(
    "answer",
    [b"\x00\x01\x02\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\r\n\r\n"],
)
def test_what_is_no_http_is_told(serving: Start, client: HttpClient, answer: bytes) -> None:
    server = serving(says(answer))
    with pytest.raises(RemoteError, match="not that of an http server") as caught:
        client.request("GET", server.url)
    assert server.url in str(caught.value)


def test_whatever_a_server_sends_is_an_answer_or_a_clear_error(serving: Start) -> None:
    rng = random.Random(7)
    sound = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: a\r\n\r\nhello",
        CHUNKED + b"5;a=b\r\nhello\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 302 Found\r\nLocation: /x?y=z\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n",
    ]
    strange = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b":",
        b" ",
        b"-1",
        b"9" * 30,
        b"\xff",
        b"\x0b",
        b"\x1c",
    ]
    strange += [b"chunked", b"Location: //[::1", b"0\r\n", b"\r\n ", b"\x1b[31m", b"=?utf-8?b?/?="]
    sent = b""

    def script(talk: Talk) -> None:
        talk.request()
        talk.send(sent)

    server = serving(script)
    answers = 0
    messages: list[str] = []
    with HttpClient(timeout=2.0) as client:
        for _ in range(500):
            data = bytearray(rng.choice(sound))
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(data))
                cut = rng.choice([0, 0, 1, 6])
                data[at : at + cut] = rng.choice(strange) if cut < 6 else b""
            sent = bytes(data)
            try:
                with client.stream(rng.choice(["GET", "POST", "HEAD"]), server.url) as stream:
                    _ = stream.read_all() if rng.random() < 0.5 else list(stream.lines())
                answers += 1
            except RemoteError as error:
                messages.append(str(error))
    assert min(answers, len(messages)) > 50
    assert [each for each in messages if not each.isprintable()] == []


def test_endless_trailers_end(serving: Start) -> None:
    def script(talk: Talk) -> None:
        talk.request()
        talk.send(CHUNKED, b"1\r\nx\r\n0\r\n")
        while True:
            talk.send(b"X-A: b\r\n" * 1000)

    with HttpClient(timeout=None) as client, pytest.raises(RemoteError, match="http server"):
        client.request("GET", serving(script).url)


# -- uploads that are answered early, or not at all -------------------------------------------


def test_a_server_that_answers_early_and_hangs_up_is_heard(
    serving: Start, client: HttpClient
) -> None:
    def script(talk: Talk) -> None:
        talk.head()
        talk.answer(b"no room", status="413 Too Large")

    server = serving(script)
    for body in (bytes(8 << 20), iter([bytes(1 << 20)] * 8)):
        answer = client.request("POST", server.url, body=body)
        assert (answer.status, answer.body) == (413, b"no room")
    assert server.connections == 2  # what was half sent serves no other request


def test_a_server_that_answers_early_and_reads_on_is_heard(
    serving: Start, client: HttpClient
) -> None:
    def script(talk: Talk) -> None:
        talk.head()
        talk.answer(b"no room", status="413 Too Large")
        while talk.sock.recv(1 << 20):
            pass

    answer = client.request("POST", serving(script).url, body=iter([bytes(1 << 20)] * 8))
    assert (answer.status, answer.body) == (413, b"no room")


def test_an_upload_may_take_longer_than_an_answer(serving: Start) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(8):
            time.sleep(0.1)
            yield bytes(1 << 18)

    with HttpClient(timeout=0.3) as client:
        answer = client.request("POST", serving(echoes).url, body=pieces())
    assert len(answer.body) == 8 << 18


def test_a_server_that_reads_nothing_is_given_up(serving: Start) -> None:
    server = serving(lambda talk: talk.hold())
    with HttpClient(timeout=0.3) as client, pytest.raises(RemoteError, match=r"within 0\.3 s"):
        client.request("POST", server.url, body=bytes(64 << 20))


def test_a_server_that_reads_slowly_is_given_up_after_the_whole_time(serving: Start) -> None:
    def script(talk: Talk) -> None:
        while talk.sock.recv(1 << 16):
            talk.wait(0.05)

    began = time.monotonic()
    with HttpClient(timeout=2.0) as client, pytest.raises(RemoteError, match="within"):
        client.request("POST", serving(script).url, body=bytes(64 << 20), total=0.5)
    assert time.monotonic() - began < 10  # 50 s of trickling


def test_what_the_body_raises_is_raised_and_ends_the_request(
    serving: Start, client: HttpClient
) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"begin"
        raise OSError("the disk of the sender")

    server = serving(echoes)
    assert client.request("POST", server.url, body=b"a").body == b"a"
    with pytest.raises(OSError, match="the disk of the sender") as caught:
        client.request("POST", server.url, body=pieces())
    assert not isinstance(caught.value, RemoteError)
    assert client.request("POST", server.url, body=b"b").body == b"b"
    assert [each.body for each in server.requests] == [b"a", b"b"]


# -- connections ------------------------------------------------------------------------------


def test_a_connection_serves_one_request_after_the_other(
    serving: Start, client: HttpClient
) -> None:
    server = serving(echoes)
    for row in range(20):
        body = bytes([row]) * (1 << row % 18)
        assert client.request("POST", server.url, body=body).body == body
    assert server.connections == 1
    client.close()
    assert client.request("POST", server.url, body=b"x").body == b"x"
    assert server.connections == 2


def test_only_so_many_connections_are_kept(serving: Start) -> None:
    server = serving(echoes)
    gate = threading.Barrier(6)

    def body() -> Iterator[bytes]:
        gate.wait(10)
        yield b"x"

    with HttpClient(connections=2) as client, ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            list(pool.map(lambda _: client.request("POST", server.url, body=body()), range(6)))
        connections = server.connections
        for _ in range(3):
            client.request("GET", server.url)
        assert server.connections == connections


def test_an_answer_that_is_left_early_ends_its_connection(
    serving: Start, client: HttpClient
) -> None:
    server = serving(says(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"), echoes)
    with client.stream("GET", server.url) as stream:
        assert stream.read() == b"12345"
    with pytest.raises(RemoteError, match="closed before its end"):  # and not taken for it
        stream.read()
    assert client.request("POST", server.url, body=b"x").body == b"x"
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"]
)
def test_a_connection_that_the_server_ends_is_not_used_again(
    serving: Start, client: HttpClient, answer: bytes
) -> None:
    server = serving(says(answer + b"Content-Length: 2\r\n\r\nok"))
    assert client.request("GET", server.url).body == b"ok"
    assert client.request("GET", server.url).body == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize("secure", [False, True])
def test_what_nobody_asked_for_is_not_taken_for_the_next_answer(
    serving: Start, authority: Authority, secure: bool
) -> None:

    def script(talk: Talk) -> None:
        talk.request()
        said = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
        talk.send(said + said)
        talk.hold()

    server = serving(script, echoes, context=authority.server() if secure else None)
    with HttpClient(timeout=5, context=authority.client()) as client:
        assert client.request("GET", server.url).body == bytes(100_000)
        time.sleep(0.1)
        assert client.request("POST", server.url, body=b"second").body == b"second"


def hangs_up_on_the_second(talk: Talk) -> None:
    """Answer, and end the connection when the next request is there: as after an idle time."""
    talk.request()
    talk.answer(b"first")
    talk.head()


@pytest.mark.parametrize("secure", [False, True])
def test_a_kept_connection_that_turns_out_closed_is_replaced(
    serving: Start, authority: Authority, secure: bool
) -> None:
    server = serving(hangs_up_on_the_second, context=authority.server() if secure else None)
    with HttpClient(timeout=5, context=authority.client()) as client:
        for _ in range(3):
            assert client.request("GET", server.url).body == b"first"
        assert server.connections == 3
        # Nobody knows what became of it: the caller decides.
        with pytest.raises(RemoteError, match="closed the connection"):
            client.request("POST", server.url, body=b"x")
        assert client.request("POST", server.url, body=b"x", retries=1).body == b"first"


def test_what_can_be_sent_only_once_has_a_connection_of_its_own(
    serving: Start, client: HttpClient
) -> None:
    server = serving(hangs_up_on_the_second)
    assert client.request("GET", server.url).body == b"first"
    assert client.request("POST", server.url, body=iter([b"x"])).body == b"first"


def test_a_fresh_connection_that_is_closed_is_told(serving: Start, client: HttpClient) -> None:
    server = serving(lambda talk: talk.head())
    with pytest.raises(RemoteError, match="closed the connection before it had answered"):
        client.request("GET", server.url)
    assert server.connections == 1


# -- asking again -----------------------------------------------------------------------------


def busy(status: str, extra: str = "") -> Script:
    def script(talk: Talk) -> None:
        while True:
            talk.request()
            talk.answer(b"busy", status=status, extra=extra)

    return script


@pytest.mark.parametrize("status", ["429 Busy", "502 Bad", "503 Busy", "504 Late"])
def test_a_server_that_is_busy_is_asked_again(
    serving: Start, client: HttpClient, status: str
) -> None:
    server = serving(busy(status))
    answer = client.request("POST", server.url, body=b"x", retries=2)
    assert (answer.status, answer.body) == (int(status[:3]), b"busy")
    assert [each.body for each in server.requests] == [b"x"] * 3


def test_other_answers_are_final(serving: Start, client: HttpClient) -> None:
    for status in ("200 OK", "404 Not Found", "500 Broken", "501 No"):
        server = serving(busy(status))
        assert client.request("GET", server.url, retries=2).status == int(status[:3])
        assert len(server.requests) == 1


def test_a_broken_answer_is_asked_for_again(serving: Start, client: HttpClient) -> None:
    cut = says(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", then=hangs_up)
    server = serving(cut, says(CHUNKED, b"5\r\n12", then=hangs_up), hangs_up, echoes)
    assert client.request("POST", server.url, body=b"x", retries=3).body == b"x"
    assert server.connections == 4


def test_nonsense_and_what_can_be_sent_once_are_not_asked_for_again(
    serving: Start, client: HttpClient
) -> None:
    server = serving(says(b"nonsense\r\n\r\n"))
    with pytest.raises(RemoteError):
        client.request("GET", server.url, retries=3)
    assert server.connections == 1
    server = serving(busy("503 Busy"))
    assert client.request("POST", server.url, body=iter([b"x"]), retries=3).status == 503
    assert len(server.requests) == 1


def test_the_whole_time_is_that_of_all_attempts(serving: Start, client: HttpClient) -> None:
    server = serving(says())
    with pytest.raises(RemoteError, match="within"):
        client.request("GET", server.url, retries=5, total=0.4)
    assert server.connections == 1
    server = serving(busy("503 Busy", "Retry-After: 3\r\n"))
    began = time.monotonic()
    assert client.request("GET", server.url, retries=5, total=1.0).status == 503
    assert time.monotonic() - began < 3  # there is no time left for another
    assert len(server.requests) == 1


# -- time-outs, and giving up -----------------------------------------------------------------


def test_silence_and_trickles_have_an_end(serving: Start) -> None:
    def trickles(head: bytes) -> Script:
        def script(talk: Talk) -> None:
            talk.request()
            talk.send(head)
            while talk.wait(0.05):
                talk.send(b"x")

        return script

    began = time.monotonic()
    with HttpClient(timeout=0.3) as client:
        for script, total in (
            (says(), None),
            (says(ENDLESS + b"some"), None),
            (trickles(b"HTTP/1.1 200 OK\r\nX-Slow: "), None),  # twice the time-out
            (trickles(ENDLESS), 0.6),
            (trickles(CHUNKED), None),  # a chunk's length that never ends
        ):
            with pytest.raises(RemoteError, match=r"no more of it, within 0\.3 s"):
                client.request("GET", serving(script).url, total=total)
    assert time.monotonic() - began < 5


def test_a_request_has_time_outs_of_its_own(serving: Start, client: HttpClient) -> None:
    server = serving(says())
    with pytest.raises(RemoteError, match=r"within 0\.2 s"):
        client.request("GET", server.url, timeout=0.2)


def test_nobody_listening_and_hosts_without_address_are_told(client: HttpClient) -> None:
    with pytest.raises(RemoteError, match="nothing listens there"):
        client.request("GET", "http://127.0.0.1:9/")
    for host in ("no-such-host.invalid", "a..b", "x" * 64 + ".invalid"):
        with pytest.raises(RemoteError, match="the host has no address; check its name"):
            client.request("GET", f"http://{host}/")


def test_a_connection_that_does_not_come_about_is_given_up(
    serving: Start, authority: Authority
) -> None:
    server = serving(lambda talk: talk.hold())  # listens, and says nothing of TLS
    with HttpClient(timeout=9, connect_timeout=0.3, context=authority.client()) as client:
        with pytest.raises(RemoteError, match=r"within 0\.3 s"):
            client.request("GET", server.url.replace("http:", "https:"))
        with pytest.raises(RemoteError, match=r"within 0\.2 s"):
            client.request("GET", server.url.replace("http:", "https:"), connect_timeout=0.2)


@pytest.mark.parametrize("secure", [False, True])
def test_a_watch_tells_of_silence_once_and_the_answer_still_counts(
    serving: Start, authority: Authority, secure: bool
) -> None:
    told = threading.Event()
    times: list[float] = []

    def tell() -> None:
        times.append(time.monotonic())
        told.set()

    def script(talk: Talk) -> None:
        talk.request()
        if told.wait(10):
            talk.wait(0.2)
            talk.answer(b"late")

    server = serving(script, context=authority.server() if secure else None)
    with HttpClient(timeout=20, context=authority.client()) as client:
        watch = Watch(after=0.2, then=tell)
        assert client.request("GET", server.url, watch=watch).body == b"late"
    assert len(times) == 1


@pytest.mark.parametrize("secure", [False, True])
def test_a_watch_ends_a_request_from_another_thread(
    serving: Start, authority: Authority, secure: bool
) -> None:
    here = threading.Event()

    def script(talk: Talk) -> None:
        talk.request()
        talk.send(ENDLESS + b"some")
        here.set()
        talk.hold()

    server = serving(script, context=authority.server() if secure else None)
    with HttpClient(timeout=20, context=authority.client()) as client:
        watch = Watch()
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(client.request, "GET", server.url, watch=watch, retries=3)
            assert here.wait(10)
            watch.abort()
            with pytest.raises(RemoteError):
                asking.result(5)
        assert server.connections == 1  # and it is not asked again


def test_a_watch_that_has_ended_lets_the_connection_be(serving: Start, client: HttpClient) -> None:
    server = serving(echoes)
    watch = Watch()
    client.request("POST", server.url, body=b"a", watch=watch)
    watch.abort()
    assert client.request("POST", server.url, body=b"b").body == b"b"
    assert server.connections == 1
    with pytest.raises(RemoteError):
        client.request("POST", server.url, body=b"c", watch=watch)
    assert [each.body for each in server.requests] == [b"a", b"b"]


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("head", [ENDLESS, CHUNKED + b"ff\r\n", CHUNKED])
def test_another_thread_may_close_a_stream_in_the_middle(
    serving: Start, authority: Authority, head: bytes, secure: bool
) -> None:
    server = serving(says(head), echoes, context=authority.server() if secure else None)
    with HttpClient(timeout=20, context=authority.client()) as client:
        stream = client.stream("GET", server.url)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(stream.read_all)
            time.sleep(0.2)
            began = time.monotonic()
            stream.close()
            with pytest.raises(RemoteError, match="cut off"):
                reading.result(10)
            assert time.monotonic() - began < 5
        assert client.request("POST", server.url, body=b"x").body == b"x"


def test_another_thread_may_close_the_client_in_the_middle(serving: Start) -> None:
    asked, go = threading.Event(), threading.Event()

    def script(talk: Talk) -> None:
        talk.request()
        asked.set()
        go.wait(10)
        talk.answer(b"answer")
        talk.hold()

    with HttpClient(timeout=5) as client, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.request, "GET", serving(script).url)
        assert asked.wait(10)
        client.close()
        go.set()
        assert asking.result(10).body == b"answer"


def test_a_child_leaves_the_connections_of_its_parent_alone(
    serving: Start, client: HttpClient, forked: Callable[[Callable[[], object]], int]
) -> None:
    def script(talk: Talk) -> None:
        talk.request()
        talk.send(CHUNKED, b"5\r\nfirst\r\n")
        talk.request()  # nobody may speak in between
        talk.send(b"6\r\nsecond\r\n0\r\n\r\n")

    server = serving(script, echoes)
    with client.stream("GET", server.url) as stream:
        assert stream.read() == b"first"

        def child() -> None:
            stream.close()
            assert client.request("POST", server.url, body=b"child").body == b"child"
            client.close()

        assert forked(child) == 0
        connection: Connection = stream._connection
        connection.wire.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stream.read_all() == b"second"


# -- TLS --------------------------------------------------------------------------------------


def test_a_server_of_a_known_authority_is_spoken_to(serving: Start, authority: Authority) -> None:
    server = serving(echoes, context=authority.server())
    large = bytes(range(256)) * 8192
    with HttpClient(timeout=5, context=authority.client()) as client:
        for body in (b"a", large, b"b"):
            assert client.request("POST", server.url, body=body).body == body
        assert server.connections == 1


def test_other_certificates_are_refused(
    serving: Start, authority: Authority, client: HttpClient
) -> None:
    server = serving(echoes, context=authority.server())
    with pytest.raises(RemoteError, match="certificate is refused"):
        client.request("GET", server.url)
    other = serving(echoes, context=authority.server("example.invalid", "127.0.0.2"))
    trusting = HttpClient(context=authority.client())
    with trusting, pytest.raises(RemoteError, match="certificate is refused") as caught:
        trusting.request("GET", other.url, retries=3)
    assert "check the host's name" in str(caught.value)
    assert (len(server.requests), len(other.requests), other.connections) == (0, 0, 1)


def test_the_context_of_the_user_stays_as_it_is(serving: Start, authority: Authority) -> None:
    context = authority.client()
    before = context.sslsocket_class
    with HttpClient(context=context) as client:
        client.request("GET", serving(echoes, context=authority.server()).url)
    assert context.sslsocket_class is before


# -- redirects, addresses and secrets ---------------------------------------------------------


def redirects(*places: str, status: str = "302 Found") -> Script:
    left = list(places)

    def script(talk: Talk) -> None:
        while True:
            request = talk.request()
            if left:
                talk.answer(status=status, extra=f"Location: {left.pop(0)}\r\n")
            else:
                talk.answer(request.target.encode())

    return script


@pytest.mark.parametrize("status", ["301 A", "302 B", "303 C", "307 D", "308 E"])
def test_a_redirect_within_a_host_is_followed(
    serving: Start, client: HttpClient, status: str
) -> None:
    server = serving(redirects("/b?c=d", "e#f", "/g", status=status))
    answer = client.request("GET", f"{server.url}/a", headers={"authorization": SECRET})
    assert answer.body == b"/g"
    assert [each.target for each in server.requests] == ["/a", "/b?c=d", "/e", "/g"]
    assert {each.headers["authorization"] for each in server.requests} == {SECRET}


def test_only_so_many_redirects_are_followed(serving: Start, client: HttpClient) -> None:
    server = serving(redirects(*[f"/{row}" for row in range(50)]))
    with pytest.raises(RemoteError, match="more than 3 redirects") as caught:
        client.request("GET", server.url)
    assert caught.value.status == 302
    assert len(server.requests) == 4
    assert server.connections == 1


def test_a_redirect_elsewhere_is_told_and_nothing_is_sent_there(
    serving: Start, client: HttpClient
) -> None:
    elsewhere = serving(echoes)
    for place in (
        f"{elsewhere.url}/x",  # another port
        elsewhere.url.replace("127.0.0.1", "localhost"),
        "http://127.0.0.2/",
        "//example.invalid/x",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        f"http://user:pass@127.0.0.1:{elsewhere.port}/",
        "http://[::1/",
        "/a b",
        "",
    ):
        server = serving(redirects(place))
        with pytest.raises(RemoteError, match="which is another place; if you trust") as caught:
            client.request("GET", server.url, headers={"authorization": SECRET})
        assert caught.value.status == 302
        assert SECRET not in str(caught.value)
        assert "pass@" not in str(caught.value)
        assert len(server.requests) == 1
    assert not elsewhere.requests


def test_a_redirect_of_what_changes_something_is_the_answer(
    serving: Start, client: HttpClient
) -> None:
    server = serving(redirects("/b", status="307 Elsewhere"))
    answer = client.request("POST", server.url, body=b"x")
    assert (answer.status, answer.headers["location"]) == (307, "/b")


def test_addresses_that_are_none_are_refused_without_their_secrets(client: HttpClient) -> None:
    for url in (
        "",
        "127.0.0.1:80",
        "/path",
        "ftp://me:s3cret@127.0.0.1/",
        "http://me:s3cret@127.0.0.1/",
        "http://me:s3cret@127.0.0.1/ a",
        "http://127.0.0.1/ a?token=s3cret",
        "http://127.0.0.1/\r\nHost: x?s3cret",
        "http://127.0.0.1:99999/?s3cret",
        "http://127.0.0.1:0/?s3cret",
        "http://127.0.0.1:x/?s3cret",
        "http://[::1/?s3cret",
        "http:///?s3cret",
        "http://hôst/",
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            client.request("GET", url)
        assert SECRET not in str(caught.value)


def test_headers_that_are_none_are_refused_without_their_values(client: HttpClient) -> None:
    for name, value in (
        ("a b", "x"),
        ("", "x"),
        ("x", f"{SECRET}\r\nhost: y"),
        ("x", f"{SECRET}é"),
        ("x\n", "x"),
    ):
        with pytest.raises(InvalidArgumentError, match="header") as caught:
            client.request("GET", "http://127.0.0.1:9/", headers={name: value})
        assert SECRET not in str(caught.value)
        with pytest.raises(InvalidArgumentError, match="header"):
            HttpClient(headers={name: value})


def test_secrets_are_in_no_message_and_no_repr(serving: Start) -> None:
    server = serving(says(b"nonsense\r\n\r\n"))
    with HttpClient(headers={"Authorization": SECRET}) as client:
        assert SECRET not in repr(client)
        with pytest.raises(RemoteError) as caught:
            client.request("GET", f"{server.url}/a?token={SECRET}#{SECRET}")
    assert SECRET not in str(caught.value)
    assert f"{server.url}/a" in str(caught.value)


def test_an_address_of_ip_version_6_is_asked(client: HttpClient) -> None:
    with pytest.raises(RemoteError, match=r"GET http://\[::1\]:9/x: "):
        client.request("GET", "http://[::1]:9/x")
