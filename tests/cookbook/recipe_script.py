"""A recipe's script, as the cookbook has them: it asks what to do with a folder that exists.

python recipe_script.py RECIPE FOLDER
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path

from recipes_world import RECIPES
from tinker_cookbook import cli_utils

if __name__ == "__main__":
    recipe, folder = sys.argv[1], Path(sys.argv[2])
    cli_utils.check_log_dir(str(folder), behavior_if_exists="ask")
    main, config = RECIPES[recipe]
    ended = main(config(folder))
    if inspect.iscoroutine(ended):
        asyncio.run(ended)
