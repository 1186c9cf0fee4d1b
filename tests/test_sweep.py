"""The sweep over real runs on the digits, and over scripts that fail or take for ever."""

import multiprocessing
import os
import signal
import threading

import pytest
from tiny_study import TINY, load, sorted_rows, wait_until, write

from autorep.cli.configuration import config_from
from autorep.cli.parser import build_parser
from autorep.runs.folder import RunFolder
from autorep.sweep import jobs
from autorep.sweep.__main__ import main
from autorep.sweep.jobs import Stop, run_script, wait_for_lock
from autorep.sweep.runner import Sweep, shard_of, state_of, with_baselines


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose sweep was killed in the middle of the baseline, and then done in two shards at once."""
    folder = tmp_path_factory.mktemp("study")
    argv = [str(write(folder)), "--gpu", "cpu", "--out_dir", str(folder / "out"), "--results", str(folder / "tiny.csv")]
    baseline = load(folder).runs[0].baseline
    process = multiprocessing.get_context("fork").Process
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        killed = process(target=main, args=(argv,))
        killed.start()
        wait_until((baseline.folder.path / "sweep.log").is_file)
        killed.kill()
        killed.join()
        assert state_of(baseline) != "finished"
        other = process(target=main, args=([*argv, "--shard", "2/2"],))
        other.start()
        assert main([*argv, "--shard", "1/2"]) == 0
        other.join()
    return folder, argv


@pytest.mark.slow
def test_a_killed_sweep_is_completed_and_every_run_has_its_row(study):
    folder, _ = study
    runs = with_baselines(load(folder).runs)
    assert [state_of(run) for run in runs] == ["finished"] * 5
    assert len({run.folder for run in runs}) == 5
    log = (runs[0].folder.path / "sweep.log").read_text()
    assert log.count("run folder:") == 2, "the baseline that outlived its sweep was waited for, not done twice"
    rows = sorted_rows(folder / "tiny.csv")
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("baseline", "0"), ("identity", "0"), ("identity", "1"), ("quadratic", "0"), ("quadratic", "1")]
    for row in rows[1:]:
        assert (row["study"], row["recipe"], row["dataset"]) == ("tiny", "tiny.toml", "digits")
        assert int(row["relu_kept"]) <= int(row["relu_budget"]) == 1000
        assert 0 < float(row["validation_top1_last_epoch"]) <= 100 and float(row["cheetah_wan_seconds"]) > 0
        assert int(row["semi2k_bytes"]) < int(rows[0]["semi2k_bytes"]) and int(row["cheetah_bytes"]) > 0
        assert row["torchvision"] and row["cpus"] and row["selection"] == "last epoch"
    assert "--teacher_path" not in rows[1]["command"] and "--distil true" in rows[3]["command"]


@pytest.mark.slow
def test_the_command_of_a_row_stands_for_the_same_run(study):
    folder, _ = study
    runs = sorted(with_baselines(load(folder).runs), key=lambda run: (run.variant, run.config.seed))
    for run, row in zip(runs, sorted_rows(folder / "tiny.csv"), strict=True):
        script, *flags = row["command"].replace("$OUT", str(folder / "out")).split()
        kind = {"train_baseline.py": "baseline", "train_autorep.py": "autorep"}[script]
        config = config_from(kind, vars(build_parser(kind).parse_args(flags)))
        assert config == run.config and RunFolder.of(config) == run.folder


@pytest.mark.slow
def test_a_finished_study_starts_nothing_and_restores_lost_rows(study, monkeypatch, capsys):
    folder, argv = study
    table = folder / "tiny.csv"
    before = table.read_text()
    monkeypatch.setattr(jobs.subprocess, "Popen", None)
    assert main(argv) == 0
    assert table.read_text() == before
    table.write_text("".join(before.splitlines(keepends=True)[:-1]))
    assert main(argv) == 0
    assert table.read_text() == before
    capsys.readouterr()
    assert main([*argv, "--dry_run"]) == 0
    assert "5 runs: 5 finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_of_other_settings_is_named_and_never_taken_for_finished(study, monkeypatch, capsys):
    folder, argv = study
    monkeypatch.setattr(jobs.subprocess, "Popen", None)
    write(folder, **{"w_mask_lr = 0.5": "w_mask_lr = 0.5\nlamda = 99"})
    try:
        assert main(argv) == 1
    finally:
        write(folder)
    out = capsys.readouterr().out
    assert "failed: quadratic seed=0" in out and "budget.penalty_weight 140.0, 99.0" in out


def scripted(folder, scripts, text=TINY):
    """Runs of a study whose scripts are replaced: variant -> Python source."""
    runs = with_baselines(load(folder, text).runs)
    for run in runs:
        path = folder / f"{run.variant}.py"
        path.write_text(scripts.get(run.variant, "raise SystemExit('no such script')"))
        type(run).words = property(lambda self: [str(folder / f"{self.variant}.py")])
    return runs


@pytest.fixture
def words(monkeypatch):
    from autorep.sweep.study import Run

    monkeypatch.setattr(Run, "words", Run.words)  # put back after the test


def test_a_failed_run_is_reported_with_its_log_and_what_needs_it_is_not_started(tmp_path, words, capsys):
    scripts = {"baseline": "print('the disk is full'); raise SystemExit(3)"}
    sweep = Sweep(scripted(tmp_path, scripts), tmp_path / "t.csv", {"study": "tiny", "recipe": "r"}, Stop())
    sweep.run()
    reasons = [sweep.failures[run] for run in sweep.runs]
    assert "exit code 3" in reasons[0] and "the disk is full" in reasons[0]
    assert reasons[1:] == ["not started: its baseline failed"] * 4
    assert not (tmp_path / "t.csv").exists()


def test_others_go_on_after_a_failure_and_the_exit_code_says_so(tmp_path, words, capsys, monkeypatch):
    scripts = {"baseline": "", "identity": "raise SystemExit('diverged')", "quadratic": "raise SystemExit('too')"}
    scripted(tmp_path, scripts)
    baseline = load(tmp_path).runs[0].baseline
    from autorep.sweep import runner as sweep

    finished = {"seconds": 1.0, "test_top1": 50.0, "relu_kept": 5}
    monkeypatch.setattr(sweep, "finished_summary", lambda run: finished if run.folder == baseline.folder else None)
    monkeypatch.setattr(sweep, "has_row", lambda *args: True)
    argv = [str(tmp_path / "tiny.toml"), "--out_dir", str(tmp_path / "out"), "--results", str(tmp_path / "t.csv")]
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert out.count("diverged") == 2 and out.count("too") == 2


def test_a_run_whose_files_cannot_be_read_fails_alone(tmp_path, monkeypatch):
    from autorep.sweep import runner

    finished = {"seconds": 1.0, "test_top1": 50.0, "relu_kept": 5}
    monkeypatch.setattr(runner, "finished_summary", lambda run: finished)
    monkeypatch.setattr(runner, "row_of", lambda *_, **__: (tmp_path / "last.pth.tar").read_bytes())
    sweep = Sweep(with_baselines(load(tmp_path).runs)[:1], tmp_path / "t.csv", {}, Stop())
    monkeypatch.setattr(runner, "has_row", lambda *_: False)
    sweep.run()
    assert "last.pth.tar" in sweep.failures[sweep.runs[0]]


SLOW = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(0)))
Path(__file__ + ".started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_run_save_and_ends_the_sweep(tmp_path, words, capsys, number):
    runs = scripted(tmp_path, {"baseline": SLOW})
    started = tmp_path / "baseline.py.started"

    def interrupt():
        wait_until(started.is_file)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    argv = [str(tmp_path / "tiny.toml"), "--out_dir", str(tmp_path / "out"), "--gpu", "cpu"]
    assert main(argv) == 0
    thread.join()
    assert (runs[0].folder.path / "sweep.log").read_text() == "saved\n"
    assert "stopped: 5 of 5 runs are left" in capsys.readouterr().out


def test_minutes_end_a_run_and_start_no_other(tmp_path, words, capsys):
    runs = scripted(tmp_path, {"baseline": SLOW})
    argv = [str(tmp_path / "tiny.toml"), "--out_dir", str(tmp_path / "out"), "--max_minutes", "0.03"]
    assert main(argv) == 0
    assert (runs[0].folder.path / "sweep.log").read_text() == "saved\n" and not runs[1].folder.path.exists()
    assert main([*argv[:-1], "1e-9"]) == 0


def test_the_lock_lasts_as_long_as_the_script_and_a_stop_ends_the_waiting(tmp_path):
    stop = Stop()
    lock = wait_for_lock(tmp_path / "lock", stop)
    (tmp_path / "slow.py").write_text(SLOW)
    thread = threading.Thread(target=run_script,
                              args=([str(tmp_path / "slow.py")], tmp_path / "log", lock, stop))
    thread.start()
    wait_until((tmp_path / "slow.py.started").is_file)
    lock.close()  # as when the sweep is killed
    assert wait_for_lock(tmp_path / "lock", Stop(0.005)) is None
    stop.request()
    thread.join()
    wait_for_lock(tmp_path / "lock", Stop(1)).close()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_shards_partition_the_runs_and_each_has_its_baseline(tmp_path, n):
    runs = load(tmp_path).runs
    shards = [shard_of(runs, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(run.name for shard in shards for run in shard) == sorted(run.name for run in runs)
    for shard in filter(None, shards):
        assert with_baselines(shard) == [runs[0].baseline, *shard]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_bad_shards_are_refused(tmp_path, shard):
    with pytest.raises(ValueError, match="i/n with i from 1 to n"):
        shard_of([], shard)
