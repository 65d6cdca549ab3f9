"""Run a recipe, load its bundle, rank here, then over HTTP.

rayrec demo  # makes a shop with a recipe, where you have none
python examples/quickstart.py runs/demo/shop/recipe.toml
"""

import sys
from pathlib import Path

import app
from app.serving.service import running


def main(recipe_file: str) -> None:
    recipe = app.load_recipe(recipe_file)
    done = app.run(recipe, Path("runs/quickstart"))  # prepare, train, compress, evaluate, export
    bundle = done.artifacts["export"].path

    ranker = app.Ranker.open(bundle)  # numpy and onnxruntime, no torch and no Ray
    user, items = ranker.users[1], [ranker.items[i] for i in (1, 2, 3)]
    print("here:", ranker.rank([app.RankRequest(user=user, items=items)])[0].items)

    with running(bundle, recipe.serve) as url, app.Client(url) as client:  # or: rayrec serve BUNDLE
        client.feedback([app.Event(user=user, item=items[0])])  # used by the next request
        print("over HTTP:", client.recommend(app.RecommendRequest(user=user, k=3)).items)


if __name__ == "__main__":
    main(sys.argv[1])
