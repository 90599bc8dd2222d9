"""The accuracy experiments: plans, tables that go on, the page and its pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from bll.data import load_dataset
from tools.experiments import __main__ as driver
from tools.experiments import images, page, pictures, plans, reversal
from tools.experiments.mixing import MixingTrainer
from tools.experiments.table import Clock, Table, cell

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "accuracy"
SMALL = {
    "dataset": "digits", "model": "mlp", "width": 8, "epochs": 1, "batch_size": 300, "lr": 0.01,
    "blocks": 2, "rule": "bll", "rule_options": {"std": 0.5},
}  # fmt: skip
SHORT = {
    "rule": "bll", "rule_options": {}, "blocks": 2, "depth": 2, "width": 16, "lr": 3e-3, "seed": 0,
    "heads": 1, "batch_size": 32, "warm_up": 10, "max_steps": 50,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", plans.NAMES)
def test_runs_of_a_plan_differ_and_have_three_seeds(name):
    runs = {**plans.IMAGES, **plans.SEQUENCES}[name]()
    key = images.layout(name)[0] if name in plans.IMAGES else reversal.KEY
    keys = [tuple(cell(run[column]) for column in key) for run in runs]
    assert len(set(keys)) == len(keys)
    assert {run["seed"] for run in runs} == {0, 1, 2}


@pytest.mark.parametrize("name", plans.IMAGES)
def test_options_of_a_plan_are_those_of_training(name):
    for run in plans.IMAGES[name]():
        assert images.config_of(run).make_rule().name == run["rule"]


def test_options_that_a_run_does_not_name_are_the_first_defaults():
    from tools.experiments.first_defaults import rule_options

    first = {"family": "gaussian", "pool": ["mean", 4], "standardize": "none"}
    assert rule_options(SMALL) == {**first, "std": 0.5}
    own = {"rule": "bll", "rule_options": {"family": "bernoulli", "pool": ["max", 2]}}
    assert rule_options(own) == {**own["rule_options"], "standardize": "none"}
    assert rule_options({"rule": "pred", "rule_options": {}}) == {}


def test_a_table_is_filled_and_goes_on(tmp_path, monkeypatch, capsys):
    runs = [{**SMALL, "seed": seed} for seed in (0, 1)]
    monkeypatch.setitem(plans.IMAGES, "depth", lambda: runs)
    out = tmp_path / "new" / "depth.csv"
    assert driver.main(["depth", "--out", str(out), "--limit", "1"]) == 0
    (first,) = rows(out)
    assert first["seed"] == "0" and first["rule_options"] == '{"std": 0.5}'
    assert first["status"] == "finished" and float(first["test_accuracy"]) > 0
    assert first["train_images"] == "1442" and first["family"] == "gaussian"
    assert driver.main(["depth", "--out", str(out)]) == 0
    found = rows(out)
    assert found[0] == first and [row["seed"] for row in found] == ["0", "1"]
    capsys.readouterr()
    assert driver.main(["depth", "--out", str(out)]) == 0
    assert capsys.readouterr().out == "" and rows(out) == found


def test_rows_do_not_depend_on_the_runs_before(tmp_path, monkeypatch):
    runs = [{**SMALL, "seed": seed} for seed in (0, 1)]
    others = [{**SMALL, "rule": "bp", "rule_options": {}, "seed": 1}]
    monkeypatch.setitem(plans.IMAGES, "depth", lambda: runs + others)
    driver.main(["depth", "--out", str(tmp_path / "both.csv"), "--rules", "bll"])
    driver.main(["depth", "--out", str(tmp_path / "second.csv"), "--seeds", "1", "--limit", "1"])
    both, second = (rows(tmp_path / name) for name in ("both.csv", "second.csv"))
    assert [row["seed"] for row in second] == ["1"] and len(both) == 2
    for column in ("test_accuracy", "train_loss"):
        assert both[1][column] == second[0][column]


def test_a_reach_of_all_blocks_is_deep_supervision_and_of_none_local():
    data = load_dataset("digits", [])
    deep = {**SMALL, "blocks": 3, "rule": "bp-deepsup", "lr": 0.1, "optimizer": "sgd", "seed": 0}
    losses = {
        name: images.train(run, data)["train_loss"]
        for name, run in {
            "deep": deep, "all": {**deep, "reach": 2}, "one": {**deep, "reach": 1},
            "local": {**deep, "rule": "bll"}, "none": {**deep, "reach": 0},
        }.items()
    }  # fmt: skip
    assert losses["all"] == pytest.approx(losses["deep"], rel=1e-4)
    assert losses["none"] == pytest.approx(losses["local"], rel=1e-4)
    assert len({round(losses[name], 4) for name in ("all", "one", "none")}) == 3
    with pytest.raises(ValueError, match="rule: expected one that cuts nothing, got 'bll'"):
        images.train({**deep, "rule": "bll", "reach": 1}, data)


TINY_MAPS = {
    "dataset": "digits", "model": "resnet10", "width": 2, "epochs": 1, "batch_size": 100,
    "lr": 0.01, "blocks": 3, "rule": "bll", "seed": 0,
    "rule_options": {"family": "gaussian-precision:2.0", "pool": ["mean", 4],
                     "standardize": "channels"},
}  # fmt: skip


def test_mixing_hands_on_the_mean_of_the_posterior():
    data = load_dataset("digits", [])
    trainer = MixingTrainer(images.config_of(TINY_MAPS), data, 1.0)
    handle = trainer.model.bll
    with torch.no_grad():
        for message in handle.messages:
            message.table.normal_(generator=torch.Generator().manual_seed(1))
    handed = []
    trainer.end_block = lambda index, output: handed.append(output.detach()) or output.detach()
    labels = trainer.train.labels[:20]
    trainer._see_labels(trainer.model, (), {"y": labels})
    feature = torch.randn(20, 2, 4, 4, generator=torch.Generator().manual_seed(2)) * 3 + 5
    mixed = trainer._end_block(0, feature).double()

    mean, std = feature.double().mean((0, 2, 3)), feature.double().var((0, 2, 3), correction=0)
    std = (std + 1e-5).sqrt()[:, None, None]
    own = (feature.double() - mean[:, None, None]) / std
    message = handle.messages[0].table.detach()[labels].double().view(20, 2, 4, 4)
    expected = (own + 2.0 * message) / 3.0 * std + mean[:, None, None]
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    trainer.mixing = 0.0
    assert torch.equal(trainer._end_block(0, feature), feature)


def test_mixing_draws_ever_fewer_samples_and_no_share_is_the_rule():
    data = load_dataset("digits", [])
    seen = []

    class Counting(MixingTrainer):
        def _mixed(self, index, output):
            mixed = super()._mixed(index, output)
            seen.append(float((mixed != output).flatten(1).any(1).float().mean()))
            return mixed

    trainer = Counting(images.config_of({**TINY_MAPS, "epochs": 2}), data, 1.0)
    trainer.run(images._Silent(), lambda: False)
    steps = 2 * trainer.steps_per_epoch
    assert len(seen) == 2 * steps  # two borders, in training alone
    assert seen[0] > 0.8 and 0 < seen[steps // 2] < 0.9 and not any(seen[steps:])
    losses = [
        images.train(run, data)["train_loss"]
        for run in (TINY_MAPS, {**TINY_MAPS, "mixing": 0.0}, {**TINY_MAPS, "mixing": 0.5})
    ]
    assert losses[0] == losses[1] != losses[2]
    other = {**TINY_MAPS, "rule": "pred", "rule_options": {}, "mixing": 0.5}
    with pytest.raises(ValueError, match="rule: expected"):
        images.train(other, data)


def test_a_family_for_each_block():
    data = load_dataset("digits", [])
    named = "gaussian-precision:2.0"
    losses = [
        images.train(run, data)["train_loss"]
        for run in (
            TINY_MAPS,
            {**TINY_MAPS, "families": (named, named)},
            {**TINY_MAPS, "families": ("bernoulli", named)},
            {**TINY_MAPS, "families": (named, "bernoulli")},
        )
    ]
    assert losses[0] == losses[1] and len(set(losses)) == 3
    with pytest.raises(ValueError, match="families: expected 2, one for each block"):
        images.train({**TINY_MAPS, "families": (named,)}, data)
    with pytest.raises(ValueError, match="rule: expected bll, got 'pred'"):
        images.train({**TINY_MAPS, "rule": "pred", "rule_options": {}, "families": ()}, data)


def test_a_run_that_diverges_is_a_row(tmp_path, monkeypatch):
    runs = [{**SMALL, "optimizer": "sgd", "lr": 1e30, "rule_options": {}, "seed": 0}]
    monkeypatch.setitem(plans.IMAGES, "depth", lambda: runs)
    assert driver.main(["depth", "--out", str(tmp_path / "depth.csv")]) == 0
    (row,) = rows(tmp_path / "depth.csv")
    assert row["status"].startswith("diverged: the loss of epoch 1") and row["test_accuracy"] == ""


def test_the_table_of_another_experiment_is_left_alone(tmp_path, capsys):
    path = tmp_path / "reversal.csv"
    path.write_text("a,b\n1,2\n")
    assert driver.main(["reversal", "--out", str(path)]) == 2
    assert "has other columns" in capsys.readouterr().err
    assert path.read_text() == "a,b\n1,2\n"


def test_missing_data_is_one_line_and_code_2(tmp_path, capsys):
    words = ["rules", "--data-dir", str(tmp_path), "--out", str(tmp_path / "rules.csv")]
    assert driver.main(words) == 2
    assert "train-images-idx3-ubyte.gz: no such file" in capsys.readouterr().err


def test_the_reversal_task_in_small(monkeypatch):
    """Two layers and four symbols in a sequence learn it; the first of two checks counts."""
    monkeypatch.setattr(reversal, "TEST_SIZE", 200)
    row = reversal.train({**SHORT, "max_steps": 600})
    assert row["sequence_accuracy"] >= 99.0
    assert row["steps_to_99"] == row["steps"] - reversal.CHECK_EVERY
    short = reversal.train(SHORT)
    assert short["steps_to_99"] == "" and short["steps"] == 50
    assert short["sequence_accuracy"] < 99.0


def test_divergence_of_the_reversal_task(monkeypatch):
    monkeypatch.setattr(reversal, "TEST_SIZE", 20)
    with pytest.raises(reversal.Diverged, match="after 25 steps"):
        reversal.train({**SHORT, "lr": 1e30})


def table_of(tmp_path, accuracies):
    """A depth table with the given accuracies of seeds by (rule, blocks)."""
    table = Table(tmp_path / "depth.csv", images.KEY, images.COLUMNS)
    for (rule, blocks), values in accuracies.items():
        for seed, value in enumerate(values):
            run = {**SMALL, "rule_options": {}, "rule": rule, "blocks": blocks, "seed": seed}
            status = "finished" if value else "diverged: so it was"
            table.add({**run, "test_accuracy": value or ""}, Clock(), status)


def test_tables_of_the_page(tmp_path):
    table_of(tmp_path, {("bp", 2): (90.0, 91.0), ("bll", 2): (88.5, 88.5), ("bll", 10): (87.0, 0)})
    text = "before\n<!-- table: depth -->\nold\n<!-- end -->\nafter\n"
    assert page.filled(text, tmp_path) == (
        "before\n<!-- table: depth -->\n"
        "| rule | 2 blocks | 10 blocks |\n| --- | --- | --- |\n"
        "| `bp` | 90.50 (90.00 to 91.00; 2 seeds) |  |\n"
        "| `bll` | 88.50 (88.50 to 88.50; 2 seeds) | 1 of 2 diverged |\n"
        "<!-- end -->\nafter\n"
    )
    with pytest.raises(ValueError, match=r"page: expected a table of .*, got 'depht'"):
        page.filled(text.replace("depth", "depht"), tmp_path)
    with pytest.raises(ValueError, match=r"rules\.csv: no such table"):
        page.filled(text.replace("depth", "rules"), tmp_path)


def test_the_published_table_says_what_was_not_shown(tmp_path):
    text = "<!-- table: table1 -->\n<!-- end -->"
    assert page.filled(text, tmp_path).count("not yet shown") == 12
    (tmp_path / "table1.csv").write_text(
        "dataset,model,rule,seed,test_accuracy,device_name\n"
        "fashion-mnist,resnet18,bll,0,93.0,some GPU\nfashion-mnist,resnet18,bll,1,94.0,some GPU\n"
    )
    found = page.filled(text, tmp_path)
    assert found.count("not yet shown") == 11
    assert "| BLL | 94.2 | 93.50, measured (some GPU, seeds 0, 1) |" in found


def test_epochs_to_an_accuracy(tmp_path):
    (tmp_path / "to-accuracy.csv").write_text(
        "model,width,stop_at,rule,rule_options,lr,seed,epochs,epochs_trained,reached,cpu_seconds\n"
        "mlp,256,88.5,bp,,0.002,1,15,15,False,60.0\nmlp,256,88.5,bp,,0.002,0,15,4,True,20.0\n"
    )
    found = page.filled("<!-- table: to-accuracy -->\n<!-- end -->", tmp_path)
    assert "| mlp, width 256 | 88.5 | `bp` |  | 0.002 | 4 / not in 15 | 40 |" in found


def test_pictures(tmp_path):
    table_of(tmp_path, {("bp", 2): (90.0, 91.0), ("bll", 2): (88.5, 88.5), ("bll", 4): (87.0, 0)})
    drawn = pictures.draw(tmp_path, tmp_path / "pictures")
    assert [path.name for path in drawn] == ["learning-depth.png"]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="holds none of rules, depth"):
        pictures.draw(tmp_path / "pictures", tmp_path)


def test_the_page_is_what_the_tables_say():
    """Every figure in a table of the page comes from a file in the repository."""
    found = (ROOT / "docs" / "learning.md").read_text()
    assert page.filled(found, RESULTS) == found, "run python -m tools.experiments page"
    for name in page.TABLES:
        assert f"<!-- table: {name} -->" in found
    for name in pictures.PICTURES:
        assert f"(pictures/learning-{name}.png)" in found
        assert (ROOT / "docs" / "pictures" / f"learning-{name}.png").is_file()
