"""ComfyUI-ExVideo: ExVideo's long-horizon Stable Video Diffusion as native ComfyUI nodes.

ComfyUI finds the nodes through `comfy_entrypoint`. Nothing of the host is imported before it calls.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from comfyui_version import __version__ as host_version

    from .exvideo_core.versions import require_version

    require_version(host_version)

    from .nodes import ExVideoExtension

    return ExVideoExtension()
