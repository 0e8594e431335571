"""``watch`` on a folder that other processes write their counts to."""

from __future__ import annotations

from s3torch.core.observers import SharedCounters, observe


def test_watch(command, client, tmp_path):
    with observe(SharedCounters(tmp_path)) as counters:
        for number in range(2):
            with client.put_object("bucket", f"{number}") as writer:
                writer.write(bytes(2**20))
            client.get_object("bucket", f"{number}").read()
        counters.write()
        shown = command("watch", tmp_path).out
        assert "2.0 MiB in all" in shown
        # One look tells no speed.
        assert "/s" not in shown
        assert command("watch", "--json", tmp_path).documents[0]["bytes_read"] == 2 * 2**20
    assert command("watch", tmp_path / "nothing", code=2)
