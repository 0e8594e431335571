"""The conformance suite of transports finds what is wrong: each one here breaks one rule of the seam."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace

import pytest

from s3torch.core.errors import (
    AccessDeniedError,
    CertificateError,
    S3ConnectionError,
    S3Error,
    TransferCancelledError,
    TruncatedError,
    WrongRegionError,
)
from s3torch.core.models import Credentials, GetResult, HeadObjectResult, PutResult
from s3torch.core.transports.http import HttpTransport
from s3torch.testing.transport_tests import TransportTests

# The first test waits for the run of all.
pytestmark = pytest.mark.timeout(400)


class Whole:
    """Breaks nothing: what the others are made of."""

    ends_early = True

    def __init__(self, context):
        self.context = self.change(context)
        self.inner = HttpTransport(self.context)

    def change(self, context):
        return context

    def send(self, request, *, body=None, into=None):
        return self.inner.send(request, body=body, into=into)

    def close(self):
        self.inner.close()


class Relay(Future):
    """Ends as another transfer does, but for what ``change`` makes of its error."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change
        inner.add_done_callback(self.ended)

    def cancel(self):
        return self.inner.cancel()

    def ended(self, inner):
        with suppress(Exception):
            try:
                result = inner.result()
                error = None
            except BaseException as exc:  # noqa: BLE001
                error, result = exc, None
            if error is not None:
                try:
                    result = self.change(error)
                except BaseException as exc:  # noqa: BLE001
                    self.set_exception(exc)
                    return
            self.set_result(result)


class Changed(Whole):
    """Passes on errors as ``error`` changes them."""

    def send(self, request, *, body=None, into=None):
        return Relay(super().send(request, body=body, into=into), lambda error: self.error(error, request))

    def error(self, error, request):
        raise error


class BlocksInSend(Whole):
    def send(self, request, *, body=None, into=None):
        transfer = super().send(request, body=body, into=into)
        with suppress(S3Error, TimeoutError):
            transfer.result(3)
        return transfer


class RaisesFromSend(Whole):
    def send(self, request, *, body=None, into=None):
        self.context.session.credentials(request.bucket)
        return super().send(request, body=body, into=into)


class CallsBackOnTheCancellingThread(Whole):
    class Transfer(Relay):
        def cancel(self):
            self.inner.cancel()
            with suppress(Exception):
                self.set_exception(TransferCancelledError("cancelled", bucket="bucket", key="key"))
            return True

    def send(self, request, *, body=None, into=None):
        def again(error):
            time.sleep(0.2)
            raise error

        return self.Transfer(super().send(request, body=body, into=into), again)


class IgnoresCancel(Whole):
    def send(self, request, *, body=None, into=None):
        transfer = super().send(request, body=body, into=into)
        transfer.cancel = lambda: True
        return transfer


class ClosesWithoutCancelling(Whole):
    def close(self):
        threading.Timer(4, self.inner.close).start()


class KeepsTheBuffer(Whole):
    def send(self, request, *, body=None, into=None):
        self.kept = [view[:] for view in (body, into) if view is not None]
        return super().send(request, body=body, into=into)


class TouchesTheBufferAfterCancelling(Whole):
    def send(self, request, *, body=None, into=None):
        transfer = super().send(request, body=body, into=into)
        cancel = transfer.cancel

        def later():
            into[:1] = b"!"

        def cancel_and_touch():
            threading.Timer(0.1, later).start()
            return cancel()

        transfer.cancel = cancel_and_touch
        return transfer


class AcceptsOtherLengths(Changed):
    def error(self, error, request):
        if isinstance(error, TruncatedError | S3ConnectionError):
            return GetResult(HeadObjectResult('"e"', 0, 0), 0, b"")
        raise error


class TakesEverySuccess(Changed):
    """Judges by the status, and not by what S3 promises."""

    def error(self, error, request):
        if error.status == 200:
            return PutResult('"e"')
        raise error


class NeedsAnETag(Whole):
    def send(self, request, *, body=None, into=None):
        def read(answer):
            if "etag" not in answer.headers:
                raise S3ConnectionError("no ETag")
            return request.read(answer)

        return super().send(request._replace(read=read), body=body, into=into)


class SendsWeakETags(Whole):
    def send(self, request, *, body=None, into=None):
        if request.streams and request.if_match is None:
            request = request._replace(headers=[*request.headers, ("If-Match", 'W/"e"')])
        return super().send(request, body=body, into=into)


class TakesChunksForNothing(Whole):
    """Believes that what is not announced is not there."""

    def send(self, request, *, body=None, into=None):
        def read(answer):
            length = int(answer.headers.get("content-length", "0"))
            return request.read(answer._replace(length=length))

        return super().send(request._replace(read=read), body=body, into=into)


class IgnoresInto(Whole):
    def send(self, request, *, body=None, into=None):
        return super().send(request, body=body)


class WaitsForTheWholeAnswer(Whole):
    def send(self, request, *, body=None, into=None):
        return super().send(request._replace(at_most=None), body=body, into=into)


