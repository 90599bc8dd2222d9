"""Recipes: files of options for `bll train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from image_files import image_data

from bll import wrap
from bll.cli import main
from bll.models import build_network
from bll.training.config import TrainConfig
from bll.training.recipe import RecipeError, read_recipe
from bll.training.trainer import Trainer

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
SMALL = """
dataset = "digits"
width = 8
blocks = 2
epochs = 1
batch_size = 300
lr = 1
seeds = [3, 5]

[rule_options]
tilt = 2
std = 0.5
"""
SHAPES = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "cifar-10": (3, 32, 32)}


@pytest.fixture(autouse=True)
def _own_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace("lr = 1\n", "lr = 0.01\n"))
    return path


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def bll(*words):
    return main([str(word) for word in ("train", "--quiet", *words)])


def test_a_recipe_is_read(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(SMALL)
    recipe = read_recipe(path)
    assert recipe.seeds == (3, 5)
    assert recipe.options == {
        "dataset": "digits", "width": 8, "blocks": 2, "epochs": 1, "batch_size": 300, "lr": 1.0,
        "rule_options": {"tilt": 2, "std": 0.5},
    }  # fmt: skip
    assert isinstance(recipe.options["lr"], float)


def test_ends_of_blocks_by_name(tmp_path):
    path = tmp_path / "recipe.toml"
    named = SMALL.replace("blocks = 2", 'model = "resnet10"\nblocks = ["stem", "stage1"]')
    path.write_text(named)
    assert read_recipe(path).options["blocks"] == ("stem", "stage1")
    path.write_text(named.replace('"stage1"]', "1]"))
    with pytest.raises(RecipeError, match=r"different names of modules, got \['stem', 1\]"):
        read_recipe(path)


def test_one_run_for_every_seed(tmp_path, small):
    assert bll("--recipe", small, "--out", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"seed-3", "seed-5"}
    for seed in (3, 5):
        found = summary(tmp_path / "out" / f"seed-{seed}")
        assert found["seed"] == seed and found["width"] == 8 and found["lr"] == 0.01
        assert found["rule_options"] == {"tilt": 2.0, "std": 0.5}


def test_the_command_line_comes_first(tmp_path, small):
    words = ["--width", "4", "--rule-option", "std=0.25", "--seed", "7", "--epochs", "2"]
    assert bll("--recipe", small, *words, "--out", tmp_path / "out") == 0
    found = summary(tmp_path / "out")
    assert found["seed"] == 7 and found["width"] == 4 and found["epochs"] == 2
    assert found["rule_options"] == {"tilt": 2.0, "std": 0.25}


def test_several_seeds_go_on_where_they_stopped(tmp_path, small, monkeypatch):
    out = tmp_path / "out"
    assert bll("--recipe", small, "--seed", "3", "--out", out / "seed-3") == 0
    before = (out / "seed-3" / "summary.json").read_bytes()
    assert bll("--recipe", small, "--resume", "--out", out) == 0
    assert (out / "seed-3" / "summary.json").read_bytes() == before
    assert summary(out / "seed-5")["seed"] == 5
    assert bll("--recipe", small, "--out", out) == 2, "they are not replaced by accident"


BAD = {
    "unknown key": ("depht = 2", "depht: no such option; expected one of "),
    "hyphen": ("batch-size = 2", "batch-size: no such option; expected one of "),
    "place of data": ('data_dirs = ["x"]', "data_dirs: no such option"),
    "text for a number": ('epochs = "ten"', "epochs: expected an integer, got 'ten'"),
    "fraction": ("epochs = 1.5", "epochs: expected an integer, got 1.5"),
    "truth for a number": ("epochs = true", "epochs: expected an integer, got True"),
    "number for text": ("model = 3", "model: expected a string, got 3"),
    "number for truth": ("flip = 1", "flip: expected true or false, got 1"),
    "number for a table": ("rule_options = 1", "rule_options: expected a table, got 1"),
    "out of range": ("epochs = 0", "epochs: expected at least 1, got 0"),
    "no such rule": ('rule = "hebb"', "rule: expected one of"),
    "no such rule option": ("rule_options = {colour = 1}", "rule-option colour: rule 'bll' has no"),
    "two forms": ("seed = 1\nseeds = [2]", "seeds: expected either seed or seeds, got both"),
    "seeds of text": ('seeds = ["a"]', "seeds: expected a list of integers, got ['a']"),
    "seeds a number": ("seeds = 3", "seeds: expected a list of integers, got 3"),
    "no seeds": ("seeds = []", "seeds: expected a list of integers, got []"),
    "the same seed": ("seeds = [1, 1]", "seeds: expected different seeds, got [1, 1]"),
    "negative seed": ("seeds = [1, -1]", "seed: expected 0"),
    "not TOML": ("epochs = = 2", "expected a TOML file: "),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_bad_recipes_are_one_line_and_code_2(tmp_path, capsys, line, message):
    path = tmp_path / "bad.toml"
    path.write_text(f'dataset = "digits"\n{line}\n')
    assert bll("--recipe", path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bll: {path}: {message}") and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_missing_and_foreign_files(tmp_path, capsys, content):
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    assert bll("--recipe", path, "--out", tmp_path / "out") == 2
    expected = "expected a TOML file" if content else "could not be read: No such file"
    assert f"bll: {path}: {expected}" in capsys.readouterr().err


def test_a_recipe_names_its_image_set(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("epochs = 3")
    with pytest.raises(RecipeError, match="dataset: expected the name of an image set"):
        read_recipe(path)


def test_there_is_a_recipe_for_every_cell_of_the_published_table():
    cells = ("fashion-mnist-resnet18", "fashion-mnist-resnet50", "cifar-10-resnet50")
    rules = ("bp", "fa", "pred-sim", "bll")
    names = {f"{cell}-{rule}.toml" for cell in cells for rule in rules}
    assert {path.name for path in RECIPES.glob("*.toml")} == names | {"digits-mlp-bll.toml"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_the_house(path):
    """Parsed, and what they ask for can be built; on meta nothing is computed."""
    recipe = read_recipe(path)
    config = TrainConfig(**recipe.options)
    assert path.stem == f"{config.dataset}-{config.model}-{config.rule}"
    assert len(recipe.seeds) == 3
    with torch.device("meta"):
        shape = SHAPES[config.dataset]
        network = build_network(config.model, shape, 10, blocks=config.blocks, width=config.width)
        model = wrap(
            network.model,
            list(network.cuts),
            rule=config.make_rule(),
            num_classes=10,
            example=torch.empty(2, *shape),
        )
    assert model.bll.describe()["rule"] == config.rule
    assert len(model.bll.table()) == config.blocks


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*resnet*.toml")), ids=lambda path: path.stem)
def test_steps_of_the_house_recipes_in_small(path):
    """Every option of the recipe but the device; the network narrow, its images few."""
    given = read_recipe(path).options | {"device": "cpu", "width": 4, "batch_size": 8, "epochs": 3}
    config = TrainConfig(**given)
    trainer = Trainer(config, image_data(train=16, shape=SHAPES[config.dataset]))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for _ in range(2):
        trainer._step()
    assert torch.isfinite(trainer.losses.sums).all() and trainer.compute_dtype == torch.bfloat16
    still = {n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])}
    assert not still, "some parameters do not learn"


def test_the_digits_recipe_from_end_to_end(tmp_path):
    recipe = RECIPES / "digits-mlp-bll.toml"
    assert bll("--recipe", recipe, "--seed", "1", "--out", tmp_path) == 0
    assert summary(tmp_path)["test_accuracy"] > 95.0
