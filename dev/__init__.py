"""Developer tooling: the environment, a headless ComfyUI, a client of its API, the demo and the test run."""
