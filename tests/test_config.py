"""Configurations: validated at birth, to and from JSON."""

import json

import pytest

from autorep.act_types import ACT_TYPES, act_type_of, gate_of
from autorep.config import BudgetConfig, DapaConfig, DistillConfig, GateConfig, OptimConfig, RunConfig
from autorep.runs.config_file import from_json, to_json


def test_json_round_trip_keeps_everything():
    config = RunConfig(gate=GateConfig(replacement="dapa", degree=1),
                       dapa=DapaConfig(clip_x2=1.0), budget=BudgetConfig(relu_budget=12_900), search_epochs=3,
                       distill=DistillConfig(teacher_arch="resnet8", teacher_path="t.pth.tar"), max_minutes=1.5)
    assert from_json(to_json(config)) == config


def test_another_version_or_an_unknown_field_is_refused():
    values = json.loads(to_json(RunConfig(epochs=1)))
    with pytest.raises(ValueError, match="version 99"):
        from_json(json.dumps({**values, "version": 99}))
    for damaged in ("[]", json.dumps({**values, "seed": "none"})):
        with pytest.raises(ValueError, match="configuration"):
            from_json(damaged)
    with pytest.raises(ValueError, match="OptimConfig has no field"):
        from_json(json.dumps({**values, "optim": {**values["optim"], "speed": 1}}))


@pytest.mark.parametrize(("cls", "values", "message"), [
    (GateConfig, {"degree": 5}, "degree=5"), (GateConfig, {"threshold": -1.0}, "threshold=-1.0"),
    (GateConfig, {"replacement": "cubic"}, "replacement='cubic'"),
    (GateConfig, {"score_init_low": -1.0}, "score_init_low"), (GateConfig, {"score_init": "ones"}, "score_init='ones'"),
    (OptimConfig, {"ema_decay": 1.0}, "ema_decay=1.0"),
    (BudgetConfig, {"relu_budget": -1}, "relu_budget=-1"), (OptimConfig, {"lr": 0.0}, "lr=0.0"),
    (OptimConfig, {"lr": 1e-6}, "lr_min"), (DapaConfig, {"var_min": 0.0}, "var_min"),
    (BudgetConfig, {"relu_budget": 1, "penalty_weight": -1}, "penalty_weight=-1"),
    (RunConfig, {"epochs": 0}, "epochs=0"), (RunConfig, {"gate": GateConfig(), "dapa": DapaConfig()}, "budget=None"),
    (RunConfig, {"dapa": DapaConfig()}, "dapa"), (RunConfig, {"precision": "fp8"}, "precision='fp8'.*half"),
    (RunConfig, {"epochs": 2, "start_epoch": 2}, "start_epoch=2"),
])
def test_illegal_values_are_named(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_every_act_type_is_a_configuration_of_one_layer():
    gates = {act: gate_of(act, threshold=0.01, degree=2) for act in ACT_TYPES}
    assert gates["nn.ReLU"] is None
    assert (gates["ReLU_masked"].replacement, gates["ReLU_masked"].threshold) == ("identity", 0.0)
    assert (gates["ReLU_masked_relay"].replacement, gates["ReLU_masked_relay"].threshold) == ("identity", 0.01)
    autopoly, dapa = gates["ReLU_masked_autopoly_relay"], gates["ReLU_masked_dapa_relay"]
    assert (autopoly.replacement, autopoly.degree, autopoly.threshold) == ("polynomial", 2, 0.01)
    assert (dapa.replacement, dapa.degree, dapa.threshold) == ("dapa", 2, 0.01)
    assert all(act_type_of(gate) == act for act, gate in gates.items())


def test_files_that_say_the_act_type_and_lack_fields_mean_what_they_meant():
    config = RunConfig.for_search(relu_budget=100, gate=GateConfig(score_init="uniform"),
                                  dapa=DapaConfig(scale_x2=0.1),
                                  budget=BudgetConfig(relu_budget=100, schedule="linear"))
    values = json.loads(to_json(config))
    for part, field in (("gate", "score_init"), ("dapa", "scale_x2"), ("budget", "schedule")):
        del values[part][field]
    assert from_json(json.dumps({**values, "act_type": "ReLU_masked_dapa_relay"})) == config
