"""SessionConsistencyMiddleware: who gets a token, what it demands, and what caches and browsers are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from ledger.models import Event

from django_raftsqlite import Unavailable, exceptions, reads, session_token
from django_raftsqlite.consistency import user_session
from django_raftsqlite.dbapi.freshness import Seen
from django_raftsqlite.middleware import SessionConsistencyMiddleware
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.tokens import decode, encode

COOKIE, HEADER = SessionConsistencyMiddleware.cookie_name, SessionConsistencyMiddleware.header_name
LINEAGE = bytes(16)
FUTURE = 10**9


def write(request: HttpRequest) -> HttpResponse:
    return HttpResponse(Event.objects.create(text=request.GET.get("text", "x")).pk)


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(Event.objects.count())


async def awrite(request: HttpRequest) -> HttpResponse:
    return HttpResponse((await Event.objects.acreate(text="x")).pk)


async def aread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await Event.objects.acount())


def neither(request: HttpRequest) -> HttpResponse:
    return HttpResponse("nothing")


@reads("local")
def read_locally(request: HttpRequest) -> HttpResponse:
    return read(request)


@reads("leader")
def read_from_leader(request: HttpRequest) -> HttpResponse:
    return read(request)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def body() -> Iterator[str]:
        session = user_session()
        assert session is not None
        yield str(Event.objects.count())
        yield f" of {session.seen['default'].reached}"

    return StreamingHttpResponse(body())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[str]:
        session = user_session()
        assert session is not None
        yield str(await Event.objects.acount())
        yield f" of {session.seen['default'].reached}"

    return StreamingHttpResponse(body())


def fails(request: HttpRequest) -> HttpResponse:
    Event.objects.create(text="x")
    raise RuntimeError("after it wrote")


def unavailable(request: HttpRequest) -> HttpResponse:
    raise Unavailable("no quorum", "no quorum")


urlpatterns = [
    path("write/", write),
    path("read/", read),
    path("awrite/", awrite),
    path("aread/", aread),
    path("neither/", neither),
    path("read_locally/", read_locally),
    path("read_from_leader/", read_from_leader),
    path("stream/", stream),
    path("astream/", astream),
    path("fails/", fails),
    path("unavailable/", unavailable),
]

MIDDLEWARE = ["django_raftsqlite.middleware.SessionConsistencyMiddleware"]


@pytest.fixture(autouse=True)
def _urls(database: Any) -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=MIDDLEWARE):
        yield


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The versions that were waited for; this node gets none of them in time."""
    asked: list[int] = []

    def reach(_node: ProcessNode, _lineage: bytes, version: int, *, timeout: float) -> bool:
        asked.append(version)
        raise exceptions.Unavailable("this node lags", "too slow")

    monkeypatch.setattr(ProcessNode, "reach", reach)
    return asked


def version() -> int:
    return decode(session_token())["default"].version


def token_of(response: HttpResponseBase) -> Seen:
    token = response.headers[HEADER]
    assert response.cookies[COOKIE].value == token
    return decode(token)["default"]


def has_token(response: HttpResponseBase) -> bool:
    assert (HEADER in response.headers) == (COOKIE in response.cookies)
    return HEADER in response.headers


def test_who_wrote_gets_a_token_of_it_in_cookie_and_header() -> None:
    response = Client().get("/write/")
    assert token_of(response).version == version()


def test_who_only_reads_gets_none_and_stays_fit_for_caches() -> None:
    for path_ in ("/read/", "/neither/", "/read_from_leader/"):
        response = Client().get(path_)
        assert not has_token(response)
        assert "Vary" not in response.headers


def test_who_wrote_and_then_failed_gets_one_all_the_same() -> None:
    response = Client(raise_request_exception=False).get("/fails/")
    assert response.status_code == 500
    assert token_of(response).version == version()


