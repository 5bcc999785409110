"""A training that is killed anywhere ends with the same weights as one that is not."""

import json
import logging
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sanflow.errors import IntegrityError, StorageError
from sanflow.methods.flow.training import state as state_module
from sanflow.methods.flow.training.state import SaveClock, StateFolder, StateKey, remove_finished_state
from sanflow.methods.signals import StopSignals
from tests.helpers.small_training import SmallTraining


@pytest.fixture(scope="module")
def train_small(tmp_path_factory) -> SmallTraining:
    return SmallTraining(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def undisturbed(train_small: SmallTraining) -> dict[str, Tensor]:
    """The weights of a training that nothing stopped."""
    return weights(train_small().checkpoint)


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return torch.load(checkpoint, weights_only=True)["state"]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


class Stop(Exception):
    """In place of a kill, in the tests that stay in their process."""


def stop_after(step: int):
    def on_step(done: int) -> None:
        if done == step:
            raise Stop

    return on_step


# Stopped in the middle of an epoch, at its end, and twice.
@pytest.mark.parametrize("stops", [[1], [6], [4, 11]], ids=str)
@pytest.mark.parametrize("changes", [{"update": "per_scale"}, {"keep_every": 1}], ids=["per_scale", "joint"])
def test_stopped_and_started_again_gives_the_same_weights(train_small, tmp_path, stops, changes):
    expected = weights(train_small(**changes).checkpoint)
    for step in stops:
        with pytest.raises(Stop):
            train_small(folder=tmp_path, save_every_seconds=0.0, on_step=stop_after(step), **changes)
    seen: list[int] = []
    outputs = train_small(folder=tmp_path, on_step=seen.append, **changes)
    assert_same(weights(outputs.checkpoint), expected)
    assert 1 < seen[0] <= stops[-1] + 1  # while one save is written no other begins
    record = json.loads(outputs.record.read_text())
    assert record["attempts"] == len(stops) + 1
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2, 3, 4]
    if "keep_every" in changes:
        assert len(list(outputs.kept.iterdir())) == 4


def test_a_kept_epoch_that_is_gone_is_told(train_small, tmp_path):
    """The finished state says that all is trained, but what it kept of an earlier epoch was deleted."""
    outputs = train_small(folder=tmp_path, keep_every=1)
    next((outputs.state / "kept").glob("*.epoch02.pt")).unlink()
    with pytest.raises(IntegrityError, match=r"Expected epoch 2, .* was deleted\. Delete the folder .* and train"):
        train_small(folder=tmp_path, keep_every=1)


def test_history_does_not_depend_on_the_stops(train_small, tmp_path):
    whole = json.loads(train_small().record.read_text())["history"]
    with pytest.raises(Stop):
        train_small(folder=tmp_path, save_every_seconds=0.0, on_step=stop_after(5))
    assert json.loads(train_small(folder=tmp_path).record.read_text())["history"] == whole


def test_feature_scales_are_kept_with_the_state(train_small, tmp_path, monkeypatch):
    expected = weights(train_small(normalize_features=True).checkpoint)
    with pytest.raises(Stop):
        train_small(folder=tmp_path, save_every_seconds=0.0, on_step=stop_after(5), normalize_features=True)
    monkeypatch.setattr(
        "sanflow.methods.flow.training.parts.measure_feature_scales", lambda *_: pytest.fail("measured again")
    )
    assert_same(weights(train_small(folder=tmp_path, normalize_features=True).checkpoint), expected)


def test_a_lost_checkpoint_is_written_again_without_training(train_small, tmp_path, undisturbed):
    outputs = train_small(folder=tmp_path)
    outputs.checkpoint.unlink()
    outputs.record.unlink()
    train_small(folder=tmp_path, on_step=lambda step: pytest.fail("trained again"))
    assert_same(weights(outputs.checkpoint), undisturbed)
    assert len(json.loads(outputs.record.read_text())["history"]) == 4


def test_another_configuration_never_goes_on_from_the_state(train_small, tmp_path, caplog):
    with pytest.raises(Stop):
        train_small(folder=tmp_path, save_every_seconds=0.0, on_step=stop_after(5))
    old = set((tmp_path / "state").iterdir())
    expected = weights(train_small(learning_rate=2e-3).checkpoint)
    with caplog.at_level(logging.INFO):
        outputs = train_small(folder=tmp_path, learning_rate=2e-3)
    assert "it differs in: config" in caplog.text
    assert "the state of another training" in caplog.text
    assert_same(weights(outputs.checkpoint), expected)
    assert old.isdisjoint((tmp_path / "state").iterdir())  # removed when the new training was done


