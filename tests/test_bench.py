"""The runner of tools/bench: it finds questions by themselves, and makes honest rows of what they note."""

from __future__ import annotations

import io
import json
import sys
import textwrap
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

from runner import buckets, pages  # noqa: E402
from runner import questions as found  # noqa: E402
from runner.questions import Question, Run  # noqa: E402
from runner.results import rows  # noqa: E402

ABOUT = {
    "command": "hatch run bench",
    "date": "2026-01-01",
    "processor": "P",
    "processors": 2,
    "memory_gib": 8,
    "system": "Linux",
    "python": "3.11",
    "load": 0.1,
    "versions": {"s3torch": "0.1"},
    "server": "One.",
}


def note(*case, place="http", suffix="", **figures):
    return {"case": list(case), "place": place, "suffix": suffix, "figures": figures}


def test_questions_are_found_by_what_they_are():
    names = [one.name for one in found.questions()]
    assert names[:3] == ["objects", "dataset", "dcp"]
    assert {"checkpoints", "cold_start", "growth", "busy", "fsspec_patterns", "async_save"} <= set(names)
    assert not {"measure", "answers", "states", "run", "servers", "libraries"} & set(names)
    assert all(one.title.endswith("?") for one in found.questions() if one.is_plain_question)
    assert [one.name for one in found.chosen(["dcp"])] == ["dcp"]
    with pytest.raises(SystemExit, match="no question nothing"):
        found.chosen(["nothing"])


def test_ratios_are_those_of_medians_in_the_same_run():
    run = Run(
        "read",
        "How fast?",
        [
            *(note("s3torchconnector", seconds=one, cpu_seconds=1.0) for one in (3.0, 4.0, 5.0)),
            *(note("s3torch (http)", seconds=one, cpu_seconds=0.5) for one in (1.0, 2.0, 9.0)),
            note("boto3", seconds=1.5),
        ],
    )
    peer, ours, other = rows([run])
    assert (ours.seconds, ours.speed, ours.cpu_ratio, ours.rounds) == (2.0, 2.0, 0.5, 3)
    assert ours.spread == 2.0
    assert ours.peer == "s3torchconnector"
    assert (peer.speed, other.speed) == (None, None)
    assert ours.bound(processors=2) == "waiting"
    assert (ours.is_ours, peer.is_ours, other.is_behind) == (True, False, False)
    # One of the peers was faster, though not the one that ratios refer to.
    assert (ours.is_behind, ours.fastest, ours.best) == (True, "boto3", 0.75)


def test_works_places_and_checkouts_are_kept_apart():
    run = Run(
        "busy",
        "How?",
        [
            note("read", "s3fs", seconds=4.0),
            note("read", "s3torch", seconds=2.0),
            note("list", "s3fs", seconds=1.0),
            note("list", "s3torch", seconds=2.0),
            note("list", "s3torch", place="https", seconds=3.0),
            note("save", "s3torch", suffix=", before", seconds=3.0),
            note("save", "s3torch", seconds=1.0),
            note("each for itself", "http://127.0.0.1:1", seconds=1.0),
        ],
    )
    made = {(one.work, one.library): one for one in rows([run])}
    assert made["read, http", "s3torch"].speed == 2
    assert made["list, http", "s3torch"].is_behind
    assert made["list, http", "s3torch"].fastest == "s3fs"
    assert made["list, https", "s3torch"].speed is None
    assert made["save, http", "s3torch"].peer == "s3torch, before"
    assert made["save, http", "s3torch"].speed == 3
    assert made["http", "each for itself"].seconds == 1


def test_a_question_is_run_counted_and_written(tmp_path, monkeypatch):
    """A question of its own, against a server of its own, from the command line to the page."""
    monkeypatch.setenv("PYTHONPATH", str(BENCH), prepend=":")
    path = tmp_path / "asks.py"
    path.write_text(
        textwrap.dedent(
            '''
            """Does it ask twice?"""
            import argparse, os, json, http.server, threading, urllib.request
            from runner.notes import mark
            from measure import in_child

            def main():
                parser = argparse.ArgumentParser()
                parser.add_argument("--rounds", type=int)
                parser.add_argument("--case", nargs=2)
                arguments = parser.parse_args()
                if arguments.case:
                    url = os.environ["AWS_ENDPOINT_URL"]
                    urllib.request.urlopen(url + "/bucket/warm").read()
                    mark()
                    for _ in range(2):
                        urllib.request.urlopen(url + "/bucket/key").read()
                    print(json.dumps({"seconds": 2.0 if arguments.case[1] == "s3torch" else 3.0}))
                    return

                class Handler(http.server.BaseHTTPRequestHandler):
                    def do_GET(self):
                        self.send_response(200)
                        self.send_header("Content-Length", "5")
                        self.end_headers()
                        self.wfile.write(b"hello")
                    def log_message(self, *_):
                        pass

                server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
                threading.Thread(target=server.serve_forever, daemon=True).start()
                os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
                for _ in range(arguments.rounds):
                    for library in ("s3torchconnector", "s3torch"):
                        in_child("hello", library)
                raise SystemExit("the end")

            main()
            '''
        ).strip()
    )
    question = Question(path, "Does it ask twice?")
    # What was noted before a question failed, counts.
    run = found.run(question, "--rounds", "1", environment={"BENCH_COUNT": "1"})
    assert run.failure.strip() == "the end"
    assert len(run.notes) == 2
    _, ours = made = rows([run], [run])
    assert (ours.work, ours.speed, ours.rounds, ours.requests, ours.nbytes) == ("hello, http", 1.5, 1, 2, 10)
    pages.write(made, [run, Run("other", "?", failure="it broke\n\n")], tmp_path / "out", ABOUT)
    page = (tmp_path / "out" / "bench.md").read_text()
    assert "| hello, http | s3torch | 2.000 |  | 1.50 |  | 1.50 |" in page
    assert "- other: it broke" in page
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["rows"][1]["requests"] == 2
    assert {one.suffix for one in (tmp_path / "out").iterdir()} == {".json", ".md", ".png", ".svg"}
    estimate = buckets.estimate([run], rounds=5)
    assert (estimate.reads, estimate.others, estimate.sent) == (40, 0, 200)
    assert estimate.dollars_outside > estimate.dollars > 0


