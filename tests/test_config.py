"""Configurations: validated at birth, to and from JSON."""

import json

import pytest

from autorep.config import (
    ACT_TYPES,
    BudgetConfig,
    DapaConfig,
    DistillConfig,
    GateConfig,
    OptimConfig,
    RunConfig,
    from_json,
    gate_for_act_type,
    to_json,
)


def test_json_round_trip_keeps_everything():
    config = RunConfig(act_type="ReLU_masked_dapa_relay", gate=GateConfig(replacement="dapa", degree=1),
                       dapa=DapaConfig(clip_x2=1.0), budget=BudgetConfig(relu_budget=12_900), search_epochs=3,
                       distill=DistillConfig(teacher_arch="resnet8", teacher_path="t.pth.tar"), max_minutes=1.5)
    assert from_json(to_json(config)) == config


def test_another_version_or_an_unknown_field_is_refused():
    values = json.loads(to_json(RunConfig(epochs=1)))
    with pytest.raises(ValueError, match="version 99"):
        from_json(json.dumps({**values, "version": 99}))
    with pytest.raises(ValueError, match="OptimConfig has no field"):
        from_json(json.dumps({**values, "optim": {**values["optim"], "speed": 1}}))


@pytest.mark.parametrize(("cls", "values", "message"), [
    (GateConfig, {"degree": 5}, "degree=5"), (GateConfig, {"threshold": -1.0}, "threshold=-1.0"),
    (GateConfig, {"replacement": "cubic"}, "replacement='cubic'"),
    (GateConfig, {"score_init_low": -1.0}, "score_init_low"), (GateConfig, {"score_init": "ones"}, "score_init='ones'"),
    (OptimConfig, {"ema_decay": 1.0}, "ema_decay=1.0"),
    (BudgetConfig, {"relu_budget": -1}, "relu_budget=-1"), (OptimConfig, {"lr": 0.0}, "w_lr=0.0"),
    (OptimConfig, {"lr": 1e-6}, "w_lr_min"), (DapaConfig, {"var_min": 0.0}, "var_min"),
    (RunConfig, {}, "epochs"), (RunConfig, {"epochs": 1, "act_type": "ReLU_masked"}, "act_type"),
    (RunConfig, {"epochs": 2, "start_epoch": 2}, "start_epoch=2"),
])
def test_illegal_values_are_named(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_every_act_type_is_a_configuration_of_one_layer():
    gates = {act: gate_for_act_type(act, threshold=0.01, degree=2) for act in ACT_TYPES}
    assert gates["nn.ReLU"] is None
    assert (gates["ReLU_masked"].replacement, gates["ReLU_masked"].threshold) == ("identity", 0.0)
    assert (gates["ReLU_masked_relay"].replacement, gates["ReLU_masked_relay"].threshold) == ("identity", 0.01)
    autopoly, dapa = gates["ReLU_masked_autopoly_relay"], gates["ReLU_masked_dapa_relay"]
    assert (autopoly.replacement, autopoly.degree, autopoly.threshold) == ("polynomial", 2, 0.01)
    assert (dapa.replacement, dapa.degree, dapa.threshold) == ("dapa", 2, 0.01)
