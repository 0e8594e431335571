"""All benchmarks in one run: the same work by s3torch and its peers, in turn, and a report.

    hatch run bench                         every question, an hour or more
    hatch run bench --quick                 the most common ones, once, under five minutes
    hatch run bench --only objects          some questions; --list names them
    hatch run bench --only dcp --works load --on https    a piece of a question
    hatch run bench --bucket s3://my-bench  an empty bucket of yours instead of a server here

Writes bench.json, bench.md and a plot (PNG and SVG) to docs/performance. The first run makes .venv-bench, the
environment of the peers. A run that asks only a part of it keeps what lies there of the others, if it was
measured with the same versions. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import buckets, pages, peers
from runner.notes import COUNT
from runner.questions import Question, Run, chosen, run
from runner.results import rows

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGET = peers.ROOT / "docs" / "performance"
_QUICK_SECONDS = 270.0
# Listings are put there first, which costs.
_IN_BUCKETS = {"BENCH_KEYS": "10000"}


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of what fits into five minutes")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="just these questions")
    parser.add_argument("--works", nargs="+", metavar="WORK", help="just these works of them")
    parser.add_argument("--on", nargs="+", metavar="PLACE", help="just in these places; see servers.py")
    parser.add_argument("--bucket", metavar="URI", help="an empty bucket, as in s3://my-bench")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs (default 5)")
    parser.add_argument("--seconds", type=float, help="end each question then; what was measured counts")
    parser.add_argument("--no-counts", action="store_true", help="do not count requests in a run of its own")
    parser.add_argument("--list", action="store_true", help="only name the questions")
    parser.add_argument("--here", action="store_true", help="in this environment, with the peers that it has")
    parser.add_argument("--target", type=Path, default=TARGET, help="the folder for the report")
    arguments = parser.parse_args()
    # What it has started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    wanted = chosen(arguments.only)
    if arguments.list:
        for one in wanted:
            print(f"{one.name:<20} {one.title}")
        return
    if not arguments.here:
        peers.enter(sys.argv[1:])
    about = {
        **peers.machine(),
        "command": " ".join(("hatch run bench", *sys.argv[1:])),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "server": "SeaweedFS on loopback.",
    }
    if arguments.bucket:
        runs, counted = _in_bucket(wanted, arguments, about)
    else:
        runs, counted = _on_loopback(wanted, arguments)
    pages.write(rows(runs, counted), runs, arguments.target, about)
    print(f"written to {arguments.target}")
    if any(one.failure for one in runs):
        raise SystemExit("some questions failed; bench.md says which")


def _on_loopback(wanted: Sequence[Question], arguments: argparse.Namespace) -> tuple[list[Run], list[Run]]:
    ends = time.monotonic() + _QUICK_SECONDS
    if not arguments.quick:
        runs = [
            _run(one, "--rounds", str(arguments.rounds), *_parts(one, arguments), limit=arguments.seconds)
            for one in wanted
        ]
        return runs, [] if arguments.no_counts else _counted(wanted, arguments)
    runs = []
    for one in wanted:
        left = ends - time.monotonic()
        if not one.knows("--quick"):
            runs.append(Run(one.name, one.title, failure="it is no part of --quick"))
        elif left <= 0:
            runs.append(Run(one.name, one.title, failure="there was no time left"))
        else:
            runs.append(_run(one, "--quick", *_parts(one, arguments), limit=left))
    return runs, []


def _counted(wanted: Sequence[Question], arguments: argparse.Namespace) -> list[Run]:
    """Runs each question once more, through a proxy that counts."""
    return [
        _run(one, "--rounds", "1", *_parts(one, arguments, "works"), environment={COUNT: "1"})
        for one in wanted
        if one.is_plain_question
    ]


def _parts(question: Question, arguments: argparse.Namespace, *names: str) -> list[str]:
    """Which part of a question is asked, if it has parts."""
    return [
        word
        for name in names or ("works", "on")
        if getattr(arguments, name) and question.knows(f"--{name}")
        for word in (f"--{name}", *getattr(arguments, name))
    ]


def _in_bucket(
    wanted: Sequence[Question], arguments: argparse.Namespace, about: dict[str, Any]
) -> tuple[list[Run], list[Run]]:
    import boto3

    bucket = buckets.bucket_of(arguments.bucket)
    boto = boto3.Session().client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
    buckets.check_empty(boto, bucket)
    usable = [one for one in wanted if one.is_plain_question]
    rounds = 1 if arguments.quick else arguments.rounds
    print(f"counting on loopback what {len(usable)} questions ask", file=sys.stderr)
    counted = _counted(usable, arguments)
    if not buckets.agreed(f"{buckets.estimate(counted, rounds)}. {bucket} is emptied afterwards. Go on?"):
        raise SystemExit("nothing was sent")
    region = boto.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"].get(
        "x-amz-bucket-region", boto.meta.region_name
    )
    environment = _IN_BUCKETS | {"BENCH_BUCKET": bucket, "BENCH_SERVER": "", "AWS_REGION": region}
    environment["AWS_ENDPOINT_URL"] = boto.meta.endpoint_url
    about["server"] = f"Amazon S3 or what stands for it: {boto.meta.endpoint_url}, {region}."
    try:
        parts = [(one, _parts(one, arguments, "works")) for one in usable]
        return [
            _run(one, "--rounds", str(rounds), *part, environment=environment) for one, part in parts
        ], counted
    finally:
        buckets.empty(boto, bucket)


def _run(
    question: Question, *options: str, environment: dict[str, str] | None = None, limit: float | None = None
) -> Run:
    print(f"{question.name} {' '.join(options)}", file=sys.stderr, flush=True)
    return run(question, *options, environment=environment, limit=limit)


if __name__ == "__main__":
    main()
