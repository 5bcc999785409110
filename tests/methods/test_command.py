"""Method `command`: what the tool is given, what becomes of its maps, and how it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from sanflow.anomaly_maps.scores_file import Scores
from sanflow.cli import app
from sanflow.data.index import build_index, write_index
from sanflow.errors import DataError, ToolError
from sanflow.methods.command.folders import lay_out
from sanflow.methods.command.maker import make
from sanflow.methods.command.process import run
from sanflow.methods.command.settings import COMMAND, CommandExperiment
from sanflow.methods.method import MapJob
from sanflow.pipeline import gpu_slots
from sanflow.provenance import fit_digest, modules_of
from sanflow.tracking import Tracker
from tests.helpers.miniatures import image, mvtec
from tests.helpers.results import draw_data_set

# Writes for each test image a map of its size and mean; `change` edits the loop's body.
TOOL = """
import sys, pathlib, numpy as np
from PIL import Image
train, test, maps = map(pathlib.Path, sys.argv[1:4])
for file in sorted(test.iterdir()):
    pixels = np.asarray(Image.open(file).convert("L"), np.float32)
    {change}
    np.save(maps / (file.stem + ".npy"), np.full(pixels.shape, pixels.mean(), np.float32))
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def tool(change: str = "") -> list[str]:
    return python(TOOL.replace("{change}", change), "{train}", "{test}", "{maps}")


def experiment(command=None, **keys) -> CommandExperiment:
    return CommandExperiment(method="command", command=command or tool(), input_size=32, **keys)


@pytest.fixture
def index(tmp_path):
    root = draw_data_set(tmp_path / "data", categories=("nut",), n_good=3, n_defects=2, size=(48, 40))  # 3 + 2 x 2
    return build_index("my_parts", "nut", root, kind="folder")


@pytest.fixture
def job(index, tmp_path):
    """Make a job of an experiment."""

    def made(chosen: CommandExperiment, seed: int = 0) -> MapJob:
        files = (tmp_path / "scores.npz", tmp_path / "train.json", tmp_path / "work")
        return MapJob(chosen, "theirs", index, seed, *files, "cpu", Tracker())

    return made


# The argument list ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["tool", "{test}", "{map}"], r"among \{train\}, .*\{width\}, but got \{map\}\. Did you mean 'maps'"),
        (["tool", "{train}", "{maps}"], r"expected the placeholder \{test\}"),
        (["tool", "--in={test}"], r"expected the placeholder \{maps\}"),
        (["tool", "{test}", "{maps}", 5], "but got 5, as YAML reads unquoted numbers.*: quote the name"),
        ([], "at least 1 item"),
    ],
)
def test_a_wrong_list_is_refused_when_the_file_is_read(command, message):
    with pytest.raises(ValidationError, match=message):
        CommandExperiment(method="command", command=command)


def test_placeholders_are_replaced_anywhere_in_an_argument_and_other_braces_stay():
    command = ["sh", "-c", "echo ${HOME} {test}", '{"ratio": 0.1, "size": [{height}, {width}]}', "--maps={maps}"]
    values = {"test": "a b", "maps": "m", "height": "3", "width": "4"}
    assert CommandExperiment(method="command", command=command).arguments(values) == [
        *("sh", "-c", "echo ${HOME} a b", '{"ratio": 0.1, "size": [3, 4]}', "--maps=m")
    ]


def test_the_list_and_the_named_files_decide_the_digest(tmp_path):
    script = tmp_path / "tool.py"
    script.write_text("1")
    chosen = experiment(["python", str(script), "{test}", "{maps}"], files=[str(script)])
    assert chosen.files_for("d", "c") == {"files[0]": str(script)}, "a missing one is reported before any job"
    first = fit_digest(chosen, "d", "c")
    assert fit_digest(chosen.model_copy(update={"timeout": 5.0, "label": "x"}), "d", "c") == first
    more = chosen.model_copy(update={"command": [*chosen.command, "--fast"]})
    script_edited = (script.write_text("2"), fit_digest(chosen, "d", "c"))[1]
    assert len({first, fit_digest(more, "d", "c"), script_edited}) == 3


def test_the_code_of_the_job_and_of_the_reading_decides_its_digest():
    found = modules_of(COMMAND.make_modules)
    assert {f"sanflow.methods.command.{name}" for name in ("maker", "folders", "process", "settings")} <= found
    assert "sanflow.anomaly_maps.from_other_tools" in found
    assert "sanflow.methods.registry" not in found


