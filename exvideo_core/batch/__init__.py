"""Many pictures through one workflow, on ComfyUI servers that run already: `python -m exvideo_core.batch --help`.

`client` speaks to a server, and `workflow` puts values into its graph → `manifest` knows what is done → `work` makes
one item after another, `many` does so on several servers. Nothing here knows ComfyUI's modules, only its HTTP API.
"""
