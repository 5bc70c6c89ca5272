"""GitHub's workflows: they parse, what they name is there, and only a new version is published."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"


def read(name):
    # YAML takes the key `on` for true.
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def steps(job):
    return job.get("steps", [])


@pytest.mark.parametrize("name", ["ci.yml", "publish.yml"])
def test_what_a_workflow_names_exists(name):
    jobs = read(name)["jobs"]
    for job in jobs.values():
        assert {job["needs"]} <= set(jobs) if "needs" in job else True
        for used in [item["uses"] for item in (job, *steps(job)) if "uses" in item]:
            if used.startswith("./"):
                assert True in read(Path(used).name)
                assert "workflow_call" in read(Path(used).name)[True]
            else:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[\w.]+", used)
        for command in [step["run"] for step in steps(job) if "run" in step and "\n" not in step["run"]]:
            assert os.access(ROOT / command, os.X_OK), command
    for path in read(name)[True]["push"].get("paths", []) if read(name)[True]["push"] else []:
        assert (ROOT / path).is_file()


def test_ci_runs_on_the_python_that_everything_is_made_for():
    (check,) = read("ci.yml")["jobs"].values()
    assert {"push", "pull_request"} <= set(read("ci.yml")[True])
    assert check["steps"][1]["with"]["python-version"] == "3.11"


def test_publishing_waits_for_ci():
    jobs = read("publish.yml")["jobs"]
    (publisher,) = (key for key, job in jobs.items() if any("publish" in step.get("uses", "") for step in steps(job)))
    waited_for = jobs[jobs[publisher]["needs"]]
    assert waited_for["uses"] == "./.github/workflows/ci.yml"
    assert waited_for["if"] == "needs.version.outputs.changed == 'true'"


@pytest.mark.skipif(sys.platform == "win32", reason="runs the workflow's own shell script")
@pytest.mark.parametrize(
    ("new", "published"),
    [({"version": "9.9.9"}, True), ({"description": "Something else"}, False), (None, True)],
    ids=["another version", "another text", "the first push"],
)
def test_only_another_version_is_published(tmp_path, new, published):
    def git(*arguments):
        own = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        return subprocess.run(["git", *own, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    git("init", "--quiet")
    for changes in ({}, new or {}):
        for key, value in changes.items():
            text = text.replace(f'{key} = "{project[key]}"', f'{key} = "{value}"')
        (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
        git("add", "pyproject.toml")
        git("commit", "--quiet", "--allow-empty", "--message", "a change")
    before = git("rev-parse", "HEAD^").stdout.strip() if new else "0" * 40
    (compare,) = (step for step in read("publish.yml")["jobs"]["version"]["steps"] if "run" in step)
    env = {**os.environ, "BEFORE": before, "GITHUB_OUTPUT": str(tmp_path / "said")}
    (tmp_path / "said").touch()
    # As GitHub runs scripts.
    subprocess.run(["bash", "-e", "-c", compare["run"]], cwd=tmp_path, env=env, check=True, capture_output=True)
    assert ("changed=true\n" in (tmp_path / "said").read_text()) == published
