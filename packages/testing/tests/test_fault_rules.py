"""Which requests are struck, and what is no rule."""

from __future__ import annotations

import http.client
import socket
import time

import pytest

from s3torch.core.errors import ConfigurationError
from s3torch.testing import Fault, FaultProxy


def test_rules_choose_by_method_key_and_function(proxy, connection, get):
    proxy.add(Fault.error(501, "Method"), method="HEAD")
    proxy.add(Fault.error(502, "Key"), key="second")
    proxy.add(Fault.error(503, "Function"), match=lambda request: request.headers.get("range") == "bytes=5-")
    assert get(connection, method="HEAD")[0].status == 501
    assert get(connection, key="the-second")[0].status == 502
    assert get(connection, Range="bytes=5-")[0].status == 503
    assert get(connection)[0].status == 200


def test_rules_skip_and_strike_only_so_often(proxy, connection, get):
    rule = proxy.add(Fault.slow_down(), match=lambda _: len(proxy.requests()) > 0, skip=1, times=2)
    assert [get(connection)[0].status for _ in range(5)] == [200, 503, 503, 200, 200]
    assert (rule.hits, rule.seen) == (2, 5)


def test_faults_add_up_and_the_last_of_a_kind_wins(proxy, connection, get):
    proxy.add(Fault(latency=0.1, headers={"a": "1", "b": "1"}))
    proxy.add(Fault.error(500, "First"))
    proxy.add(Fault.error(503, "Last") | Fault.header("b", "2"))
    begun = time.monotonic()
    response, _ = get(connection)
    assert time.monotonic() - begun >= 0.1
    assert (response.status, response.getheader("a"), response.getheader("b")) == (503, "1", "2")


def test_faults_are_taken_away(proxy, connection, get):
    rule = proxy.add(Fault.slow_down())
    proxy.add(Fault.header("x-amz-new", "1"))
    proxy.remove(rule)
    assert get(connection)[0].getheader("x-amz-new") == "1"
    proxy.heal()
    assert get(connection)[0].getheader("x-amz-new") is None


def test_what_a_match_function_raises_is_raised_by_close(upstream, caplog, get):
    proxy = FaultProxy(f"http://127.0.0.1:{upstream.server_port}").start()
    proxy.add(Fault.drop(), match=lambda request: request.headers["range"])
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=60)
    with pytest.raises(http.client.RemoteDisconnected):
        get(connection)
    connection.close()
    with pytest.raises(KeyError, match="range"):
        proxy.close()
    proxy.close()


@pytest.mark.parametrize("upstream", ["https://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1"])
def test_an_address_that_cannot_be_served_is_refused(upstream):
    with pytest.raises(ConfigurationError, match="upstream must be like"):
        FaultProxy(upstream)


def test_settings_that_make_no_sense_are_refused(proxy):
    for make in (
        lambda: Fault(latency=-1),
        lambda: Fault(bandwidth=0),
        lambda: Fault.reset(after=-1),
        lambda: proxy.add(Fault.drop(), times=0),
        lambda: FaultProxy("http://127.0.0.1:1").endpoint,
    ):
        with pytest.raises(ConfigurationError):
            make()


def test_a_server_that_is_not_there_looks_like_a_closed_connection(get):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with FaultProxy(address) as proxy:
        connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=60)
        with pytest.raises(http.client.RemoteDisconnected):
            get(connection)
        connection.close()
        assert proxy.requests()[0].status is None
