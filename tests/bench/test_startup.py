"""The time to start: imports are found by package, and every command is there."""

from sanflow.bench import startup
from sanflow.bench.startup import COMMANDS, bench_startup, slowest_imports


def test_imports_are_summed_by_package(monkeypatch):
    monkeypatch.setattr(startup, "SLOWEST", 1000)
    found = slowest_imports("import email.message, json")
    assert {"email", "json"} <= set(found)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_every_command_is_timed(monkeypatch):
    monkeypatch.setitem(COMMANDS, "sanflow train", "import json")
    monkeypatch.setitem(COMMANDS, "sanflow score", "import json")
    monkeypatch.setitem(COMMANDS, "sanflow evaluate", "import json")
    found = bench_startup(repeats=1)
    assert set(found) == {"python", *COMMANDS}
    assert found["sanflow --help"]["seconds"] > found["python"]["seconds"] > 0
    assert found["sanflow --help"]["processor_seconds"] > 0
