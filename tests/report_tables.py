"""Results tables that the tests of reports share."""

import csv


def cells(**changes) -> dict:
    """A row of a results table."""
    return {"dataset": "cifar100", "arch": "resnet18_in", "act_type": "ReLU_masked_dapa_relay", "degree": 2,
            "relu_budget": 12900, "relu_kept": 12900, "relu_total": 491520, "layers_with_relu": 16, "seed": 0,
            "test_top1_last_epoch": "70.00", "test_top1_at_validation_best": "69.00", **changes}


def baseline_cells(**changes) -> dict:
    return cells(**{"act_type": "nn.ReLU", "degree": "", "relu_budget": "", "relu_kept": 491520, **changes})


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def study_table(folder):
    """Two methods at two budgets with three seeds, and one baseline."""
    rows = [baseline_cells(test_top1_last_epoch="78.00")]
    for degree, act_type in ((1, "ReLU_masked_relay"), (2, "ReLU_masked_dapa_relay")):
        for budget in (25000, 12900):
            rows += [cells(act_type=act_type, degree=degree, relu_budget=budget, relu_kept=budget - seed, seed=seed,
                           test_top1_last_epoch=f"{60 + degree + budget / 5000 + seed ** 2:.2f}") for seed in range(3)]
    return write_table(folder / "study.csv", rows)
