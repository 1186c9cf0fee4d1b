"""The command lines: every documented flag, the defaults of every recipe, no silent flag, a dry run."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from conftest import autorep_config
from hypothesis import given, settings
from hypothesis import strategies as st

from autorep.cli.configuration import config_from, idle_flags
from autorep.cli.flags import FLAGS
from autorep.cli.flags_page import flags_page
from autorep.cli.main import main
from autorep.cli.parser import build_parser
from autorep.cli.wording import in_flags
from autorep.config import PARTS, BudgetConfig, RunConfig
from autorep.gates.gated_relu import iter_gates
from autorep.mpc.engines import ENGINES
from autorep.runs import checkpoint
from autorep.runs.config_file import from_json
from autorep.runs.folder import RunFolder
from autorep.training.fit import fit

# Frozen: people have these in their scripts.
FROZEN = set("""
--ReLU_count --act_type --anneal_fraction --arch --augment --batch_size --budget_schedule --calibration_batches
--checkpoint_path --clip_scores --clip_x2 --clip_x2_bool --compile --dapa_fit --data_path --dataset --degree --distil
--dropout --dry_run --ema_decay --enable_grad_norm --enable_lookahead --epochs --evaluate --ext --freezeact --gpu
--gpus --kept --label_smoothing --lamda --lr_update --mask_epochs --max_minutes --nesterov --optim --optimizer
--out_dir --precision --pretrained --pretrained_path --price --price_budget --print_freq --range_width --recipe
--refit_every --refit_until --relu_layers
--resume --scale_x1 --scale_x2 --score_init --seed --sigmoid --start-epoch --start_epoch --teacher_arch --teacher_path
--temperature --threshold --validation_fraction --var_min --w_grad_clip --w_lr --w_lr_min --w_mask_lr --w_momentum
--w_weight_decay --warmup_epochs --workers -e
""".split())  # noqa: SIM905
AUTOREP = ["--ReLU_count", "12.9", "--pretrained_path", "b.pth.tar"]


def parse(kind, *argv):
    given = vars(build_parser(kind).parse_args(list(argv)))
    return config_from(kind, given), idle_flags(given, config_from(kind, given))


@pytest.mark.parametrize("kind", ["baseline", "autorep"])
def test_both_scripts_have_the_flags_that_they_had(kind):
    known = {option for action in build_parser(kind)._actions for option in action.option_strings}
    assert known - {"-h", "--help"} == FROZEN


def test_the_reference_recipes_are_the_published_ones():
    baseline, _ = parse("baseline")
    assert (baseline.epochs, baseline.data.batch_size, baseline.optim.optimizer) == (400, 256, "sgd")
    assert (baseline.optim.lr, baseline.optim.momentum, baseline.optim.weight_decay) == (0.1, 0.9, 5e-4)
    assert (baseline.optim.schedule, baseline.optim.lr_min, baseline.gate) == ("cosine", 1e-5, None)
    autorep, _ = parse("autorep", *AUTOREP, "--recipe", "reference")
    assert (autorep.search_epochs, autorep.data.batch_size, autorep.optim.optimizer) == (200, 128, "adam")
    assert (autorep.optim.lr, autorep.optim.score_lr, autorep.gate.threshold) == (1e-3, 1e-3, 0.003)
    assert (autorep.budget.schedule, autorep.budget.penalty_weight) == ("constant", 140)
    assert (autorep.gate.score_init, autorep.dapa.fit, autorep.dapa.scale_x2) == ("uniform", "gaussian", 0.1)
    assert (autorep.epochs, autorep.optim.ema_decay, autorep.optim.lookahead) == (0, 0, False)
    assert autorep.budget.relu_budget == 12_900


def test_python_and_the_command_line_have_the_same_defaults():
    assert parse("baseline")[0] == RunConfig()
    assert parse("autorep", "--ReLU_count", "12.9")[0] == RunConfig.for_search(relu_budget=12_900)


def test_errors_name_the_flag_on_the_command_line_and_the_field_in_python():
    with pytest.raises(ValueError, match="invalid penalty_weight=-1.0") as error_info:
        parse("autorep", *AUTOREP, "--lamda", "-1")
    assert in_flags(error_info.value) == "invalid --lamda=-1.0: expected 0 or more"
    with pytest.raises(ValueError, match="invalid relu_budget=-500") as error_info:
        parse("autorep", "--ReLU_count", "-0.5")
    assert in_flags(error_info.value) == "invalid --ReLU_count=-0.5: expected 0 or more whole ReLUs per image"
    with pytest.raises(ValueError, match="invalid relu_budget=0.4: expected 0 or more whole"):  # not 0 in silence
        parse("autorep", "--ReLU_count", "0.0004")
    assert in_flags("`optim.lr`, `budget.schedule`, `other`") == "--w_lr, --budget_schedule, `other`"
    with pytest.raises(ValueError, match="invalid penalty_weight=-1: expected 0 or more"):
        BudgetConfig(relu_budget=1, penalty_weight=-1)


def test_help_shows_what_does_something_in_that_script(capsys):
    shown = {}
    for kind in ("baseline", "autorep"):
        build_parser(kind).print_help()
        shown[kind] = capsys.readouterr().out
    assert "--lamda WEIGHT" in shown["autorep"] and "--lamda" not in shown["baseline"]
    assert "learning rate of the weights and of the coefficients" in " ".join(shown["autorep"].split())
    assert "(default: 0.001)" in shown["autorep"] and "(default: 0.1)" in shown["baseline"]


def test_a_recipe_sets_defaults_and_only_flags_that_are_given_are_said_to_be_idle():
    assert parse("autorep", *AUTOREP, "--recipe", "best")[0] == parse("autorep", *AUTOREP)[0]
    best, idle = parse("autorep", *AUTOREP, "--recipe", "best", "--act_type", "ReLU_masked_relay", "--threshold", "0.1")
    assert best.dapa is None and not idle  # the recipe's way to fit coefficients is idle, but nobody asked for it
    assert (best.gate.score_init, best.gate.threshold) == ("saliency", 0.1)
    best, _ = parse("autorep", *AUTOREP)
    assert (best.dapa.fit, best.dapa.scale_x2, best.search_epochs, best.epochs) == ("recorded", 0.2, 200, 0)
    assert parse("autorep", *AUTOREP, "--recipe", "best", "--score_init", "uniform")[0].gate.score_init == "uniform"


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 2_000_000))
def test_a_budget_in_thousands_is_exact(budget):
    config, _ = parse("autorep", "--ReLU_count", str(budget / 1000), "--pretrained_path", "b")
    assert config.budget.relu_budget == budget


@pytest.mark.parametrize(("kind", "argv", "folder"), [
    ("baseline", ["--arch", "wide_resnet_22_8", "--dataset", "tiny_imagenet"],
     "train_cifar/wide_resnet_22_8__tiny_imagenet/cosine_baseline_ReLUs0lr0.1ep400_baseline"),
    ("autorep", ["--arch", "wide_resnet_22_8", "--dataset", "tiny_imagenet", "--ReLU_count", "150", "--mask_epochs",
                 "80", "--distil", "--teacher_path", "t", "--pretrained_path", "t"],
     "train_cifar_dapa2_distil_relay/wide_resnet_22_8_wide_resnet_22_8_tiny_imagenet_relay_0.003/"
     "cosine_ReLUs150.0wm_lr0.001mep80_baseline"),
    ("autorep", [*AUTOREP, "--act_type", "ReLU_masked", "--ext", "x"],
     "train_cifar/resnet18_in__cifar10/cosine_ReLUs12.9wm_lr0.001mep200_x"),
])
def test_run_folders_are_the_documented_ones(kind, argv, folder):
    assert str(RunFolder.of(parse(kind, *argv)[0]).path) == folder


@pytest.mark.parametrize(("kind", "argv", "idle"), [
    ("baseline", ["--threshold", "0.1", "--lamda", "3", "--w_lr", "0.2"], {"threshold", "lamda"}),
    ("baseline", ["--dataset", "digits", "--data_path", "x", "--workers", "2"], {"data_path", "workers"}),
    ("baseline", ["--optimizer", "adam", "--w_momentum", "0.5"], {"w_momentum"}),
    ("baseline", ["--enable_grad_norm", "false", "--w_grad_clip", "1"], {"w_grad_clip"}),
    ("baseline", ["--teacher_path", "x"], {"teacher_path"}),
    ("autorep", [*AUTOREP, "--act_type", "ReLU_masked", "--threshold", "1", "--degree", "1"], {"threshold", "degree"}),
    ("autorep", [*AUTOREP, "--act_type", "ReLU_masked_autopoly_relay", "--scale_x2", "2"], {"scale_x2"}),
    ("autorep", [*AUTOREP, "--scale_x2", "2", "--degree", "1"], {"scale_x2"}),
    ("autorep", [*AUTOREP, "--clip_x2", "2"], {"clip_x2"}),
    ("autorep", [*AUTOREP, "--ema_decay", "0.9"], {"ema_decay"}),
    ("baseline", ["--score_init", "saliency", "--ema_decay", "0.9"], {"score_init"}),
    ("autorep", [*AUTOREP, "--budget_schedule", "constant", "--anneal_fraction", "0.5"], {"anneal_fraction"}),
    ("autorep", [*AUTOREP, "--budget_schedule", "constant", "--anneal_fraction", "0.5", "--relu_layers", "4"], set()),
    ("autorep", ["--ReLU_count", "0", "--pretrained_path", "b", "--relu_layers", "4"], {"relu_layers"}),
    ("autorep", [*AUTOREP, "--clip_x2_bool", "--clip_x2", "2", "--var_min", "0.5"], set()),
    ("autorep", ["--ReLU_count", "1", "--mask_epochs", "0", "--epochs", "3", "--checkpoint_path", "c", "--lamda", "1",
                 "--w_mask_lr", "1", "--pretrained_path", "b", "--score_init", "saliency",
                 "--relu_layers", "3"],
     {"lamda", "w_mask_lr", "pretrained_path", "score_init"}),
    # Ranges are recorded in every run, and in a search for a price new kinds are fitted.
    ("autorep", ["--ReLU_count", "1", "--checkpoint_path", "c", "--range_width", "1", "--calibration_batches", "5",
                 "--scale_x2", "1"], {"scale_x2"}),
    ("autorep", ["--price", "spu-semi2k:wan", "--price_budget", "0.5", "--checkpoint_path", "c", "--range_width", "1",
                 "--scale_x2", "1"], set()),
])
def test_flags_without_effect_are_named(kind, argv, idle):
    assert set(parse(kind, *argv)[1]) == idle


def test_messages_name_fields_that_there_are():
    named = {name for path in (Path(__file__).parent.parent / "autorep").rglob("*.py")
             for name in re.findall(r'"[^"\n]*`([a-z_]+\.[a-z_]+)`[^"\n]*"', path.read_text())}
    owners = PARTS.keys()
    fields = {name for name in named if name.split(".")[0] in owners}
    assert len(fields) >= 5 and all(in_flags(f"`{name}`").startswith("--") for name in fields)


def test_every_flag_reaches_the_configuration_or_is_said_to_be_idle():
    other = {"arch": "resnet20", "dataset": "mnist", "act_type": "ReLU_masked_relay", "optimizer": "adam", "gpu": "cpu",
             "optim": "cosine_rst", "precision": "bf16", "budget_schedule": "cosine", "kept": "relu",
             "sigmoid": "hard", "degree": "3", "dapa_fit": "gaussian", "recipe": "reference", "resume": "auto",
             "enable_grad_norm": "false",
             "compile": "true", "clip_scores": "false", "lr_update": "epoch", "distil": "false", "w_lr_min": "1e-6",
             "augment": "false", "score_init": "uniform", "price": "spu-cheetah", "price_budget": "0.5",
             **dict.fromkeys(("dropout", "threshold", "w_momentum", "validation_fraction", "anneal_fraction",
                             "ema_decay", "label_smoothing"), "0.7")}
    base = ["--ReLU_count", "12", "--optimizer", "sgd", "--checkpoint_path", "c", "--epochs", "30", "--teacher_path",
            "t", "--distil", "true"]
    plain, _ = parse("autorep", *base)
    for name, flag in FLAGS.items():
        if name in ("evaluate", "dry_run"):
            continue
        option = flag.names[-1]
        values = [other[name]] if name in other else ["true"] if flag.default("autorep") is False else ["7"]
        values += {"price": ["--price_budget", "0.5"], "price_budget": ["--price", "spu-cheetah"]}.get(name, [])
        config, idle = parse("autorep", *base, option, *values)
        assert config != plain or name in idle, name


@pytest.mark.parametrize(("argv", "message"), [
    (["--nonsense", "1"], "unrecognized arguments: --nonsense"),
    (["--thresh", "1"], "unrecognized arguments: --thresh"),
    (["--optim", "step"], "invalid choice"), (["--distil", "perhaps"], "invalid value 'perhaps'"),
    ([], "--ReLU_count is missing"), ([*AUTOREP, "--distil"], "--distil needs --teacher_path"),
    ([*AUTOREP, "--act_type", "nn.ReLU"], "belongs to train_baseline.py"), ([*AUTOREP, "--w_lr", "-1"], "w_lr=-1.0"),
    ([*AUTOREP, "--arch", "resnet18in", "--dataset", "digits", "--dry_run"], "resnet18in"),
    ([*AUTOREP, "--dataset", "digits", "--relu_layers", "99", "--ReLU_count", "1", "--dry_run"], "relu_layers=99"),
    ([*AUTOREP, "--arch", "torchvision:alexnet", "--dataset", "cifar10", "--dry_run"], "cannot run on images [3, 32,"),
    ([*AUTOREP, "--relu_layers", "0"], "relu_layers=0"), ([*AUTOREP, "--price", "spu-semi2k:wan"], "price_budget=None"),
    (["-e"], "--evaluate needs --checkpoint_path"), ([*AUTOREP, "--gpu", "0,1", "--dataset", "digits"], "torchrun"),
    ([*AUTOREP, "--gpu", "cpu", "--dataset", "digits"], "no checkpoint at b.pth.tar"),
    ([*AUTOREP, "--gpu", "cpu", "--dataset", "cifar100", "--data_path", "nowhere"], "download_cifar.sh"),
])
def test_bad_input_exits_with_one_clear_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main("autorep", argv)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_outside_of_training_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("autorep.cli.main.fit", lambda config: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as exit_info:
        main("baseline", ["--dataset", "digits"])
    assert exit_info.value.code == 130
    assert "interrupted" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_dry_run_prints_configuration_folder_and_total_and_makes_nothing(capsys, tmp_path):
    main("baseline", ["--arch", "resnet18_in", "--dataset", "cifar100", "--out_dir", str(tmp_path), "--dry_run"])
    out = capsys.readouterr().out
    config = from_json(out[: out.index("\nrun folder:")])
    assert config.model.arch == "resnet18_in"
    assert f"run folder: {RunFolder.of(config).path}" in out and "ReLUs per image: 491,520 in 16 layers" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flags", "line"), [
    (["--degree", "1"], r"price of an image under spu-semi2k:wan: 0.8 MB, 78 rounds and 0.80 s with all ReLUs; "
                        r"0.4 MB, 78 rounds and 0.79 s with 1,000 spread over all layers"),
    (["--kept", "original", "--arch", "torchvision:mobilenet_v3_small", "--dataset", "cifar10"],
     "no private-inference prices: features.0.2: kept pixels compute Hardswish, which private inference .*"),
], ids=["priced", "not known"])
def test_dry_run_of_a_search_prints_its_price_or_why_it_has_none(flags, line, capsys):
    main("autorep", [*AUTOREP, "--arch", "resnet8", "--dataset", "digits", "--ReLU_count", "1", *flags, "--dry_run"])
    assert re.fullmatch(line, capsys.readouterr().out.splitlines()[-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_a_gpu_that_is_not_there_warns_and_the_idle_flag_too(capsys, tmp_path):
    main("baseline", ["--arch", "resnet8", "--dataset", "digits", "--epochs", "1", "--gpu", "0", "--lamda", "3",
                      "--out_dir", str(tmp_path)])
    err = capsys.readouterr().err
    assert "--gpu 0: this machine has no CUDA device" in err and "--lamda has no effect" in err


def test_a_dry_run_refuses_what_the_run_would(baseline, capsys):
    with pytest.raises(SystemExit):
        main("baseline", ["--arch", "resnet8", "--dataset", "digits", "--w_lr", "0.1", "--epochs", "3", "--ext", "test",
                          "--out_dir", str(baseline.parents[2]), "--dry_run"])
    assert "already holds a run" in capsys.readouterr().err


def test_evaluate_flag_and_module_report_the_same_and_change_nothing(baseline, capsys, tmp_path, monkeypatch):
    from autorep.evaluate import main as evaluate_main

    config = autorep_config(tmp_path, baseline / "last.pth.tar", epochs=0)
    summary = fit(config)
    path = RunFolder.of(config).last
    before = path.read_bytes()
    capsys.readouterr()
    monkeypatch.setenv("HOME", str(path.parent))
    main("autorep", ["-e", f"--checkpoint_path=~/{path.name}", "--gpu", "cpu"])
    first = capsys.readouterr().out
    evaluate_main(["--checkpoint", str(path), "--gpu", "cpu"])
    second = capsys.readouterr().out
    assert first == second and path.read_bytes() == before
    report = json.loads(second.splitlines()[-1])
    costs = report.pop("mpc")
    assert set(costs) == set(ENGINES) and all(cost["bytes"] > 0 for cost in costs.values())
    assert report == {"top1": summary["test_top1"], "top5": summary["test_top5"], "num_lost": 0,
                      "relu_kept": summary["relu_kept"], "relu_total": 4608}
    gates = dict(iter_gates(checkpoint.build_from(checkpoint.load(path))))
    table = {line.split()[0]: line for line in second.splitlines() if line.strip()}
    assert len(gates) == 7 and all(f"{gate.num_kept:,}" in table[name] for name, gate in gates.items())


def test_the_page_of_flags_is_that_of_the_flags():
    page = Path(__file__).parent.parent / "docs" / "flags.md"
    assert page.read_text() == flags_page(), "python -m autorep.cli.flags_page > docs/flags.md"
