"""The Pinning Service API, against a service on loopback; Kubo has checked that (tests/ipfs)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from branches import BEGIN, commit
from servers.pinning import TOKEN, Pinning, serve_pinning

from cas_zarr import Repository
from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of, format_cid
from cas_zarr.errors import InvalidArgumentError, NotFoundError, RemoteError
from cas_zarr.repository import pinning
from cas_zarr.repository.pinning import PinningService, pin_remote


def cid(text: str) -> CidBytes:
    return cid_of(RAW, BLAKE3, text.encode())


@pytest.fixture
def server() -> Iterator[Pinning]:
    with serve_pinning() as found:
        yield found


@pytest.fixture
def service(server: Pinning) -> PinningService:
    return PinningService(server.url, TOKEN)


@pytest.fixture
def repo() -> Iterator[Repository]:
    with Repository.memory() as repo:
        for number in range(3):
            commit(repo, f"commit {number}", BEGIN | {"a/c/0": b"%d" % number})
        yield repo


def test_a_pin_from_asking_to_deleting(server: Pinning, service: PinningService) -> None:
    pin = service.add(
        cid("a"), name="first", origins=["/ip4/127.0.0.1/tcp/4001"], meta={"app": "mine"}
    )
    assert (pin.cid, pin.state, pin.name) == (cid("a"), "queued", "first")
    assert pin.origins == ("/ip4/127.0.0.1/tcp/4001",)
    assert pin.meta == {"app": "mine"}
    assert pin.delegates
    seen: list[str] = []
    done = service.wait(pin.request_id, timeout=10, progress=lambda one: seen.append(one.state))
    assert done.state == "pinned"
    assert seen == ["queued", "pinning", "pinned"]
    assert service.status(pin.request_id) == done
    other = service.replace(pin.request_id, cid("b"), name="first")
    assert other.request_id != pin.request_id
    assert other.cid == cid("b")
    with pytest.raises(NotFoundError, match="check the id"):
        service.status(pin.request_id)
    service.delete(other.request_id)
    assert server.pins == {}
    with pytest.raises(NotFoundError):
        service.delete(other.request_id)


def test_lists_are_read_page_by_page(server: Pinning, service: PinningService) -> None:
    made = [service.add(cid(str(n)), name="even" if n % 2 == 0 else "odd") for n in range(450)]
    server.asked.clear()
    found = list(service.list())
    assert [pin.cid for pin in found] == [pin.cid for pin in reversed(made)]
    assert len(server.asked) == 3
    assert {pin.name for pin in service.list(name="odd")} == {"odd"}
    assert len(list(service.list(name="even"))) == 225
    assert [pin.request_id for pin in service.list(cid=cid("7"))] == [made[7].request_id]
    assert list(service.list(states=["failed"])) == []
    service.add(cid("x"), meta={"app": "mine"})
    assert [pin.cid for pin in service.list(meta={"app": "mine"})] == [cid("x")]
    with pytest.raises(InvalidArgumentError, match="no states"):
        list(service.list(states=["done"]))  # type: ignore[list-item]


def test_a_pin_that_fails_or_takes_too_long(server: Pinning, service: PinningService) -> None:
    server.failing.add(format_cid(cid("a")))
    with pytest.raises(RemoteError, match="nobody has it"):
        service.wait(service.add(cid("a")).request_id, timeout=10)
    with pytest.raises(RemoteError, match=r"not pinned .* within 0 s, it is queued"):
        service.wait(service.add(cid("b")).request_id, timeout=0)


def test_refusals_say_why_and_never_the_token(server: Pinning, service: PinningService) -> None:
    wrong = PinningService(server.url, "wr0ng")
    with pytest.raises(RemoteError, match="give one that the service knows") as caught:
        wrong.add(cid("a"))  # the server repeats the token in its answer
    assert caught.value.status == 401
    assert "wr0ng" not in str(caught.value)
    assert TOKEN not in repr(service)
    server.broke = True
    with pytest.raises(RemoteError, match="no means left") as caught:
        service.add(cid("a"))
    assert caught.value.status == 409
    elsewhere = PinningService(server.url + "/nowhere", TOKEN)
    with pytest.raises(NotFoundError, match="the address of the service"):
        elsewhere.add(cid("a"))
    with pytest.raises(RemoteError):
        PinningService("http://127.0.0.1:1", TOKEN).add(cid("a"))


GOOD: dict[str, Any] = {
    "requestid": "1",
    "status": "pinned",
    "created": "2026-01-01T00:00:00Z",
    "pin": {"cid": format_cid(cid("a"))},
    "delegates": [],
}


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        "",
        GOOD | {"requestid": None},
        GOOD | {"requestid": "x" * 2000},
        GOOD | {"requestid": "\udcff"},
        GOOD | {"status": "done"},
        GOOD | {"status": []},
        GOOD | {"pin": None},
        GOOD | {"pin": {"cid": 5}},
        GOOD | {"pin": {"cid": "nonsense"}},
    ],
)
def test_answers_that_are_none(
    server: Pinning, service: PinningService, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "add", lambda _: answer)
    with pytest.raises(RemoteError, match="does not answer as a pinning service"):
        service.add(cid("a"))
    monkeypatch.setattr(server, "listed", lambda _: {"count": 1, "results": [answer]})
    with pytest.raises(RemoteError, match="does not answer as a pinning service"):
        list(service.list())


def test_a_list_without_an_end_ends(
    server: Pinning, service: PinningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "listed", lambda _: {"count": 10**9, "results": [GOOD]})
    assert len(list(service.list())) == 1
    assert json.loads(json.dumps(GOOD)) == GOOD


def test_a_list_that_always_has_more_is_given_up(
    server: Pinning, service: PinningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "_MAX_PAGES", 3)
    numbers = count()
    monkeypatch.setattr(
        server,
        "listed",
        lambda _: {"count": 10**9, "results": [GOOD | {"requestid": str(next(numbers))}]},
    )
    with pytest.raises(RemoteError, match="without an end"):
        list(service.list())
    assert next(numbers) == 3


def test_arguments_of_no_sense() -> None:
    for endpoint, token in (("ftp://x", "t"), ("http://x", ""), ("http://x", "ä")):
        with pytest.raises(InvalidArgumentError):
            PinningService(endpoint, token)
    service = PinningService("http://127.0.0.1:1/pins", TOKEN)
    assert service.endpoint == "http://127.0.0.1:1"
    for request_id in ("", "..", "x" * 2000):
        with pytest.raises(InvalidArgumentError):
            service.status(request_id)
    with pytest.raises(InvalidArgumentError, match="at most 255"):
        service.add(cid("a"), name="x" * 256)
    with pytest.raises(InvalidArgumentError, match="origins"):
        service.add(cid("a"), origins="/ip4/127.0.0.1")


def test_a_version_is_pinned_once(
    server: Pinning, service: PinningService, repo: Repository
) -> None:
    first, second = (repo.resolve(one).root for one in ("main~1", "main"))
    pin = pin_remote(repo, service, "main~1", name="weather", timeout=10)
    assert (pin.cid, pin.state) == (first, "pinned")
    assert pin_remote(repo, service, "main~1", name="weather") == pin
    assert len(server.pins) == 1
    assert pin_remote(repo, service, name="weather").cid == second  # in place of the other
    assert [one["pin"]["cid"] for one in server.pins.values()] == [format_cid(second)]
    pin_remote(repo, service, "main~1")  # without a name it stands beside it
    assert len(server.pins) == 2


def test_a_history_is_pinned_by_its_commit(service: PinningService, repo: Repository) -> None:
    found = repo.resolve("main")
    assert pin_remote(repo, service, history=True).cid == found.commit
    with pytest.raises(InvalidArgumentError, match="no history"):
        pin_remote(repo, service, format_cid(found.root), history=True)


def test_a_service_that_pins_something_else(
    server: Pinning,
    service: PinningService,
    repo: Repository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "add", lambda _: GOOD)
    with pytest.raises(RemoteError, match="was asked for a pin of"):
        pin_remote(repo, service)


def test_what_a_service_does_not_filter_is_filtered_here(
    server: Pinning,
    service: PinningService,
    repo: Repository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = service.add(cid("theirs"), name="weather of others", meta={"app": "theirs"})
    service.wait(theirs.request_id, timeout=10)
    everything = server.listed

    def unfiltered(query: dict[str, list[str]]) -> dict[str, Any]:
        kept = {key: query[key] for key in ("before", "limit") if key in query}
        return everything(kept | {"status": ["queued,pinning,pinned,failed"]})

    monkeypatch.setattr(server, "listed", unfiltered)
    assert list(service.list(name="weather")) == []
    assert list(service.list(cid=cid("x"))) == []
    assert list(service.list(states=["failed"])) == []
    assert list(service.list(meta={"app": "mine"})) == []
    assert [pin.cid for pin in service.list(meta={"app": "theirs"})] == [theirs.cid]
    pin_remote(repo, service, name="weather")  # beside the pin of another name, not in its place
    assert theirs.request_id in server.pins


def test_a_list_without_times_is_no_shorter_list(
    server: Pinning, service: PinningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for created in (None, 5, "", "\udcff"):
        untimed = GOOD | {"created": created}
        monkeypatch.setattr(server, "listed", lambda _, one=untimed: {"count": 2, "results": [one]})
        with pytest.raises(RemoteError, match="when it was created"):
            list(service.list())


def test_a_token_that_is_said_back_in_an_answer_is_not_shown(
    server: Pinning, service: PinningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in (GOOD | {"status": TOKEN}, GOOD | {"pin": {"cid": f"b{TOKEN}"}}):
        monkeypatch.setattr(server, "add", lambda _, answer=answer: answer)
        with pytest.raises(RemoteError, match="does not answer as") as caught:
            service.add(cid("a"))
        assert TOKEN not in str(caught.value)
    failed = GOOD | {"status": "failed", "info": {"status_details": f"no\n{TOKEN}"}}
    server.pins["1"] = failed
    with pytest.raises(RemoteError, match="failed to pin") as caught:
        service.wait("1")
    assert TOKEN not in str(caught.value)


def test_an_address_with_a_secret_is_refused_and_not_shown() -> None:
    for endpoint in ("https://user:pa55@x.example", "https://x.example?key=pa55", "u:pa55@x", 5):
        with pytest.raises(InvalidArgumentError) as caught:
            PinningService(endpoint, TOKEN)  # type: ignore[arg-type]
        assert "pa55" not in str(caught.value)


def test_a_removal_is_not_asked_for_twice(server: Pinning, service: PinningService) -> None:
    """The second time there is nothing: that would read as if there had never been."""
    pin = service.add(cid("a"))
    server.busy = True
    with pytest.raises(RemoteError) as caught:
        service.delete(pin.request_id)
    assert caught.value.status == 503


def test_a_pin_that_turns_into_another_while_it_is_waited_for(
    server: Pinning,
    service: PinningService,
    repo: Repository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "look", lambda _: GOOD)
    with pytest.raises(RemoteError, match="was asked for a pin of"):
        pin_remote(repo, service, timeout=10)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "\udcff"},
        {"name": 5},
        {"meta": {"a": 5}},
        {"meta": {"a": "\udcff"}},
        {"origins": [5]},
        {"origins": ["\udcff"]},
    ],
)
def test_what_is_no_text_is_refused_before_anything_is_asked(
    server: Pinning, service: PinningService, repo: Repository, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError):
        pin_remote(repo, service, **options)
    assert server.asked == []
