"""TLS files that are replaced, whole and by halves, under a context in use."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest
import trustme

from octavo.config.serve_options import make_serve_options
from octavo.errors import ConfigurationError
from octavo.server.certificates import CertificateWatch, check_tls


class Files:
    """A certificate, its key and who signed it, as files."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.cert, self.key, self.ca = (str(folder / name) for name in ("cert.pem", "key.pem", "ca.pem"))
        self.authority.cert_pem.write_to_path(self.ca)
        self.write(self.authority.issue_cert("one.test"))

    def write(self, made: trustme.LeafCert, *, cert: bool = True, key: bool = True) -> None:
        time.sleep(0.002)  # another time stamp
        if cert:
            made.cert_chain_pems[0].write_to_path(self.cert)
        if key:
            made.private_key_pem.write_to_path(self.key)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def name_seen(server: ssl.SSLContext, files: Files) -> str:
    """The host name in the certificate that a client gets."""
    client = ssl.create_default_context(cafile=files.ca)
    client.check_hostname = False
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering, asking, answering):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate = asking.getpeercert()
    assert certificate is not None
    return str(certificate["subjectAltName"][0][1])  # type: ignore[index]


def test_new_files_are_loaded_once_they_fit_one_another(files: Files) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    watch = CertificateWatch(context, files.cert, files.key, files.ca)
    assert not watch.look() and name_seen(context, files) == "one.test"
    second = files.authority.issue_cert("two.test")
    files.write(second, key=False)
    assert not watch.look() and not watch.look()
    assert name_seen(context, files) == "one.test", "the certificate is new, its key is not yet there"
    files.write(second, cert=False)
    assert watch.look() and name_seen(context, files) == "two.test"
    assert not watch.look()
    Path(files.cert).unlink()
    assert not watch.look() and name_seen(context, files) == "two.test"
    files.write(files.authority.issue_cert("three.test"))
    assert watch.look() and name_seen(context, files) == "three.test"


def test_files_that_cannot_be_used_are_refused_before_the_start(files: Files, tmp_path: Path) -> None:
    def check(**more: object) -> None:
        check_tls(make_serve_options({"ssl_certfile": files.cert, "ssl_keyfile": files.key, **more}))

    check()
    check(ssl_ca_certs=files.ca, ssl_cert_reqs=2)
    check_tls(make_serve_options({}))
    with pytest.raises(ConfigurationError, match=r"ssl_keyfile: .*none\.pem cannot be read"):
        check(ssl_keyfile=str(tmp_path / "none.pem"))
    with pytest.raises(ConfigurationError, match=r"ssl_certfile .*cert\.pem.* cannot be used for TLS"):
        files.write(files.authority.issue_cert("other.test"), cert=False)
        check()