class DropsContent(Whole):
    def send(self, request, *, body=None, into=None):
        return super().send(replace(request, content=b""), body=body, into=into)


class AddsAChecksum(Whole):
    def send(self, request, *, body=None, into=None):
        headers = [*request.headers, ("x-amz-sdk-checksum-algorithm", "CRC32")]
        return super().send(replace(request, headers=headers), body=body, into=into)


class DropsTheEndOfTheBody(Whole):
    def send(self, request, *, body=None, into=None):
        return super().send(request, body=body and body[:-1], into=into)


class QuotesTwice(Whole):
    def send(self, request, *, body=None, into=None):
        return super().send(replace(request, key=request.key.replace("%", "%25")), body=body, into=into)


class NeverRetries(Whole):
    def change(self, context):
        return replace(context, config=replace(context.config, max_attempts=1))


class RetriesOnceTooOften(Whole):
    def change(self, context):
        return replace(context, config=replace(context.config, max_attempts=context.config.attempts + 1))


class RetriesRefusals(Changed):
    refused = AccessDeniedError

    def error(self, error, request):
        if isinstance(error, self.refused):
            return self.inner.send(request).result()
        raise error


class FollowsRedirects(RetriesRefusals):
    refused = WrongRegionError


class CountsNoAttempts(Changed):
    def error(self, error, request):
        error.attempts = None
        raise error


class TellsNoRetry(Whole):
    def change(self, context):
        return replace(context, on_retry=None)


class TellsTwice(Whole):
    def change(self, context):
        def tell(**facts):
            context.on_retry(**facts)
            context.on_retry(**facts)

        return replace(context, on_retry=tell)


class TellsNoTransfer(Whole):
    def change(self, context):
        return replace(context, on_retry=lambda **facts: context.on_retry(**{**facts, "transfer": None}))


class TellsAnotherPause(Whole):
    def change(self, context):
        return replace(context, on_retry=lambda **facts: context.on_retry(**{**facts, "seconds": 9}))


class OtherSession:
    def __init__(self, session):
        self.session = session

    def __getattr__(self, name):
        return getattr(self.session, name)


class RenewsNothing(Whole):
    class Session(OtherSession):
        def renew_credentials(self, stale, bucket=None):
            return False

    def change(self, context):
        return replace(context, session=self.Session(context.session))


class SignsAnonymousRequests(RenewsNothing):
    class Session(OtherSession):
        def credentials(self, bucket=None):
            return self.session.credentials(bucket) or Credentials("A", "B")


class RaisesTheWrongClass(Changed):
    def error(self, error, request):
        raise S3Error(str(error), bucket=error.bucket, key=error.key)


class ShowsItsKeys(Changed):
    def error(self, error, request):
        error.message += f", signed with {self.context.session.credentials(request.bucket).secret_key}"
        raise error


class ForgetsWhatItWasAbout(Changed):
    def error(self, error, request):
        error.bucket = error.key = None
        raise error


class DropsTheCause(Changed):
    def error(self, error, request):
        again = type(error)(error.message)
        again.__dict__.update(error.__dict__)
        raise again from None


class CanBeUsedAfterClose(Whole):
    def send(self, request, *, body=None, into=None):
        try:
            return super().send(request, body=body, into=into)
        except ValueError as exc:
            future = Future()
            future.set_exception(exc)
            return future


class ForgetsWhoPays(Whole):
    def change(self, context):
        return replace(context, config=replace(context.config, requester_pays=False))


class HidesItsUser(Whole):
    def change(self, context):
        return replace(context, user_agent="")


class Rewired(Whole):
    """Makes its connections do something else."""

    def __init__(self, context):
        super().__init__(context)
        maker = self.inner._connections._maker
        connect = maker.connect

        def connect_and_rewire(*origin):
            connection = connect(*origin)
            self.rewire(connection)
            return connection

        maker.connect = connect_and_rewire


class NeverLooksAtKeptConnections(Rewired):
    def rewire(self, connection):
        connection.socket.is_alive = lambda: True


class TakesInterimAnswers(Rewired):
    def rewire(self, connection):
        connection._receive_final_head = connection._receive_head


class WaitsForHeads(Rewired):
    def rewire(self, connection):
        stall = connection.socket.stall
        stall.expect_head = stall.expect_bytes


class BearsAnySpeed(Whole):
    def change(self, context):
        return replace(context, config=replace(context.config, low_speed_limit=0))


class IgnoresTheBundle(RenewsNothing):
    class Session(OtherSession):
        ca_bundle = None


class DistrustIsABrokenConnection(Changed):
    def error(self, error, request):
        if isinstance(error, CertificateError):
            raise S3ConnectionError(error.message, bucket=error.bucket, key=error.key) from error.__cause__
        raise error


class TriesHeadsOnce(NeverRetries):
    def __init__(self, context):
        super().__init__(context)
        self.once, self.inner = self.inner, HttpTransport(context)

    def send(self, request, *, body=None, into=None):
        chosen = self.once if request.method == "HEAD" else self.inner
        return chosen.send(request, body=body, into=into)


