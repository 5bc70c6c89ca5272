"""ComfyUI-ExVideo: ExVideo's long-horizon Stable Video Diffusion as native ComfyUI nodes.

ComfyUI finds the nodes through `comfy_entrypoint`. Nothing of the host is imported before it calls.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .exvideo_core.host import require_version

    require_version()

    from .nodes import ExVideoExtension

    return ExVideoExtension()
