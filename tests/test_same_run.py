"""Which settings make another run, and which only say where it computes."""

import dataclasses

import pytest
from conftest import autorep_config
from tiny_study import TINY, write

from autorep.config import DistillConfig, ModelConfig
from autorep.runs.config_file import to_json
from autorep.runs.same_run import differences
from autorep.sweep.runner import finished_summary, state_of
from autorep.sweep.study import load_study

RUN = "train_cifar/resnet8__digits/leaf/last.pth.tar"


@pytest.mark.parametrize(("there", "here", "same"), [
    ("networks/dense.pth", "/elsewhere/dense.pth", True), ("networks/dense.pth", "networks/other.pth", False),
    (f"out/{RUN}", f"/moved/{RUN}", True), (RUN, f"../../{RUN}", True),
    (f"out/{RUN}", f"out/{RUN.replace('leaf', 'seed1')}", False), (f"out/{RUN}", "out/dense.pth", False),
    (f"out/{RUN}", f"out/{RUN.replace('last', 'best')}", False),
    ("weights/last.pth.tar", "../project/weights/last.pth.tar", True), ("a/last.pth.tar", "b/last.pth.tar", False),
])
def test_weights_may_move_but_not_be_others(tmp_path, there, here, same):
    a, b = (autorep_config(tmp_path, path) for path in (there, here))
    assert (differences(a, b) == []) is same and (differences(b, a) == []) is same
    assert bool(differences(a, dataclasses.replace(a, distill=None)))
    assert bool(differences(a, dataclasses.replace(a, model=ModelConfig(arch="resnet8"))))
    assert bool(differences(a, dataclasses.replace(a, distill=DistillConfig(teacher_arch="vgg", teacher_path=there))))


def test_a_finished_run_is_one_from_another_folder_too(tmp_path, monkeypatch):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "dense.pth").touch()
    path = write(tmp_path, TINY.replace("epochs = 1\n[common]", 'weights = "dense.pth"\n[common]'))

    def runs_from(folder):
        monkeypatch.chdir(folder)
        return load_study(path, {"out_dir": str(tmp_path / "out"), "gpu": "cpu"}).runs

    run = runs_from(tmp_path)[-1]
    run.folder.path.mkdir(parents=True)
    (run.folder.path / "config.json").write_text(to_json(run.config))
    run.folder.summarise_({"finished": True, "selection": "last epoch", **dict.fromkeys(
        ("step", "num_steps", "seconds", "relu_kept", "relu_total", "layers_with_relu", "test_top1"), 1)})
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "deep"):
        again = runs_from(folder)[-1]
        assert state_of(again) == "finished" and finished_summary(again)["test_top1"] == 1