# What breaks, and the tests of which at least one has to fail.
BROKEN = {
    BlocksInSend: "test_send_returns_at_once",
    RaisesFromSend: "test_session_that_fails",
    CallsBackOnTheCancellingThread: "test_callback_of_cancelled_transfer",
    IgnoresCancel: "test_end_of_upload_is_prompt",
    ClosesWithoutCancelling: "test_end_is_prompt",
    KeepsTheBuffer: "test_body_is_sent",
    TouchesTheBufferAfterCancelling: "test_buffer_is_not_touched_after_cancelling",
    AcceptsOtherLengths: "test_body_that_breaks_off test_longer_object_does_not_answer_a_range",
    TakesEverySuccess: "test_success_that_is_no_result",
    NeedsAnETag: "test_object_with_another_etag",
    SendsWeakETags: "test_condition_of_a_read",
    TakesChunksForNothing: "test_object_in_chunks",
    IgnoresInto: "test_whole_object_may_answer_a_range",
    WaitsForTheWholeAnswer: "test_answer_is_ended_early",
    DropsContent: "test_request_arrives_as_it_is",
    AddsAChecksum: "test_no_checksum_where_they_are_off",
    DropsTheEndOfTheBody: "test_body_is_sent",
    QuotesTwice: "test_request_arrives_as_it_is",
    NeverRetries: "test_failure_that_may_pass",
    RetriesOnceTooOften: "test_attempts_are_counted",
    RetriesRefusals: "test_refusal_is_final",
    FollowsRedirects: "test_redirect_is_an_error",
    CountsNoAttempts: "test_attempts_are_counted",
    TellsNoRetry: "test_failure_that_may_pass",
    TellsTwice: "test_failure_that_may_pass",
    TellsNoTransfer: "test_failure_that_may_pass",
    TellsAnotherPause: "test_pause_before_the_next_attempt",
    RenewsNothing: "test_expired_keys_are_renewed_once",
    SignsAnonymousRequests: "test_anonymous_requests_are_not_signed",
    RaisesTheWrongClass: "test_refusal_is_final",
    ShowsItsKeys: "test_secrets_are_not_shown",
    ForgetsWhatItWasAbout: "test_refusal_is_final",
    DropsTheCause: "test_lost_answer_of_the_last_attempt",
    CanBeUsedAfterClose: "test_use_after_close",
    ForgetsWhoPays: "test_request_arrives_as_it_is",
    HidesItsUser: "test_request_arrives_as_it_is",
    NeverLooksAtKeptConnections: "test_answer_that_nobody_has_asked_for",
    TakesInterimAnswers: "test_interim_answers",
    WaitsForHeads: "test_head_has_to_end",
    BearsAnySpeed: "test_lowest_speed",
    IgnoresTheBundle: "test_bundle_of_the_session",
    DistrustIsABrokenConnection: "test_unknown_authority",
    TriesHeadsOnce: "test_head_with_expired_keys",
}
TESTS = {broken.__name__: set(names.split()) for broken, names in BROKEN.items()}
TESTS["Whole"] = set().union(*TESTS.values())


class Suite(TransportTests):
    """Is collected only by the run below."""

    broken: type

    def create_transport(self, context):
        return self.broken(context)

    @pytest.fixture
    def transport_context(self, script):
        return script.context()


for _class in (Whole, *BROKEN):
    globals()[f"Suite{_class.__name__}"] = type(f"Suite{_class.__name__}", (Suite,), {"broken": _class})


class Chosen:
    """Runs the tests that a transport should fail, one failure each, and remembers what failed."""

    def __init__(self):
        self.ran, self.failed = set(), {}

    def pytest_collection_modifyitems(self, items):
        items[:] = [one for one in items if self.wants(one)]

    def wants(self, item):
        broken = getattr(item.cls, "broken", None)
        # By name: the inner run imports this module anew.
        return broken and item.originalname in TESTS[broken.__name__]

    def pytest_runtest_setup(self, item):
        if item.cls.broken.__name__ != "Whole" and item.cls.broken.__name__ in self.failed:
            pytest.skip("one failure is enough")

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::")[1].removeprefix("Suite")
        self.ran.add(name)
        if report.failed:
            self.failed.setdefault(name, []).append(report.nodeid)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    settings = tmp_path_factory.mktemp("inner") / "pytest.ini"
    settings.write_text("[pytest]\npython_classes = Suite\naddopts = --import-mode=importlib\n")
    chosen = Chosen()
    without = ["-p", "no:cacheprovider", "-p", "no:timeout"]
    with pytest.MonkeyPatch.context() as patch:
        # Less than usual, because some of these use it up.
        patch.setattr("s3torch.testing._transport.transfers.PROMPT", 2)
        pytest.main(["-q", "--tb=no", "-c", str(settings), *without, __file__], plugins=[chosen])
    return chosen


def test_the_whole_one_passes(outcome):
    assert "Whole" in outcome.ran
    assert "Whole" not in outcome.failed, outcome.failed


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__)
def test_a_broken_one_fails(outcome, broken):
    assert broken.__name__ in outcome.failed
