"""Look: what is there, what is wrong, and what to do about it."""

from __future__ import annotations

import time

from comfy_api.latest import io, ui

from ..exvideo_core import host
from ..exvideo_core.doctor.findings import check_packages, guarded, report
from .schema import schema


class ExVideoDoctor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ExVideoDoctor",
            display_name="ExVideo Doctor",
            description="Looks at everything that ExVideo needs, models, packages, ffmpeg and memory, and says what is "
            "wrong and how to mend it. It loads no model.",
            search_aliases=["exvideo", "diagnose", "check installation", "troubleshoot", "system info"],
            is_output_node=True,
            inputs=[],
            outputs=[io.String.Output("report", display_name="report", tooltip="What was found, as text.")],
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        # Runs again each time. Not NaN, which files that carry their graph could not hold.
        return time.time()

    @classmethod
    def execute(cls) -> io.NodeOutput:
        text = report([*guarded("The packages", check_packages), *host.diagnose()])
        return io.NodeOutput(text, ui=ui.PreviewText(text))


NODES = [ExVideoDoctor]
