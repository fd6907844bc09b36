"""`octavo serve` over TLS: who may connect, and a certificate that is replaced while it runs."""

from __future__ import annotations

import signal
import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest
import trustme

from tests.server.light import LOAD_SECONDS
from tests.server.serving import serving


def names(address: tuple[str, int], context: ssl.SSLContext) -> set[str]:
    """In the certificate that a new connection gets."""
    with socket.create_connection(address) as plain, context.wrap_socket(plain, server_hostname=address[0]) as secure:
        certificate = secure.getpeercert()
    assert certificate is not None
    return {str(name) for _, name in certificate["subjectAltName"]}  # type: ignore[misc]


def test_client_certificates_and_a_certificate_that_is_replaced(tiny_model: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    cert, key, ca, mine = (str(tmp_path / name) for name in ("cert.pem", "key.pem", "ca.pem", "mine.pem"))
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("me@client.test").private_key_and_cert_chain_pem.write_to_path(mine)

    def replace(name: str) -> None:
        made = authority.issue_cert("127.0.0.1", name)
        made.private_key_pem.write_to_path(key)
        made.cert_chain_pems[0].write_to_path(cert)

    replace("first.test")
    context, stranger = ssl.create_default_context(cafile=ca), ssl.create_default_context(cafile=ca)
    context.load_cert_chain(mine)
    files = ["--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-ca-certs", ca]
    with serving(tiny_model, *files, "--ssl-cert-reqs", "2", "--enable-ssl-refresh",
                 environment={LOAD_SECONDS: "60"}, is_light=True) as process:  # fmt: skip
        url = httpx.URL(process.url)
        assert url.scheme == "https" and url.port is not None
        address = (url.host, url.port)
        with httpx.Client(base_url=url, verify=context) as client:
            assert client.get("/health").json() == {"status": "starting"}
            for refused in (httpx.Client(verify=stranger), httpx.Client(verify=ssl.create_default_context())):
                with refused, pytest.raises(httpx.TransportError):
                    refused.get(url.join("/health"))
            assert "first.test" in names(address, context)
            replace("second.test")
            deadline = time.monotonic() + 20
            while "second.test" not in names(address, context):
                assert time.monotonic() < deadline, process.log
                time.sleep(0.1)
            assert client.get("/health").status_code == 503, "the old connection goes on"
        process.process.send_signal(signal.SIGINT)  # while it loads
        assert process.wait(10) == 130, process.log
