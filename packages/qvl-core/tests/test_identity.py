"""Each key of a recipe belongs to the identity of its run, or may change in it; a new key has to be decided on."""

from toy import toy_recipe

from qvl_core.training.identity import identity

MAY_CHANGE = {
    "model.attention",
    *(f"data.{key}" for key in ("validation", "test", "allow_root", "max_bad", "workers")),
    "batch.micro",
    *(f"train.{key}" for key in ("epochs", "recompute", "max_nonfinite", "divergence")),  # epochs: as steps
    *("checkpoint", "evaluate", "speed", "parallel", "log"),
}


def test_every_key_is_decided_on() -> None:
    recipe = toy_recipe().model_dump(mode="json", exclude={"version"})
    decided = identity(toy_recipe(), content="of the data", steps=8, precision="fp32")
    missing = {name for name in recipe if name not in decided}
    for name in recipe.keys() - missing:
        missing |= {f"{name}.{key}" for key in recipe[name] if key not in decided[name]}
    assert missing == MAY_CHANGE


def test_a_method_leaves_out_keys_of_its_own_blocks() -> None:
    decided = identity(toy_recipe(), content="", steps=8, precision="fp32", blocks=("log",), without={"log": {"every"}})
    assert decided["log"].keys() == toy_recipe().log.model_dump().keys() - {"every"}