def test_the_old_state_stays_until_the_new_training_is_done(train_small, tmp_path, undisturbed):
    with pytest.raises(Stop):
        train_small(folder=tmp_path, save_every_seconds=0.0, on_step=stop_after(5))
    with pytest.raises(Stop):
        train_small(folder=tmp_path, save_every_seconds=0.0, on_step=stop_after(2), learning_rate=2e-3)
    seen: list[int] = []
    assert_same(weights(train_small(folder=tmp_path, on_step=seen.append).checkpoint), undisturbed)
    assert seen[0] > 1  # changed back: it went on


@pytest.mark.parametrize("part", ["config", "data", "code", "seed"])
def test_every_part_of_the_key_counts(part, tmp_path):
    facts = {"config": "a", "data": "b", "code": "c", "seed": 0}
    StateFolder(tmp_path, StateKey(**facts)).save({"x": torch.ones(1)}, 1)
    assert StateFolder(tmp_path, StateKey(**facts)).load() is not None
    assert StateFolder(tmp_path, StateKey(**(facts | {part: 7 if part == "seed" else "z"}))).load() is None


# Faults while a state is written.

KEY = StateKey("a", "b", "c", 0)


def good_state(folder: Path) -> StateFolder:
    states = StateFolder(folder, KEY)
    states.save({"x": torch.arange(5)}, 1)
    return states


def assert_first_state_is_there(folder: Path) -> None:
    states = StateFolder(folder, KEY)
    assert torch.equal(states.load()["x"], torch.arange(5))
    states.save({"x": torch.arange(3)}, 2)  # and saving works again
    assert [path.suffix for path in sorted(folder.iterdir())] == [".json", ".pt"]


def save_whole(states: StateFolder, wait: bool) -> None:
    states.save({"x": torch.zeros(1000)}, 2, wait=wait)
    states.finish()


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("moment", ["open", "write", "sync", "rename"])
def test_a_full_disk_while_saving_loses_nothing(tmp_path, monkeypatch, moment, wait):
    states = good_state(tmp_path)
    with monkeypatch.context() as patch:
        if moment == "open":
            patch.setattr("builtins.open", full_disk)
        elif moment == "write":
            patch.setattr(state_module._HashingFile, "write", _write_until_full)
        elif moment == "sync":
            patch.setattr("sanflow.files.os.fsync", full_disk)
        else:
            patch.setattr("sanflow.methods.flow.training.state.os.replace", full_disk)
        with pytest.raises(StorageError, match=r"No space left|Expected to be able to save the training's state"):
            save_whole(states, wait)
    assert_first_state_is_there(tmp_path)


def test_a_full_disk_does_not_stop_the_training(train_small, tmp_path, undisturbed, monkeypatch, caplog):
    honest, calls = state_module._HashingFile.write, []

    def write(self, content):
        calls.append(1)
        return (_write_until_full if len(calls) < 10 else honest)(self, content)

    monkeypatch.setattr(state_module._HashingFile, "write", write)
    outputs = train_small(folder=tmp_path, save_every_seconds=0.0)
    assert "The training continues meanwhile." in caplog.text
    assert_same(weights(outputs.checkpoint), undisturbed)


def _write_until_full(self, content):
    """The disk takes 100 bytes."""
    self.error = None
    try:
        if self.file.tell() + len(content) > 100:
            full_disk()
        written = self.file.write(content)
    except OSError as error:
        self.error = error
        raise
    self.digest.update(content)
    return written


CRASHES = {
    "before the write": ("torch.save", "before"),
    "after the write": ("torch.save", "after"),
    "before the rename": ("os.replace", "before"),
    "after the rename": ("os.replace", "after"),
    "before the old one goes": ("state._sync_folder", "after"),
}


def save_and_die(folder: Path, name: str, when: str) -> None:
    """In a forked process: save a second state, and be killed before or after a function of the save."""
    owner, _, attribute = name.rpartition(".")
    module = {"state": state_module, "torch": torch, "os": os}[owner]
    honest = getattr(module, attribute)

    def crash(*arguments: object) -> None:
        if when == "after":
            honest(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, attribute, crash)
    StateFolder(folder, KEY).save({"x": torch.arange(3)}, 2)


