"""Every recipe that comes with fangyan starts: its data fit its task, and its model knows them."""

import pytest
from fangyan.errors import UserError
from fangyan.recipe import RECIPES, Recipe
from fangyan.training.staged_recipe import load_training
from fangyan.training.workload import Workload

# In place of all conversations, and of all sentences.
FEW = {
    "hkcancor": {"train": ["FC-R009_v"], "dev": ["FC-011_v"], "test": None},
    "common_voice": {"dev": 0.98, "test": None},
}


def stages_of(name):
    loaded = load_training(name)
    if isinstance(loaded, Recipe):
        return [loaded]
    first, *others = loaded.stages.values()
    return [first, *(stage.model_copy(update={"model": first.model}) for stage in others)]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_shipped_recipe_starts(name):
    for recipe in stages_of(name):
        data = recipe.data.model_copy(update=FEW[recipe.data.format])
        try:
            workload = Workload(recipe.model_copy(update={"data": data}))
        except UserError as error:
            if "is not installed" in str(error):  # what only this recipe needs
                pytest.skip(str(error))
            raise
        assert len(workload.sequences) > 50
