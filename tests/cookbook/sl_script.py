"""A recipe's script, as the cookbook has them: it asks what to do with a folder that exists."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from recipes_world import supervised
from tinker_cookbook import cli_utils
from tinker_cookbook.supervised import train

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    cli_utils.check_log_dir(str(folder), behavior_if_exists="ask")
    asyncio.run(train.main(supervised(folder)))
