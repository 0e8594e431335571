"""``doctor`` with everything right, and with each thing wrong, against real servers and on the wire."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from click.testing import CliRunner

from s3torch.core.cli._application import application
from s3torch.core.cli.findings import Finding, Severity
from s3torch.testing import Fault
from s3torch.testing.scripted import ScriptedServer, refusal
from s3torch.testing.servers import start_seaweedfs


class Doctor:
    """Asks for a diagnosis of what the environment says."""

    def __init__(self, patch):
        self.patch = patch

    def use(self, server, **changes):
        for name, value in {**server.environment(), **changes}.items():
            if value is None:
                self.patch.delenv(name, raising=False)
            else:
                self.patch.setenv(name, value)

    def ask(self, *arguments, code=0):
        result = CliRunner().invoke(application, ["doctor", "--json", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        found = json.loads(result.stdout)
        assert result.exit_code == code, found
        # In the order of severity, so that of several of one name the worst is taken.
        order = [severity.name.lower() for severity in Severity]
        ordered = sorted(found["findings"], key=lambda one: order.index(one["severity"]))
        return {one["name"]: one for one in ordered}


@pytest.fixture
def doctor(monkeypatch):
    # What this machine has must not decide.
    monkeypatch.setattr("s3torch.core.cli.doctor._machine._LITTLE_SHARED", 0)
    monkeypatch.setattr("s3torch.core.cli.doctor._machine._ROOMY_FILES", 0)
    monkeypatch.setattr("s3torch.core.cli.doctor._command.doctor_checks", list)
    return Doctor(monkeypatch)


@pytest.fixture(scope="module")
def place(seaweedfs):
    bucket = seaweedfs.create_bucket()
    seaweedfs.client().put_object(Bucket=bucket, Key="train/a", Body=b"data")
    return bucket


@pytest.fixture
def proxied(doctor, seaweedfs, fault_proxy):
    proxy = fault_proxy(seaweedfs)
    doctor.use(seaweedfs.at(proxy.endpoint))
    return proxy


def refused(finding, text, remedy):
    assert finding["severity"] == "error", finding
    assert text in finding["text"], finding
    assert remedy in finding["remedy"], finding


def test_everything_right(doctor, seaweedfs, place):
    doctor.use(seaweedfs)
    found = doctor.ask(f"s3://{place}/train", "--write")
    assert {one["severity"] for one in found.values()} == {"ok"}
    assert found["region"]["text"] == "us-east-1, from AWS_REGION"
    assert "from AWS_ENDPOINT_URL" in found["endpoint"]["text"]
    assert "the bucket in the path" in found["address"]["text"]
    assert "environment variables" in found["credentials"]["text"]
    assert {"writing", "checksums", "conditional PUT", "UploadPartCopy", "DeleteObjects"} <= set(found)


@pytest.mark.promise(9)
def test_it_only_reads_unless_told_and_then_leaves_nothing(doctor, proxied, seaweedfs, place):
    doctor.ask(f"s3://{place}/train")
    assert {request.method for request in proxied.requests()} == {"GET", "HEAD"}
    doctor.ask(f"s3://{place}/train", "--write")
    changed = [request for request in proxied.requests() if request.method in {"PUT", "DELETE"}]
    assert changed
    assert all(request.key.startswith("train/.s3torch-doctor-") for request in changed)
    direct = seaweedfs.client()
    assert [one["Key"] for one in direct.list_objects_v2(Bucket=place)["Contents"]] == ["train/a"]
    assert direct.list_multipart_uploads(Bucket=place).get("Uploads", []) == []


@pytest.mark.promise(10)
def test_no_secret_is_shown(doctor, seaweedfs, place, monkeypatch):
    doctor.use(seaweedfs, HTTPS_PROXY="http://me:hush@127.0.0.1:1")
    result = CliRunner().invoke(application, ["doctor", f"s3://{place}"])
    assert seaweedfs.secret_key not in result.output
    assert seaweedfs.access_key not in result.output
    assert "hush" not in result.output


def test_no_credentials(doctor, seaweedfs, place):
    doctor.use(seaweedfs, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    refused(doctor.ask(f"s3://{place}", code=1)["credentials"], "no credentials found", "AWS_ACCESS_KEY_ID")


def test_keys_of_a_profile_and_who_they_are(doctor, moto, tmp_path):
    """Only AWS, and who says so, has an STS that tells it."""
    bucket = moto.create_bucket()
    file = tmp_path / "credentials"
    file.write_text("[team]\naws_access_key_id = AKIAEXAMPLE1234\naws_secret_access_key = hush\n")
    nothing = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    doctor.use(moto, AWS_SHARED_CREDENTIALS_FILE=str(file), AWS_PROFILE="team", **nothing)
    found = doctor.ask(f"s3://{bucket}")["credentials"]
    assert found["text"] == "access key AKIA…1234 from the AWS credentials file, profile team"
    doctor.patch.setenv("AWS_ENDPOINT_URL_STS", moto.endpoint)
    found = doctor.ask(f"s3://{bucket}", "--profile", "team")["credentials"]
    assert found["facts"]["identity"].startswith("arn:aws:")
    assert found["facts"]["identity"] in found["text"]


def test_half_of_the_credentials(doctor, seaweedfs, place):
    doctor.use(seaweedfs, AWS_SECRET_ACCESS_KEY=None)
    refused(doctor.ask(f"s3://{place}", code=1)["credentials"], "AWS_SECRET_ACCESS_KEY", "set AWS")


def test_a_wrong_secret(doctor, seaweedfs, place):
    doctor.use(seaweedfs, AWS_SECRET_ACCESS_KEY="wrong")
    refused(
        doctor.ask(f"s3://{place}", code=1)["signed request"],
        "secret key does not belong",
        "compare the keys",
    )


def test_an_unknown_access_key(doctor, seaweedfs, place):
    doctor.use(seaweedfs, AWS_ACCESS_KEY_ID="AKIANOBODY")
    refused(doctor.ask(f"s3://{place}", code=1)["signed request"], "does not know", "compare the keys")


def test_expired_keys(doctor, proxied, place):
    proxied.add(Fault.expired_token())
    refused(doctor.ask(f"s3://{place}", code=1)["signed request"], "expired", "aws sso login")


def test_a_profile_that_is_none(doctor, seaweedfs, place):
    doctor.use(seaweedfs, AWS_PROFILE="nobody")
    refused(doctor.ask(f"s3://{place}", code=1)["credentials"], "nobody", "correct this setting")


def test_a_wrong_region(doctor, proxied, place):
    moved = Fault.error(301, "PermanentRedirect") | Fault.header("x-amz-bucket-region", "eu-west-1")
    proxied.add(moved)
    refused(doctor.ask(f"s3://{place}", code=1)["signed request"], "eu-west-1", "AWS_REGION=eu-west-1")


def test_no_region(doctor, seaweedfs):
    doctor.use(seaweedfs, AWS_ENDPOINT_URL=None, AWS_REGION=None, AWS_DEFAULT_REGION=None)
    refused(doctor.ask(code=1)["region"], "no region", "correct this setting")


def test_an_endpoint_that_is_down(doctor, seaweedfs, place):
    with ScriptedServer() as gone:
        pass
    doctor.use(seaweedfs.at(gone.endpoint))
    found = doctor.ask(f"s3://{place}", code=1)
    refused(found["connection"], "refused", "check that the server runs")
    assert "signed request" not in found


def test_an_endpoint_without_an_address(doctor, seaweedfs, place):
    doctor.use(seaweedfs.at("http://nowhere.invalid"))
    refused(
        doctor.ask(f"s3://{place}", code=1)["name"], "nowhere.invalid was not found", "correct the endpoint"
    )


def test_an_endpoint_that_is_no_url(doctor, seaweedfs, place):
    doctor.use(seaweedfs.at("nowhere:80"))
    assert "invalid S3 endpoint" in CliRunner().invoke(application, ["doctor", f"s3://{place}"]).output


def test_no_tls(doctor, seaweedfs, place):
    doctor.use(seaweedfs.at(seaweedfs.endpoint.replace("http:", "https:")))
    refused(doctor.ask(f"s3://{place}", code=1)["TLS"], "does not speak TLS", "use http://")


def test_tls_where_http_was_asked_for(doctor, place):
    with start_seaweedfs(tls=True) as sealed:
        doctor.use(sealed.at(sealed.endpoint.replace("https:", "http:")))
        found = doctor.ask("s3://bucket", code=1)
        assert "https://" in found["signed request"]["remedy"]


def test_an_unknown_certificate(doctor, place):
    with start_seaweedfs(tls=True) as sealed:
        bucket = sealed.create_bucket()
        doctor.use(sealed)
        assert "the certificate is trusted" in doctor.ask(f"s3://{bucket}")["TLS"]["text"]
        doctor.use(sealed, AWS_CA_BUNDLE=None)
        refused(doctor.ask(f"s3://{bucket}", code=1)["TLS"], "is not trusted", "AWS_CA_BUNDLE")
        doctor.use(sealed, AWS_CA_BUNDLE="/nowhere.pem")
        refused(doctor.ask(f"s3://{bucket}", code=1)["TLS"], "/nowhere.pem does not exist", "correct")


@pytest.mark.parametrize(
    ("minutes", "severity", "code"), [(0, "ok", 0), (-6, "warning", 7), (20, "error", 1)]
)
def test_a_clock_that_is_off(doctor, proxied, place, minutes, severity, code):
    theirs = datetime.now(UTC) - timedelta(minutes=minutes)
    proxied.add(Fault.header("Date", format_datetime(theirs, usegmt=True)))
    clock = doctor.ask(f"s3://{place}/train", code=code)["clock"]
    assert clock["severity"] == severity
    if minutes:
        assert f"{abs(minutes)} minutes {'ahead of' if minutes > 0 else 'behind'}" in clock["text"]
        assert "NTP" in clock["remedy"]


def test_a_request_that_is_refused_for_the_clock(doctor, proxied, place):
    proxied.add(Fault.error(403, "RequestTimeTooSkewed"))
    refused(doctor.ask(f"s3://{place}", code=1)["signed request"], "clock", "NTP")


def test_the_clock_is_said_once(doctor, proxied, place):
    theirs = format_datetime(datetime.now(UTC) - timedelta(minutes=20), usegmt=True)
    proxied.add(Fault.error(403, "RequestTimeTooSkewed") | Fault.header("Date", theirs))
    found = doctor.ask(f"s3://{place}", code=1)
    refused(found["signed request"], "is 20 minutes ahead of the store's", "NTP")
    assert "clock" not in found


def test_a_bucket_that_is_missing(doctor, seaweedfs):
    doctor.use(seaweedfs)
    refused(
        doctor.ask("s3://no-such-bucket", code=1)["signed request"], "there is no bucket", "correct its name"
    )


def test_no_permission_to_list(doctor, proxied, place):
    proxied.add(Fault.error(403, "AccessDenied"), match=lambda request: "list-type" in request.query)
    refused(doctor.ask(f"s3://{place}", code=1)["signed request"], "may not list", f"arn:aws:s3:::{place}")


def test_no_permission_to_read(doctor, proxied, place):
    proxied.add(Fault.error(403, "AccessDenied"), method="HEAD")
    refused(doctor.ask(f"s3://{place}", code=1)["reading"], "not read train/a", "s3:GetObject")


def test_no_permission_to_write(doctor, seaweedfs, place):
    who = seaweedfs.reader
    doctor.use(seaweedfs, AWS_ACCESS_KEY_ID=who.access_key, AWS_SECRET_ACCESS_KEY=who.secret_key)
    assert "writing" not in doctor.ask(f"s3://{place}/train")
    found = doctor.ask(f"s3://{place}/train", "--write", code=1)
    refused(found["writing"], "may not write", "s3:PutObject")
    assert "checksums" not in found


def test_no_permission_to_read_what_was_written(doctor, proxied, place):
    match = lambda request: "list-type" not in request.query  # noqa: E731
    proxied.add(Fault.error(403, "AccessDenied"), method="GET", match=match)
    found = doctor.ask(f"s3://{place}/train", "--write", code=1)
    refused(found["writing"], "may write, but not read", "s3:GetObject")


def test_a_missing_permission_is_no_fault_of_the_store(doctor, proxied, place):
    proxied.add(Fault.error(403, "AccessDenied"), method="HEAD")
    found = doctor.ask(f"s3://{place}/train", "--write", code=1)["checksums"]
    assert found["severity"] == "warning"
    assert "may not" in found["text"]
    assert "use another store" not in found["remedy"]
    assert f"arn:aws:s3:::{place}/train/*" in found["remedy"]


@pytest.mark.parametrize("answer", ["refused", "ignored"])
def test_no_conditions(doctor, proxied, place, answer):
    fault = (
        Fault.error(501, "NotImplemented")
        if answer == "refused"
        else Fault.answer("<x/>") | Fault.header("ETag", '"e"')
    )
    proxied.add(fault, match=lambda request: "if-none-match" in request.headers)
    found = doctor.ask(f"s3://{place}/train", "--write", code=7)["conditional PUT"]
    assert found["severity"] == "warning"
    assert answer in found["text"]
    assert "two jobs" in found["text"]


def test_no_checksums(doctor, proxied, place):
    names = ("crc64nvme", "crc32c", "crc32", "sha256", "sha1")
    hidden = Fault(headers={f"x-amz-checksum-{name}": None for name in names})
    proxied.add(hidden)
    found = doctor.ask(f"s3://{place}/train", "--write", code=7)
    assert found["reading"]["severity"] == "note"
    # What follows from it is said once.
    assert "unnoticed" not in found["reading"]["text"]
    assert "keeps none" in found["checksums"]["text"]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "UploadPartCopy",
            lambda request: "uploadId" in request.query and "x-amz-copy-source" in request.headers,
        ),
        ("DeleteObjects", lambda request: "delete" in request.query),
        (
            "CopyObject",
            lambda request: "uploadId" not in request.query and "x-amz-copy-source" in request.headers,
        ),
    ],
)
def test_what_has_a_fallback_is_a_note(doctor, proxied, seaweedfs, place, name, match):
    proxied.add(Fault.error(501, "NotImplemented"), match=match)
    found = doctor.ask(f"s3://{place}/train", "--write")
    assert found[name]["severity"] == "note"
    assert "NotImplemented" in found[name]["text"]
    assert seaweedfs.client().list_multipart_uploads(Bucket=place).get("Uploads", []) == []
    assert seaweedfs.client().list_objects_v2(Bucket=place)["KeyCount"] == 1


@pytest.mark.promise(10)
def test_the_proxy_is_told_without_its_password(doctor, seaweedfs, place):
    doctor.use(seaweedfs, HTTP_PROXY="http://me:hush@127.0.0.1:1", NO_PROXY="", no_proxy="")
    found = doctor.ask(f"s3://{place}", code=1)
    assert found["proxy"]["text"] == "127.0.0.1:1, from HTTP_PROXY"
    refused(found["connection"], "the proxy 127.0.0.1, port 1", "check that the server runs")


def test_64_open_files(process, seaweedfs, place):
    ran = process("doctor", f"s3://{place}", environment=seaweedfs.environment(), open_files=64)
    assert ran.code == 1, ran.err
    assert "ERROR open files       64 at most" in ran.out
    assert ran.lines[-1] == "1 error: open files"
    assert "ulimit -n" in ran.out
    assert max(map(len, ran.lines)) <= 80
    assert "\x1b" not in ran.out


def test_little_shared_memory(doctor, seaweedfs, monkeypatch):
    doctor.use(seaweedfs)
    monkeypatch.setattr("s3torch.core.cli.doctor._machine._LITTLE_SHARED", 2**60)
    assert "--shm-size" in doctor.ask(code=7)["/dev/shm"]["remedy"]


def test_checks_of_plugins(doctor, seaweedfs, monkeypatch):
    def check(context):
        yield Finding("Third", "party", Severity.WARNING, "has something to say", "do this")

    def broken(context):
        raise RuntimeError("oh")

    monkeypatch.setattr("s3torch.core.cli.doctor._command.doctor_checks", lambda: [broken, check])
    doctor.use(seaweedfs)
    found = doctor.ask(code=7)
    assert found["party"]["remedy"] == "do this"
    assert "oh" in found["check"]["text"]


def test_any_transport_will_do(doctor, seaweedfs, place):
    doctor.use(seaweedfs)
    for transport in ("crt", "http"):
        assert "valid" in doctor.ask(f"s3://{place}", "--transport", transport)["signed request"]["text"]
    found = doctor.ask(f"s3://{place}", "--transport", "pigeon", code=1)
    refused(found["signed request"], "unknown transport", "--transport")


def test_writing_needs_a_place():
    assert CliRunner().invoke(application, ["doctor", "--write"]).exit_code == 2


def test_an_answer_that_is_not_of_s3(doctor, seaweedfs):
    with ScriptedServer() as server:
        server.will(refusal(418, "Teapot"))
        doctor.use(seaweedfs.at(server.endpoint))
        refused(doctor.ask("s3://bucket", code=1)["signed request"], "Teapot", "endpoint of an S3 server")