def test_a_piece_is_put_beside_what_was_measured_before(tmp_path):
    def measured(question, work, ours, theirs=2.0, **more):
        pair = [note(work, "s3torchconnector", seconds=theirs), note(work, "s3torch", seconds=ours)]
        run = Run(question, "How?", pair, **more)
        pages.write(rows([run]), [run], tmp_path, ABOUT)
        content = json.loads((tmp_path / "bench.json").read_text())
        return {(one["work"], one["library"]): one for one in content["rows"]}

    measured("objects", "read", 1.0)
    measured("objects", "write", 4.0)
    # One that was measured again keeps what it was before; the others stay.
    made = measured("objects", "read", 0.95)
    assert made["read, http", "s3torch"]["before"] == 2
    assert made["write, http", "s3torch"]["speed"] == 0.5
    measured("growth", "objects, 500", 1.0)
    run = Run(
        "growth",
        "How?",
        [note("objects, 1000", "s3torch", seconds=3.0), failed_note("objects, 1000", "s3fs")],
    )
    pages.write(rows([run]), [run], tmp_path, ABOUT)
    page = (tmp_path / "bench.md").read_text()
    assert "Of 1 ratios that were measured twice, 1 are the same within 10 %." in page
    assert "| objects | s3torch | 500 | 1000 | 3.00 |" in page
    assert "- growth: objects, 1000, s3fs (http): ImportError: s3fs" in page
    assert "- objects, write, http: s3torch 0.50 beside s3torchconnector" in page
    # Figures of other versions are not put side by side.
    about = {**ABOUT, "versions": {"s3torch": "0.2"}}
    pages.write(rows([run]), [run], tmp_path, about)
    assert [one["question"] for one in json.loads((tmp_path / "bench.json").read_text())["rows"]] == [
        "growth"
    ]


def failed_note(*case):
    return {**note(*case), "failed": "ImportError: s3fs"}


@pytest.mark.parametrize(
    ("place", "figures", "bound"),
    [
        ("http", {"cpu_seconds": 0.9, "server_cpu_seconds": 0.8}, "all processors"),
        (
            "http",
            {"cpu_seconds": 0.4, "server_cpu_seconds": 1.5},
            "all processors, most of them the server's",
        ),
        ("http", {"cpu_seconds": 0.1, "server_cpu_seconds": 0.9}, "a processor of the server"),
        ("memory", {"cpu_seconds": 1.0, "server_cpu_seconds": 0.1}, "a processor of the client"),
        ("memory", {"cpu_seconds": 0.1}, "waiting"),
        ("latency-20", {"cpu_seconds": 0.1}, "the line"),
    ],
)
def test_a_row_says_what_it_waits_for(place, figures, bound):
    run = Run("objects", "How?", [note("read", "s3torch", place=place, seconds=1.0, **figures)])
    assert rows([run])[0].bound(processors=2) == bound


def test_a_question_that_takes_too_long_is_ended(tmp_path):
    path = tmp_path / "sleeps.py"
    path.write_text("import time\ntime.sleep(300)")
    assert found.run(Question(path, "?"), limit=1).failure == "ended after 1 seconds"


@pytest.mark.parametrize(("answer", "agrees"), [("y\n", True), ("yes\n", True), ("\n", False), ("", False)])
def test_only_yes_is_yes(monkeypatch, answer, agrees):
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert buckets.agreed("really?") is agrees


@pytest.mark.parametrize("uri", ["bucket", "s3://", "s3://bucket/prefix", "https://bucket"])
def test_a_bucket_is_a_whole_one(uri):
    assert buckets.bucket_of("s3://mine/") == "mine"
    with pytest.raises(SystemExit, match="whole bucket"):
        buckets.bucket_of(uri)


def test_a_bucket_in_use_is_refused_and_ours_is_emptied(memory_boto):
    boto = memory_boto
    buckets.check_empty(boto, "bench")
    for number in range(3):
        boto.put_object(Bucket="bench", Key=f"k{number}", Body=b"x")
    with pytest.raises(SystemExit, match="not empty"):
        buckets.check_empty(boto, "bench")
    buckets.empty(boto, "bench")
    buckets.check_empty(boto, "bench")


@pytest.fixture
def memory_boto():
    """A boto3 client of a simulated store with the bucket ``bench``."""
    from s3torch.testing.servers import start_moto

    with start_moto() as server:
        boto = server.client()
        boto.create_bucket(Bucket="bench")
        yield boto
