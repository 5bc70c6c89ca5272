"""What a person should know of a node that goes on all the same: in the log, and on the page under the node."""

from __future__ import annotations

import logging
import sys

from comfy_execution.utils import get_executing_context

log = logging.getLogger(__name__)


def warn(text: str) -> None:
    """Tell of something that makes the result another than expected, or slower."""
    log.warning(text)
    # A program that became a ComfyUI has no server.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    context = get_executing_context()
    if server is not None and context is not None:
        server.send_progress_text(text, context.node_id, server.client_id)
