"""A tiny model with the card that a run leaves, so that it is prompted as a tuned one."""

import json
import shutil
from pathlib import Path
from typing import Any

CHAT = {"task": "chat", "prompt": "Say {mr}.", "response": "{ref}", "system": "Be brief."}
SEVERAL_COLUMNS = {"task": "chat", "prompt": "{context}\n{q}", "response": "{a}", "system": "Tools: {tools}"}
MESSAGES = {"task": "chat", "messages": "turns"}
TEXT = {"task": "text", "text": "body", "sample_prefix_tokens": 4}


def tuned_model(model: Path, folder: Path, data: dict[str, Any], **card: Any) -> str:
    """Copy a model to a folder and add a card with the `data` section of its recipe; return the folder.

    Args:
        card: further values of the card, such as the precision.
    """
    shutil.copytree(model, folder, dirs_exist_ok=True)
    (folder / "tunesmith.json").write_text(json.dumps({"data": data, **card}))
    return str(folder)
