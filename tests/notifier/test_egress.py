"""No URL leads into our network, and no receiver holds us past the deadline."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from services.notifier import egress as eg
from services.notifier.addresses import is_public, parse_networks
from tests.notifier import receiver as rc

LOOPBACK = parse_networks("127.0.0.0/8")


def never(address: str, port: int, seconds: float) -> socket.socket:
    raise AssertionError(f"connected to {address}:{port}")


def resolving(*addresses: str) -> eg.Resolver:
    return lambda host, port: list(addresses)


def local(**kw: object) -> eg.Egress:
    return eg.Egress(allow_networks=LOOPBACK, **kw)  # type: ignore[arg-type]


# -- addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "168.63.129.16", "192.88.99.1", "192.0.0.9", "192.0.2.1", "198.18.0.1", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1", "fc00::1", "fd00:ec2::254",
        "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "5f00::1", "3fff::1", "100::1", "4000::1",
        "2606:4700::1%eth0",
    ],
)  # fmt: skip
def test_these_are_not_the_public_internet(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450::1"])
def test_these_are(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f.1/", "https://0x7f000001/",
        "https://017700000001/", "https://0/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::]/",
        "https://[::ffff:7f00:1]/", "https://localhost/", "https://169.254.169.254/latest/meta-data/",
        "https://[64:ff9b::a9fe:a9fe]/", "https://[2002:7f00:1::]/", "https://[fec0::1]/", "https://[::127.0.0.1]/",
        "https://168.63.129.16/", "https://127.0.0.1:8443/", "https://127。0。0。1/", "http://127.0.0.1/",
        "https://a\\@127.0.0.1/",
    ],
)  # fmt: skip
def test_hostile_urls_reach_nothing(url: str) -> None:
    # The system's resolver: it is what turns 2130706433 into 127.0.0.1.
    with pytest.raises((eg.AddressNotAllowed, eg.UrlNotAllowed)):
        eg.Egress(connector=never).exchange(url).post(b"{}", {})


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "//host/", "/path", "ftp://host/", "file:///etc/passwd", "gopher://host/", "https://", "https:///x",
        "https://user:pw@host/", "https://user@host/", "https://host:0/", "https://host:99999/",
        "https://host:x/", "https://ho st/", "https://host/\r\nX-Evil: 1", "https://host\x00.example/",
        "https://exa%6dple.com/", "https://[fe80::1%25eth0]/", "https://-host/", "https://[::1", "javascript:alert(1)",
        "https://" + "a" * 300 + "/",
    ],
)  # fmt: skip
def test_urls_out_of_bounds_are_refused_before_any_lookup(url: str) -> None:
    def resolver(host: str, port: int) -> Sequence[str]:
        raise AssertionError(f"looked up {host}")

    with pytest.raises(eg.UrlNotAllowed) as caught:
        eg.Egress(resolver=resolver, connector=never).exchange(url)
    assert len(url) < 8 or url not in str(caught.value)


def test_what_follows_the_host_cannot_replace_it() -> None:
    for url in ("https://host#@127.0.0.1/", "https://host/@127.0.0.1/", "https://host?@127.0.0.1/"):
        with pytest.raises(eg.NameNotResolved):
            eg.Egress(resolver=lambda host, port: [] if host == "host" else ["8.8.8.8"], connector=never).exchange(
                url
            ).post(b"", {})


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://hooks.example/", eg.UrlNotAllowed),
        ("https://hooks.example:22/", eg.UrlNotAllowed),
        ("https://hooks.example:6379/", eg.UrlNotAllowed),
    ],
)
def test_public_hosts_need_https_and_a_web_port(url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        eg.Egress(resolver=resolving("93.184.216.34"), connector=never).exchange(url).post(b"", {})


@pytest.mark.parametrize(
    "found",
    [["10.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["10.0.0.1", "93.184.216.34"], ["fe80::1%eth0"], ["nonsense"],
     ["93.184.216.34"] * 5 + ["127.0.0.1"]],
)  # fmt: skip
def test_one_bad_address_condemns_the_name(found: list[str]) -> None:
    with pytest.raises(eg.AddressNotAllowed):
        eg.Egress(resolver=resolving(*found), connector=never).exchange("https://hooks.example/").post(b"", {})


def test_rebinding_the_name_changes_nothing(tmp_path: Path) -> None:
    server, client = rc.certificate(tmp_path, "hooks.example")
    answers = [["93.184.216.34"], ["127.0.0.1"], ["10.0.0.1"]]
    looked_up, reached = [], []

    def resolver(host: str, port: int) -> Sequence[str]:
        looked_up.append(host)
        return answers[len(looked_up) - 1]

    with rc.Receiver(rc.answer(200), tls=server) as there:

        def connector(address: str, port: int, seconds: float) -> socket.socket:
            reached.append((address, port))
            return eg.connect("127.0.0.1", there.port, seconds)  # stands for the internet

        way_out = eg.Egress(resolver=resolver, connector=connector, ssl_context=client)
        assert way_out.exchange("https://hooks.example/in").post(b"{}", {}).status == 200
    assert looked_up == ["hooks.example"]
    assert reached == [("93.184.216.34", 443)]


def test_the_name_is_kept_for_tls_and_host(tmp_path: Path) -> None:
    server, client = rc.certificate(tmp_path, "hooks.example")
    names: list[str | None] = []
    server.sni_callback = lambda sock, name, context: names.append(name)
    with rc.Receiver(rc.answer(204), tls=server) as there:
        way_out = local(resolver=resolving("127.0.0.1"), ssl_context=client)
        way_out.exchange(f"https://hooks.example:{there.port}/in?a=1&b=%20#frag").post(b"{}", {})
    assert names == ["hooks.example"]
    assert there.seen[0].headers["host"] == f"hooks.example:{there.port}"
    assert there.seen[0].target == "/in?a=1&b=%20"


@pytest.mark.parametrize("name", ["other.example", "127.0.0.1"])
def test_a_certificate_for_another_name_is_refused(tmp_path: Path, name: str) -> None:
    server, client = rc.certificate(tmp_path, name)
    with rc.Receiver(rc.answer(200), tls=server) as there:
        way_out = local(resolver=resolving("127.0.0.1"), ssl_context=client)
        with pytest.raises(eg.DeliveryFailed, match="tls"):
            way_out.exchange(f"https://hooks.example:{there.port}/").post(b"{}", {})
    assert there.seen == []


def test_an_untrusted_certificate_is_refused(tmp_path: Path) -> None:
    server, _ = rc.certificate(tmp_path, "hooks.example")
    with rc.Receiver(rc.answer(200), tls=server) as there:
        way_out = local(resolver=resolving("127.0.0.1"), ssl_context=ssl.create_default_context())
        with pytest.raises(eg.DeliveryFailed, match="tls"):
            way_out.exchange(f"https://hooks.example:{there.port}/").post(b"{}", {})


# -- deadlines -------------------------------------------------------------------------------------------


def test_allowed_networks_are_reached_by_http_and_any_port() -> None:
    with rc.Receiver(rc.answer(200, b"thanks", X_A="1")) as there:
        answer = local().exchange(f"http://127.0.0.1:{there.port}").post(b'{"a":1}', {"X-B": "2"})
    assert (answer.status, answer.body, answer.headers["x-a"]) == (200, b"thanks", "1")
    seen = there.seen[0]
    assert (seen.target, seen.body, seen.headers["x-b"]) == ("/", b'{"a":1}', "2")
    assert seen.headers["connection"] == "close"
    assert "thanks" not in repr(answer)


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with rc.Receiver(rc.answer(200)) as there:
        assert local().exchange(f"http://127.0.0.1:{there.port}/").post(b"", {}).status == 200


@pytest.mark.parametrize(
    "script",
    [rc.silent, rc.drip(b"HTTP/1.1 200 OK\r\nX-A: "), rc.drip(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 ")],
    ids=["silent", "drips-a-header", "drips-after-100"],
)
def test_no_receiver_outlasts_the_deadline(script: rc.Script) -> None:
    with rc.Receiver(script) as there:
        began = time.monotonic()
        with pytest.raises(eg.DeliveryFailed, match="timeout"):
            local(timeout=0.5).exchange(f"http://127.0.0.1:{there.port}/").post(b"{}", {})
        assert 0.4 < time.monotonic() - began < 1.5


def test_a_receiver_that_does_not_read_does_not_outlast_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        with pytest.raises(eg.DeliveryFailed, match="timeout"):
            local(timeout=0.5).exchange(f"http://127.0.0.1:{server.getsockname()[1]}/").post(b"x" * 50_000_000, {})
        assert time.monotonic() - began < 2


def test_a_handshake_that_hangs_does_not_outlast_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        with pytest.raises(eg.DeliveryFailed, match="timeout"):
            local(timeout=0.5).exchange(f"https://127.0.0.1:{server.getsockname()[1]}/").post(b"x", {})
        assert time.monotonic() - began < 2


def test_a_name_server_that_hangs_does_not_outlast_the_deadline() -> None:
    release = threading.Event()

    def resolver(host: str, port: int) -> Sequence[str]:
        release.wait(30)
        return ["127.0.0.1"]

    began = time.monotonic()
    with pytest.raises(eg.NameNotResolved):
        local(timeout=0.6, resolver=resolver, connector=never).exchange("http://hooks.example/").post(b"", {})
    assert time.monotonic() - began < 1.5
    release.set()


def test_a_name_without_an_address_is_said_so() -> None:
    def resolver(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for r in (resolver, resolving()):
        with pytest.raises(eg.NameNotResolved):
            local(resolver=r, connector=never).exchange("http://hooks.example/").post(b"", {})


def test_once_the_status_is_known_the_body_does_not_matter() -> None:
    for script in (rc.huge, rc.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")):
        with rc.Receiver(script) as there:
            began = time.monotonic()
            answer = local(timeout=5).exchange(f"http://127.0.0.1:{there.port}/").post(b"", {})
            assert answer.status == 200
            assert len(answer.body) <= eg.MAX_ANSWER_BYTES
            assert time.monotonic() - began < 2.5


def test_endless_headers_are_cut_off() -> None:
    script = rc.drip(b"HTTP/1.1 200 OK\r\nX-A: " + b"x" * 300_000)
    with rc.Receiver(script) as there, pytest.raises(eg.DeliveryFailed, match="protocol"):
        local(timeout=5).exchange(f"http://127.0.0.1:{there.port}/").post(b"", {})


def test_a_receiver_that_hangs_up_or_speaks_no_http_is_a_protocol_failure() -> None:
    for script in (rc.hang_up, lambda conn, closing: conn.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")):
        with rc.Receiver(script) as there, pytest.raises(eg.DeliveryFailed, match=r"protocol|connect"):
            local().exchange(f"http://127.0.0.1:{there.port}/").post(b"", {})


def test_the_next_address_is_tried_when_one_does_not_connect() -> None:
    with rc.Receiver(rc.answer(200)) as there:

        def connector(address: str, port: int, seconds: float) -> socket.socket:
            if address == "127.0.0.2":
                raise ConnectionRefusedError
            return eg.connect(address, port, seconds)

        way_out = local(resolver=resolving("127.0.0.2", "127.0.0.1"), connector=connector)
        assert way_out.exchange(f"http://hooks.example:{there.port}/").post(b"", {}).status == 200


def test_a_closed_port_is_a_connect_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(eg.DeliveryFailed, match="connect"):
        local().exchange(f"http://127.0.0.1:{port}/").post(b"", {})


def test_abort_from_another_thread_ends_a_blocked_post() -> None:
    with rc.Receiver(rc.silent) as there:
        exchange = local(timeout=20).exchange(f"http://127.0.0.1:{there.port}/")
        rc.when(there.arrived, exchange.abort)
        began = time.monotonic()
        with pytest.raises(eg.Aborted):
            exchange.post(b"{}", {})
        assert time.monotonic() - began < 5
        exchange.abort()


def test_an_exchange_aborted_beforehand_connects_nowhere() -> None:
    exchange = local(connector=never).exchange("http://127.0.0.1:1/")
    exchange.abort()
    with pytest.raises(eg.Aborted):
        exchange.post(b"", {})


def test_no_socket_is_left_open() -> None:
    opened: list[socket.socket] = []

    def connector(address: str, port: int, seconds: float) -> socket.socket:
        opened.append(eg.connect(address, port, seconds))
        return opened[-1]

    for script in (rc.answer(200), rc.silent, rc.hang_up, rc.huge):
        with rc.Receiver(script) as there, contextlib.suppress(eg.DeliveryFailed):
            local(timeout=0.4, connector=connector).exchange(f"http://127.0.0.1:{there.port}/").post(b"", {})
    assert [s.fileno() for s in opened] == [-1] * 4
