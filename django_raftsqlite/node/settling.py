"""A process's requests: each of them ends exactly once, whichever process hosts the node meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ..exceptions import CommitOutcomeUnknown, DataError, HostLost, LeaseTimeout, OperationalError, Unavailable
from ..sqlite.entry import Base, Outcome, RequestId, Statements, Status, Transaction
from ..sqlite.parts import TransactionTooLarge, encode_pieces
from . import tracing
from .api import Backend, BackendSession, NodeConfig
from .backends import RETRY, SHORTEST_WAIT, Backends, left
from .origin import Origin
from .requests import Encoded, OriginClosed, Request
from .verdicts import raise_unless_done, unknown

Encode = Callable[[RequestId, int], Encoded]


class Settling:
    """Numbers this process's requests (``origin``) and sends each of them, under its one id, to one backend after the
    other until its outcome is known or its deadline passes.

    Invariant: a request is given another id only when it surely was not executed under the one it had. Thread-safe:
    what is shared is in ``origin`` and the backends.
    """

    def __init__(self, config: NodeConfig, backends: Backends) -> None:
        self.origin = Origin()
        self._config = config
        self._backends = backends

    def encoder(self, statements: Statements, base: Base | None, pragmas: Mapping[str, int], *, solo: bool) -> Encode:
        """What writes a transaction down for :meth:`settle`; raises DataError when it is too large."""

        def encode(request: RequestId, low_water: int) -> Encoded:
            limit = self._config.max_transaction_bytes
            try:
                return encode_pieces(Transaction(request, low_water, statements, base, pragmas, solo), limit=limit)
            except TransactionTooLarge as error:
                raise DataError(
                    f"a transaction of {error.size} bytes is beyond the limit of {limit} bytes "
                    '(OPTIONS["max_transaction_bytes"]): write it in smaller transactions, or raise the limit'
                ) from error

        return encode

    def settle(
        self, encode: Encode, *, solo: bool, deadline: float, session: BackendSession | None = None
    ) -> Outcome:
        """Number what was encoded and bring it to its outcome, which is DONE; ``session`` is the one that it
        commits.

        Raises as Node.submit and WriteSession.commit say.
        """
        with tracing.span(tracing.COMMIT, self._config, autocommit=session is None):
            return self._settle(encode, solo=solo, deadline=deadline, session=session)

    def _settle(self, encode: Encode, *, solo: bool, deadline: float, session: BackendSession | None) -> Outcome:
        patience = left(deadline)
        while True:
            if session is None:
                self.need_origin(deadline)
            request = self.origin.create(encode, solo=solo, lease=None if session is None else session.claim)
            try:
                if request.pieces:
                    if session is not None and not self._seal(session):
                        session = None
                    self._send_parts(request, patience)
                    deadline = time.monotonic() + patience
                outcome = self._execute(request, deadline, session)
            except OriginClosed:  # surely not executed, so it may have another number
                self.origin.renew(request.id.origin)
                session = None
                continue
            finally:
                self.origin.forget(request)
            if outcome.status is Status.REFUSED:
                self.origin.renew(request.id.origin)
            raise_unless_done(outcome)
            return outcome

    def _seal(self, session: BackendSession) -> bool:
        """End a session's statements; whether its host is still there to commit it."""
        try:
            session.seal()
        except HostLost:
            return False
        return True

    def _send_parts(self, request: Request, patience: float) -> None:
        """Have the parts of a transaction applied, so that it can name them.

        One after the other, so that others' writes go between them and no message is long in the way of a heartbeat.
        Each of them may take ``patience`` seconds. Raises as :meth:`Backend.execute`, but never CommitOutcomeUnknown,
        since parts alone change nothing.
        """
        for number in range(len(request.pieces)):
            part = self.origin.part(request, number)
            request.pieces[number] = b""
            try:
                outcome = self._execute(part, time.monotonic() + patience, None)
            except CommitOutcomeUnknown as error:
                raise Unavailable(
                    f"nothing of the transaction was executed, since a part of it was not replicated: {error}",
                    "too slow",
                ) from error
            finally:
                self.origin.forget(part)
            if outcome.status is not Status.DONE:
                raise OriginClosed

    def _execute(self, request: Request, deadline: float, session: BackendSession | None) -> Outcome:
        """Have one host after the other execute it, always under the same id."""
        while True:
            try:
                if session is not None:
                    return self._backends.told(session.commit(request, timeout=left(deadline)))
                return self._backends.told(
                    self._backend_for(request, deadline).execute(request, timeout=left(deadline))
                )
            except HostLost as error:
                session = None
                if time.monotonic() < deadline:
                    continue
                if request.sent:
                    raise unknown(error) from error
                raise Unavailable(f"the write was not sent: {error}", "too slow") from error

    def _backend_for(self, request: Request, deadline: float) -> Backend:
        """Any backend; where the request may be in the log, only the deadline ends the search."""
        while True:
            try:
                return self._backends.current(deadline)
            except OperationalError as error:
                if not request.sent:
                    raise
                if self._backends.closed or time.monotonic() >= deadline:
                    raise unknown(error) from error
                time.sleep(RETRY)

    def need_origin(self, deadline: float) -> None:
        """Return when the group knows this process's origin."""
        old = self.origin.renew_if_idle()
        if old is not None:
            self._backends.ask(lambda backend, _left: backend.close_origin(old), deadline)
        held: LeaseTimeout | None = None
        while not self.origin.opened:
            origin = self.origin.id

            def open_origin(backend: Backend, left: float, origin: bytes = origin) -> None:
                backend.open_origin(origin, timeout=left)

            try:
                self._backends.ask(open_origin, deadline)
            except LeaseTimeout as error:
                # Another thread of this process, which asked first, may have had less time.
                if deadline - time.monotonic() < SHORTEST_WAIT:
                    raise
                held = error
            except Unavailable as error:
                if held is None:
                    raise
                raise held from error  # what little time was left did not do for an answer: this is still why
            except HostLost as error:
                raise Unavailable(
                    f"this process could not be made known to the group: {error}", "too slow"
                ) from error
            else:
                self.origin.mark_opened(origin)