@pytest.mark.parametrize("moment", CRASHES)
def test_a_kill_at_each_moment_of_a_save_leaves_a_whole_state(tmp_path, moment):
    good_state(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            save_and_die(tmp_path, *CRASHES[moment])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found = StateFolder(tmp_path, KEY).load()
    # The rename to the waiting file's final name is the second one: atomic_path's own comes first.
    expected = 3 if moment == "before the old one goes" else 5
    assert len(found["x"]) == expected
    StateFolder(tmp_path, KEY).save({"x": torch.arange(7)}, 3)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".pt"]


def test_a_damaged_state_is_reported_and_the_one_before_is_taken(tmp_path, caplog):
    states = good_state(tmp_path)
    old = states._files()[0][2]
    content = old.read_bytes()
    states.save({"x": torch.arange(9)}, 2)
    new = states._files()[0][2]
    new.write_bytes(new.read_bytes()[:-7])
    old.write_bytes(content)
    assert torch.equal(states.load()["x"], torch.arange(5))
    assert "but it is damaged; it is removed" in caplog.text
    assert not new.exists()


def test_a_save_beside_the_training_holds_the_weights_of_its_moment(tmp_path):
    states = StateFolder(tmp_path, KEY)
    weight = torch.zeros(100_000)
    states.save({"weights": [weight]}, 1, wait=False)
    weight.fill_(1.0)
    states.finish()
    assert not states.load()["weights"][0].any()


def test_layouts_survive_a_save(tmp_path):
    states = StateFolder(tmp_path, KEY)
    weight = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
    states.save({"weight": weight, "step": torch.tensor(3)}, 1)
    loaded = states.load()
    assert loaded["weight"].stride() == weight.stride()
    assert torch.equal(loaded["weight"], weight)


def test_removing_leaves_what_is_not_a_state(tmp_path):
    good_state(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    remove_finished_state(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "notes.txt").unlink()
    good_state(tmp_path)
    remove_finished_state(tmp_path)
    assert not tmp_path.exists()
    remove_finished_state(tmp_path)


def test_the_clock_of_saves(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = SaveClock(10)
    assert not clock.due()
    now[0] = 110.0
    assert clock.due()
    assert not clock.due()


# Signals and kills of a process of its own.


class Process:
    """A training in a forked process, which has all imports done and can be killed."""

    def __init__(self, training: SmallTraining, folder: Path, save_every: float, pause: float, epochs: int) -> None:
        reading, writing = os.pipe()
        self.id = os.fork()
        if self.id == 0:
            code = 1
            try:
                os.close(reading)

                def on_step(step: int) -> None:
                    os.write(writing, f"{step}\n".encode())
                    time.sleep(pause)

                training(folder=folder, save_every_seconds=save_every, on_step=on_step, epochs=epochs)
                code = 0
            except SystemExit as stop:
                code = int(str(stop.code))
            finally:
                os._exit(code)  # not a step further: the rest belongs to pytest
        os.close(writing)
        self.steps = open(reading)  # noqa: SIM115

    def wait_for_step(self, step: int) -> None:
        for line in self.steps:
            if int(line) >= step:
                return
        pytest.fail(f"the training ended before step {step}")

    def end(self, number: signal.Signals) -> int:
        """Send a signal; exit code, or minus the number of the signal it died of."""
        os.kill(self.id, number)
        _, status = os.waitpid(self.id, 0)
        self.steps.close()
        return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_saves_and_exits_with_its_code(train_small, tmp_path, undisturbed, number, exit_code):
    job = Process(train_small, tmp_path, 300.0, pause=0.2, epochs=4)
    job.wait_for_step(3)
    assert job.end(number) == exit_code
    assert len(list((tmp_path / "state").glob("*.step*.pt"))) == 1
    assert_same(weights(train_small(folder=tmp_path).checkpoint), undisturbed)
    assert json.loads((tmp_path / "train.json").read_text())["attempts"] == 2


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_killed_twenty_times_at_random_moments(train_small, tmp_path):
    chance, after_a_save = random.Random(0), 0
    for _ in range(20):
        job = Process(train_small, tmp_path, 0.0, pause=0.01, epochs=60)
        job.wait_for_step(1)
        time.sleep(chance.uniform(0, 0.15))
        assert job.end(signal.SIGKILL) == -signal.SIGKILL
        after_a_save += any(".step" in path.name for path in (tmp_path / "state").glob("*.pt"))
    assert not (tmp_path / "checkpoint.pt").exists(), "the training ended before all its kills: make it longer"
    assert after_a_save >= 10
    killed = train_small(folder=tmp_path, epochs=60)
    assert_same(weights(killed.checkpoint), weights(train_small(epochs=60).checkpoint))
    assert json.loads(killed.record.read_text())["attempts"] > 2