def test_the_token_is_renewed_when_something_newer_was_read_and_only_then() -> None:
    """Without that, a user who has read it on one node would not find it on another."""
    client = Client()
    client.get("/write/")
    assert not has_token(client.get("/read/"))
    Event.objects.create(text="by somebody else")
    assert not has_token(client.get("/neither/"))
    assert token_of(client.get("/read/")).version == version()
    assert not has_token(client.get("/read/"))


def test_what_a_user_has_seen_here_is_not_waited_for(reached: list[int]) -> None:
    client = Client()
    client.get("/write/")
    assert client.get("/read/").status_code == 200
    assert reached == []


@pytest.mark.parametrize("where", ["cookie", "header"])
def test_a_read_waits_for_what_the_user_has_seen_elsewhere_and_is_answered_by_503_when_it_does_not_come(
    reached: list[int], where: str
) -> None:
    token = encode({"default": Seen(LINEAGE, FUTURE)})
    client = Client()
    headers = {}
    if where == "cookie":
        client.cookies[COOKIE] = token
    else:
        headers = {HEADER: token}
    response = client.get("/read/", headers=headers)
    assert reached == [FUTURE]
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert "no-store" in response.headers["Cache-Control"]
    assert not has_token(response)


def test_what_reads_nothing_or_says_that_it_may_be_old_does_not_wait(reached: list[int]) -> None:
    client = Client()
    client.cookies[COOKIE] = encode({"default": Seen(LINEAGE, FUTURE)})
    assert client.get("/neither/").status_code == 200
    response = client.get("/read_locally/")
    assert response.status_code == 200 and not has_token(response)
    assert reached == []


def test_the_newer_of_cookie_and_header_counts(reached: list[int]) -> None:
    client = Client()
    client.cookies[COOKIE] = encode({"default": Seen(LINEAGE, FUTURE + 1)})
    client.get("/read/", headers={HEADER: encode({"default": Seen(LINEAGE, FUTURE)})})
    client.get("/read/", headers={HEADER: encode({"default": Seen(LINEAGE, FUTURE + 2)})})
    assert reached == [FUTURE + 1, FUTURE + 2]


@pytest.mark.parametrize("seen", [Seen(LINEAGE, FUTURE), Seen(b"x" * 16, 1)], ids=["lost", "of another lineage"])
@pytest.mark.parametrize("path_", ["/read/", "/read_from_leader/", "/write/"])
def test_a_token_of_a_state_that_the_group_does_not_have_is_replaced(seen: Seen, path_: str) -> None:
    """The group was made anew, or restored from a backup; old cookies must not stop their users."""
    client = Client()
    client.cookies[COOKIE] = encode({"default": seen})
    response = client.get(path_)
    assert response.status_code == 200
    assert token_of(response).version == version()


@pytest.mark.parametrize("alter", [lambda t: t[:-1], lambda t: "x" + t, lambda _: "é", lambda _: "a:b"])
def test_an_altered_token_is_ignored(reached: list[int], alter: Any) -> None:
    client = Client()
    client.cookies[COOKIE] = alter(encode({"default": Seen(LINEAGE, FUTURE)}))
    response = client.get("/read/")
    assert response.status_code == 200
    assert not has_token(response)
    assert reached == []


def test_a_token_signed_with_an_older_key_is_good_as_long_as_that_is_a_fallback(reached: list[int]) -> None:
    with override_settings(SECRET_KEY="older " * 8):
        token = encode({"default": Seen(LINEAGE, FUTURE)})
    with override_settings(SECRET_KEY_FALLBACKS=["older " * 8]):
        assert Client().get("/read/", headers={HEADER: token}).status_code == 503
    assert Client().get("/read/", headers={HEADER: token}).status_code == 200


def test_what_the_token_says_of_other_databases_is_kept() -> None:
    client = Client()
    client.cookies[COOKIE] = encode({"other": Seen(LINEAGE, 3), "default": Seen(LINEAGE, 0)})
    seen = decode(client.get("/read/").headers[HEADER])
    assert (seen["other"].version, seen["default"].version) == (3, version())


