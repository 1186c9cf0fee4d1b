"""AutoReP: take a trained CNN and a ReLU budget, give back a network in which all other ReLUs are polynomials.

The public names load on first use, so that `autorep.mpc` can be imported where torch is not installed.
"""

from importlib import import_module

_HOME = {
    "BudgetConfig": "autorep.config",
    "DapaConfig": "autorep.config",
    "GateConfig": "autorep.config",
    "OptimConfig": "autorep.config",
    "RunConfig": "autorep.config",
    "GatedReLU": "autorep.gates.gated_relu",
    "iter_gates": "autorep.gates.gated_relu",
    "build_model": "autorep.models.registry",
    "convert_relus_": "autorep.convert.swap",
    "revert_gates_": "autorep.convert.swap",
    "freeze_gates_": "autorep.convert.swap",
    "record_moments": "autorep.dapa.moments",
    "fit_coefficients_": "autorep.dapa.fit",
    "calibrate_": "autorep.dapa.calibrate",
    "count_relus": "autorep.search.relu_count",
    "budget_at": "autorep.search.budget",
    "budget_penalty": "autorep.search.budget",
    "update_masks_": "autorep.search.masks",
    "project_to_budget_": "autorep.search.masks",
    "init_scores_": "autorep.search.saliency",
    "build_optimizer": "autorep.training.optim",
    "distillation_loss": "autorep.training.objective",
    "fit": "autorep.training.fit",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'autorep' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