def test_the_command_refuses_an_experiment_of_another_kind(tmp_path):
    row = {"method": "external", "maps": "m"}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"datasets": {"photo_textures": {}}, "experiments": {"x": row}}))
    words = ["--experiment", "x", "--output", "a", "--history", "b", "--work", "c", "i.csv"]
    answer = CliRunner().invoke(app, ["make-maps", "--benchmark", str(tmp_path / "b.yaml"), *words])
    assert "Expected an experiment whose job makes maps, but 'x' is of `external`." in str(answer.exception)


# The folders ------------------------------------------------------------------------------------------------------


def test_the_folders_hold_the_bytes_under_names_that_say_nothing(index, tmp_path):
    given_as = lay_out(index, tmp_path, seed=3)
    assert sorted(given_as.values()) == sorted(os.listdir(tmp_path / "test")) == [f"{n:06d}.png" for n in range(7)]
    for path, name in given_as.items():
        file = tmp_path / "test" / name
        assert not file.is_symlink()
        assert file.stat().st_nlink == 1
        assert file.read_bytes() == (index.root / path).read_bytes()
    files = [file.read_bytes() for file in (tmp_path / "train").iterdir()]
    assert sorted(files) == sorted((index.root / path).read_bytes() for path in index.train.image)


def test_the_order_follows_the_seed_and_not_the_data_set(index, tmp_path):
    orders = []
    for number, seed in enumerate([0, 0, *range(1, 8)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        given_as = lay_out(index, folder, seed)
        orders.append([path for path, _ in sorted(given_as.items(), key=lambda item: item[1])])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 4
    assert any(order != list(index.test.image) for order in orders)


def test_files_of_several_types_become_one_type(tmp_path):
    """Else the ending could be the label."""
    mvtec(tmp_path / "data", "nut")
    for file in (tmp_path / "data/nut/test/broken").glob("*.png"):
        image(file.with_suffix(".bmp"), seed=int(file.stem) + 50)
        file.unlink()
    index = build_index("my_parts", "nut", tmp_path / "data", kind="folder")
    given_as = lay_out(index, tmp_path, seed=0)
    assert {Path(name).suffix for name in given_as.values()} == {".png"}
    for path, name in given_as.items():
        with Image.open(tmp_path / "test" / name) as found, Image.open(index.root / path) as expected:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_an_image_that_changed_since_it_was_indexed_is_refused(index, tmp_path):
    image(index.root / index.test.image[0], seed=99)
    with pytest.raises(DataError, match=r"as it was indexed .* but it has changed since"):
        lay_out(index, tmp_path, seed=0)


# The job ----------------------------------------------------------------------------------------------------------


def test_each_map_goes_to_its_image_and_the_cost_is_measured(index, job):
    made = job(experiment(tool("held = bytearray(60_000_000); __import__('time').sleep(0.3)")))
    make(made)
    scores = Scores.load(made.scores)
    expected = [np.asarray(Image.open(index.root / path).convert("L"), np.float32).mean() for path in scores.paths]
    assert scores.paths == list(index.test.image)
    assert scores.grids["map"].shape == (7, 48, 40)
    np.testing.assert_array_equal(scores.grids["map"][:, 7, 7], np.array(expected, np.float32))
    assert scores.provenance["steps"]["score"]["details"] == {"command": made.experiment.command}
    record = json.loads(made.record.read_text())
    assert record["device"] == "cpu"
    assert record["job"]["experiment"] == "theirs"
    assert 0.05 < record["seconds"]["total"] < 120
    assert 6e7 < record["peak_memory_bytes"] < 1e9
    assert not made.work.exists()


def test_a_tool_sees_the_values_but_no_variable_that_names_the_data_set(job, capfd, monkeypatch):
    monkeypatch.setenv("SANFLOW_BENCHMARK", "secret.yaml")
    show = "import os; print(sys.argv[4:], [name for name in os.environ if name.startswith('SANFLOW')])"
    command = [*tool(show), "{seed}", "{device}", "{height}x{width}"]
    make(job(experiment(command), seed=7))
    assert "['7', 'cpu', '32x32'] []" in capfd.readouterr().err


@pytest.mark.parametrize(("pool", "device"), [(["GPU-1"], "cuda"), ([], "cpu")])
def test_the_device_is_the_one_that_the_job_has(index, tmp_path, monkeypatch, pool, device):
    monkeypatch.setattr(gpu_slots, "gpu_pool", lambda environment: pool)
    monkeypatch.chdir(tmp_path)
    write_index(index, tmp_path / "index.csv")
    command = [*tool("open('device', 'w').write(sys.argv[4])"), "{device}"]
    row = {"method": "command", "command": command, "input_size": 32}
    datasets = {"my_parts": {"kind": "folder", "root": str(index.root)}}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"datasets": datasets, "experiments": {"theirs": row}}))
    words = ["--experiment", "theirs", "--output", "s.npz", "--history", "t.json", "--work", "w", "index.csv"]
    CliRunner().invoke(app, ["make-maps", "--benchmark", "b.yaml", *words], catch_exceptions=False)
    assert (tmp_path / "device").read_text() == json.loads((tmp_path / "t.json").read_text())["device"] == device


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("if file.stem == '000002': continue", r"- nut/test/\S+ \(given as 000002\.png\): no map"),
        (
            "if file.stem == '000002': pixels[:] = np.nan",
            r"000002\.npy, the map of nut/test/\S+ \(given as 000002\.png\): expected finite numbers",
        ),
        (
            "if file.stem == '000002': pixels = pixels[:5, :6]",
            r"000002\.npy, the map of nut/test/\S+ \(given as 000002\.png\): expected height x width "
            r"32 x 32 or 48 x 40, but got 5 x 6",
        ),
    ],
)
def test_wrong_maps_are_told_by_both_names_and_nothing_is_written(job, change, message):
    made = job(experiment(tool(change)))
    with pytest.raises(DataError, match=message):
        make(made)
    assert not made.scores.exists()
    assert not made.record.exists()