def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites() -> None:
    cookie = Client().get("/write/").cookies[COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["secure"]) == (True, "Lax", "")
    assert (cookie["path"], cookie["max-age"], cookie["expires"]) == ("/", "", "")
    assert Client().get("/write/", secure=True).cookies[COOKIE]["secure"] is True
    with override_settings(SESSION_COOKIE_SECURE=True, SESSION_COOKIE_PATH="/app/", SESSION_COOKIE_DOMAIN="a.test"):
        cookie = Client().get("/write/").cookies[COOKIE]
    assert (cookie["secure"], cookie["path"], cookie["domain"]) == (True, "/app/", "a.test")


def test_caches_are_told_where_the_token_counted() -> None:
    client = Client()
    varies = [client.get("/write/"), client.get("/read/")]
    assert [response.headers["Vary"] for response in varies] == [f"{HEADER}, Cookie"] * 2
    assert "Vary" not in client.get("/neither/").headers


def test_djangos_cache_gives_no_users_page_or_token_to_another() -> None:
    cached = [
        "django.middleware.cache.UpdateCacheMiddleware",
        *MIDDLEWARE,
        "django.middleware.cache.FetchFromCacheMiddleware",
    ]
    cache.clear()
    with override_settings(MIDDLEWARE=cached):
        user, other = Client(), Client()
        assert has_token(user.get("/write/"))
        second = other.get("/write/")
        assert has_token(second) and "Age" not in second.headers
        first = user.get("/read/")
        Event.objects.create(text="x")
        assert int(other.get("/read/").content) == int(first.content) + 1
    cache.clear()


def test_an_error_of_the_database_that_has_nothing_to_do_with_the_token_is_left_to_others() -> None:
    client = Client(raise_request_exception=False)
    client.get("/write/")
    assert client.get("/unavailable/").status_code == 500


def test_a_streamed_body_reads_what_the_user_has_seen() -> None:
    """It is read after the middleware has returned."""
    client = Client()
    client.get("/write/")
    response = client.get("/stream/")
    assert b"".join(response.streaming_content).endswith(b" of True")  # type: ignore[attr-defined]
    assert user_session() is None


def test_asynchronous_views_have_the_same() -> None:
    async def visit() -> None:
        client = AsyncClient()
        response = await client.get("/awrite/")
        assert token_of(response).reached is None
        assert not has_token(await client.get("/aread/"))
        await Event.objects.acreate(text="by somebody else")
        before, after = token_of(response), token_of(await client.get("/aread/"))
        assert after.version == before.version + 1
        streamed = await client.get("/astream/")
        body = [chunk async for chunk in streamed.streaming_content]  # type: ignore[attr-defined]
        assert b"".join(body).endswith(b" of True")
        assert user_session() is None

    asyncio.run(visit())


def test_an_asynchronous_view_that_waits_in_vain_is_answered_by_503(reached: list[int]) -> None:
    async def visit() -> HttpResponseBase:
        client = AsyncClient()
        client.cookies[COOKIE] = encode({"default": Seen(LINEAGE, FUTURE)})
        response: HttpResponseBase = await client.get("/aread/")
        return response

    assert asyncio.run(visit()).status_code == 503
    assert reached == [FUTURE]


def test_a_token_can_be_had_and_used_without_the_middleware(reached: list[int]) -> None:
    """For jobs and APIs."""
    Event.objects.create(text="x")
    with reads(session=session_token()):
        assert Event.objects.count() == 1
    with (
        reads(session=encode({"default": Seen(LINEAGE, FUTURE)})),
        pytest.raises(Unavailable, match="this node lags"),
    ):
        Event.objects.count()
    assert reached == [FUTURE]


def test_a_database_of_another_backend_has_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "django.db.backends.sqlite3")
    with pytest.raises(ValueError, match="it has no node"):
        session_token()
