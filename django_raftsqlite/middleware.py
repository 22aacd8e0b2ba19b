"""A user who wrote on one node reads it on every other: :class:`SessionConsistencyMiddleware`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils.cache import add_never_cache_headers, patch_vary_headers

from .consistency import UserSession, user_session
from .dbapi.freshness import Seen
from .errors import Unavailable
from .exceptions import Error
from .tokens import committed, decode, encode

logger = logging.getLogger("django_raftsqlite.middleware")


class SessionConsistencyMiddleware:
    """Each user reads at least what he has written, and what he has read since, on whichever node he comes to.

    A response to a request that wrote carries a signed token, in a cookie and in a header; so does one to a request
    that came with a token and read something newer. A request that comes with a token, in the cookie or in the
    header, reads nothing older on any database of this backend: its first read waits until this machine's node has
    applied that much. Nothing is waited for where that is so already, nor by a request that reads nothing.

    Where it is not so within ``OPTIONS["timeout"]``, the query raises :class:`~django_raftsqlite.Unavailable`, which,
    if the view lets it through, is answered by :meth:`unavailable`. A token that was altered is ignored, and one of
    another group, or of a state that a restore has taken back, as soon as the leader has confirmed that.

    Reads are those of the view, of what it calls, of a streamed body and of the middleware below. Put it above
    SessionMiddleware, so that a user who has just logged in is known on every node.

    Nobody else gets a cookie: what is sent to users who only read stays fit for caches. ``Vary`` names cookie and
    header where a token chose what was read, and where one is handed out.
    """

    sync_capable = True
    async_capable = True

    cookie_name = "raftsqlite_session"
    header_name = "Raftsqlite-Session"

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._async = iscoroutinefunction(get_response)
        if self._async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._async:
            return self.__acall__(request)
        session = UserSession(self._seen(request))
        with session:
            response: HttpResponseBase = self.get_response(request)
        return self._finished(request, response, session)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """The same, awaited."""
        session = UserSession(self._seen(request))
        with session:
            response: HttpResponseBase = await self.get_response(request)
        return self._finished(request, response, session)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        """The view raised; None leaves it to the others."""
        session = user_session()
        if isinstance(exception, Unavailable) and session is not None and session.missed:
            logger.warning("a user has seen a newer state than this node could get: %s", exception)
            return self.unavailable(request, exception)
        return None

    def unavailable(self, request: HttpRequest, exception: Unavailable) -> HttpResponseBase:  # noqa: ARG002
        """What the user gets whose state this node could not get in time; for subclasses to override.

        "503 Service Unavailable", which load balancers can be told to try again on another node.
        """
        response = HttpResponse(
            "This server lags behind. Please try again in a moment.", status=503, content_type="text/plain"
        )
        response.headers["Retry-After"] = "1"
        add_never_cache_headers(response)
        return response

    def _seen(self, request: HttpRequest) -> Mapping[str, Seen]:
        found: dict[str, Seen] = {}
        for where, token in (
            ("header", request.headers.get(self.header_name)),
            ("cookie", request.COOKIES.get(self.cookie_name)),
        ):
            try:
                seen = decode(token) if token else {}
            except ValueError:
                logger.debug("the token in the %s is ignored: it has no valid signature", where)
                continue
            for alias, one in seen.items():
                other = found.get(alias)
                if other is None or (one.lineage == other.lineage and one.version > other.version):
                    found[alias] = one
        return found

    def _finished(self, request: HttpRequest, response: HttpResponseBase, session: UserSession) -> HttpResponseBase:
        if session.seen.keys() & session.used.keys():
            patch_vary_headers(response, [self.header_name, "Cookie"])
        newer = self._newer(session)
        if newer:
            kept = {alias: seen for alias, seen in session.seen.items() if seen.reached is not False}
            self._hand_out(request, response, encode({**kept, **newer}))
        if session.seen and isinstance(response, StreamingHttpResponse):
            self._stream_within(response, session)
        return response

    def _newer(self, session: UserSession) -> dict[str, Seen]:
        """What the user has seen by now, of the aliases of which that is more than he had."""
        newer: dict[str, Seen] = {}
        for alias, node in session.used.items():
            before = session.seen.get(alias)
            if before is None and alias not in session.wrote:
                continue
            try:
                now = committed(node)
            except Error as error:
                logger.warning("the user gets no token for database %r: %s", alias, error)
                continue
            if (
                before is None
                or before.reached is False
                or alias in session.wrote
                or (now.lineage == before.lineage and now.version > before.version)
            ):
                newer[alias] = now
        return newer

    def _hand_out(self, request: HttpRequest, response: HttpResponseBase, token: str) -> None:
        response.headers[self.header_name] = token
        response.set_cookie(
            self.cookie_name,
            token,
            domain=settings.SESSION_COOKIE_DOMAIN,
            path=settings.SESSION_COOKIE_PATH,
            secure=settings.SESSION_COOKIE_SECURE or request.is_secure(),
            httponly=True,
            samesite="Lax",
        )
        # A cache must not hand it to others, nor their state to this user.
        patch_vary_headers(response, [self.header_name, "Cookie"])

    def _stream_within(self, response: StreamingHttpResponse, session: UserSession) -> None:
        """What a streamed body reads is read after the middleware has returned."""
        if getattr(response, "file_to_stream", None) is not None:  # a file, which the server may send by itself
            return
        content = response.streaming_content
        if response.is_async:
            response.streaming_content = _chunks_async(session, cast("AsyncIterator[bytes]", content))
        else:
            response.streaming_content = _chunks(session, cast("Iterable[bytes]", content))


def _chunks(session: UserSession, content: Iterable[bytes]) -> Iterator[bytes]:
    iterator = iter(content)
    while True:
        with session:
            try:
                chunk = next(iterator)
            except StopIteration:
                return
        yield chunk


async def _chunks_async(session: UserSession, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    iterator = aiter(content)
    while True:
        with session:
            try:
                chunk = await anext(iterator)
            except StopAsyncIteration:
                return
        yield chunk
