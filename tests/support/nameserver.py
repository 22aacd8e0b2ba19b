"""A name server on loopback that answers with the SRV records it was told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer:
    """Answers over UDP until :meth:`close`. ``questions`` were asked so far; ``silent``: it answers none."""

    def __init__(self, name: str) -> None:
        self.name = name.rstrip(".") + "."
        self.questions = 0
        self.silent = False
        self._records: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> NameServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def tell(self, addresses: Iterable[str]) -> None:
        """From now on, these ("host:port") are the hosts of the service."""
        pairs = [address.rpartition(":") for address in addresses]
        self._records = [f"10 10 {port} {host}." for host, _, port in pairs]

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                data, client = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            self.questions += 1
            if not self.silent:
                self._socket.sendto(self._answer(dns.message.from_wire(data)).to_wire(), client)

    def _answer(self, question: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.AA
        (asked,) = question.question
        if asked.name.to_text() != self.name or not self._records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif asked.rdtype == dns.rdatatype.SRV:
            answer.answer.append(dns.rrset.from_text_list(self.name, 1, "IN", "SRV", self._records))
        return answer