def test_what_an_earlier_attempt_left_is_not_taken(job):
    made = job(experiment(python("pass", "{test}", "{maps}")))
    left = made.work / "tmpold" / "maps"
    left.mkdir(parents=True)
    for number in range(7):
        np.save(left / f"{number:06d}.npy", np.zeros((32, 32), np.float32))
    with pytest.raises(DataError, match="no map"):
        make(made)
    assert not left.exists()


# The process ------------------------------------------------------------------------------------------------------


def test_a_program_that_does_not_exist():
    with pytest.raises(ToolError, match=r"'no-such-tool' cannot: .*No such file.*Install it or correct `command`"):
        run(["no-such-tool"])


def test_a_failing_command_says_its_code_and_its_last_lines(capfd):
    with pytest.raises(
        ToolError, match=r"exited with code 3\. Its last lines:\n(  line \d+\n)+  wrong weights$"
    ) as caught:
        run(
            python(
                "import sys; print(*map('line {}'.format, range(99)), sep='\\n'); print('wrong weights'); sys.exit(3)"
            )
        )
    assert "line 84" not in str(caught.value)
    assert "line 0\n" in capfd.readouterr().err, "the log has all of it"
    with pytest.raises(ToolError, match=r"was ended by SIGKILL\. It wrote nothing\."):
        run(python("import os; os.kill(os.getpid(), 9)"))


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path):
    started = time.monotonic()
    with pytest.raises(ToolError, match=r"within 0\.05 minutes.*Raise `timeout`"):
        run(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/child; wait"], timeout=3.0)
    assert time.monotonic() - started < 60
    _require_ended(int((tmp_path / "child").read_text()))


def test_children_that_outlive_the_command_are_ended(tmp_path):
    run(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/child"])
    _require_ended(int((tmp_path / "child").read_text()))


def test_memory_is_that_of_the_command_and_its_children():
    child = f"{sys.executable} -c 'import time; held = bytearray(300_000_000); time.sleep(2)'"
    _, peak = run(["sh", "-c", f"{child} & {child}; wait"])
    assert 600e6 < peak < 900e6


def test_a_terminated_job_ends_the_tool_and_starts_anew(index, tmp_path):
    script = tmp_path / "slow.py"
    head = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nif not os.path.exists('go'): time.sleep(600)\n"
    script.write_text(head + TOOL.replace("{change}", ""))
    write_index(index, tmp_path / "index.csv")
    command = [sys.executable, "slow.py", "{train}", "{test}", "{maps}"]
    row = {"method": "command", "command": command, "input_size": 32}
    datasets = {"my_parts": {"kind": "folder", "root": str(index.root)}}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"datasets": datasets, "experiments": {"theirs": row}}))
    words = ["--benchmark", "b.yaml", "--experiment", "theirs", "--output", "scores.npz", "--history", "train.json"]
    program = [sys.executable, "-c", "from sanflow.cli import main; main()", "make-maps", "index.csv"]
    line = [*program, *words, "--work", "work", "--device", "cpu"]
    running = subprocess.Popen(line, cwd=tmp_path)
    end = time.monotonic() + 200
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < end
        assert running.poll() is None
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=100) == 143
    _require_ended(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "scores.npz").exists()
    (tmp_path / "go").touch()
    subprocess.run(line, cwd=tmp_path, check=True)
    assert len(Scores.load(tmp_path / "scores.npz").paths) == 7


def _require_ended(pid: int) -> None:
    """A zombie has ended too: it waits for its parent alone."""
    end = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, f"process {pid} still runs"
        time.sleep(0.1)
