"""The files for TLS: checked before anything starts, and watched while the server runs."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl

from octavo.config.serve_options import ServeOptions
from octavo.errors import ConfigurationError

logger = logging.getLogger(__name__)

SECONDS = 1.0  # between two looks


def check_tls(options: ServeOptions) -> None:
    """Raises ConfigurationError for files that are not there, or cannot be used."""
    names = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")
    given = {name: path for name in names if (path := getattr(options, name)) is not None}
    for name, path in given.items():
        try:
            open(path, "rb").close()
        except OSError as error:
            raise ConfigurationError(f"{name}: {path} cannot be read: {error.strerror}") from None
    try:
        if options.ssl_certfile is not None and options.ssl_keyfile is not None:
            _load(_new_context(), options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certs)
    except OSError as error:  # ssl.SSLError too
        shown = ", ".join(f"{name} {path}" for name, path in given.items())
        raise ConfigurationError(f"{shown}: these files cannot be used for TLS: {error}") from None


class CertificateWatch:
    """Loads a server's TLS files again, into the context it has, when one of them has changed.

    A certificate and its key are rarely replaced in one moment: as long as the files do not fit one another, or cannot
    be read, the old ones stay.
    """

    def __init__(self, context: ssl.SSLContext, certfile: str, keyfile: str, ca_certs: str | None = None) -> None:
        self._context, self._certfile, self._keyfile, self._ca_certs = context, certfile, keyfile, ca_certs
        self._loaded = self._tried = self._stamps()

    async def run(self, seconds: float = SECONDS) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            self.look()

    def look(self) -> bool:
        """Whether it has loaded something."""
        stamps = self._stamps()
        if stamps in (self._loaded, self._tried):
            return False
        self._tried = stamps
        try:
            for context in (_new_context(), self._context):  # a failure would leave the one in use without a key
                _load(context, self._certfile, self._keyfile, self._ca_certs)
        except OSError as error:  # ssl.SSLError too
            logger.warning("the TLS files have changed and cannot be used, the old ones stay: %s", error)
            return False
        self._loaded = stamps
        logger.info("the TLS files have changed: new connections get the new certificate")
        return True

    def _stamps(self) -> tuple[tuple[int, ...], ...]:
        return tuple(_stamp(path) for path in (self._certfile, self._keyfile, self._ca_certs) if path is not None)


def _new_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def _load(context: ssl.SSLContext, certfile: str, keyfile: str, ca_certs: str | None) -> None:
    context.load_cert_chain(certfile, keyfile, password="")  # a key with a password is an error, not a question
    if ca_certs is not None:
        context.load_verify_locations(ca_certs)


def _stamp(path: str) -> tuple[int, ...]:
    """What changes with a file's content, also where a link is pointed elsewhere. Empty: there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
