"""The batch program as a person runs it: many pictures through a real server, interrupted in every way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import av
import pytest
from PIL import Image

from benchmarks import queued
from dev.environment import ROOT
from exvideo_core.batch import client as talk
from exvideo_core.batch.__main__ import main
from exvideo_core.batch.client import Client, ClientError
from exvideo_core.batch.manifest import MANIFEST, Item
from exvideo_core.batch.work import Maker, Recipe
from exvideo_core.lock import locked

TINY = {"ckpt_name": "exvideo_tiny_svd.safetensors", "exvideo_name": "exvideo_tiny_128f.safetensors"}
SETTINGS = {
    "ExVideoCheckpointLoader.ckpt_name": TINY["ckpt_name"],
    "Load SVD + ExVideo.exvideo_name": TINY["exvideo_name"],
    "ExVideoConditioning.width": 64,
    "ExVideoConditioning.height": 64,
    "3.num_frames": 2,
    "ExVideoSampler.steps": 1,
}
LONG = {"3.num_frames": 16, "ExVideoConditioning.width": 96, "ExVideoConditioning.height": 96}


def words(*arguments, url, output, **settings):
    """A command line with small settings, by a node's class, title or id; what is given goes before them."""
    servers = [url] if isinstance(url, str) else url
    chosen = [f"--set={name}={value}" for name, value in {**SETTINGS, **settings}.items()]
    return [*chosen, f"--output={output}", *(f"--server={one}" for one in servers), *map(str, arguments)]


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "exvideo_core.batch", *words(*arguments, **options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        # In the background of a script, as CI may be, programs are born deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def run(*arguments, status=0, **options):
    process = start(*arguments, **options)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == status, said
    assert "Traceback" not in said
    return said


def draw(path, colour=(9, 80, 200)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (72, 64), colour).save(path)
    return path


def records(output):
    pictures = json.loads((output / MANIFEST).read_text(encoding="utf-8"))["pictures"]
    return {record["name"]: record for record in pictures.values()}


def frames(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def executed(server):
    """The prompts that the server ran, without those that it took wholly from its cache."""
    ran = []
    for prompt_id, entry in server.get("/history").items():
        events = dict(entry["status"]["messages"])
        if set(entry["prompt"][2]) - set(events["execution_cached"]["nodes"]):
            ran.append(prompt_id)
    return ran


def until(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def pictures(tmp_path):
    """A folder with names as people give them, and one file that is no picture."""
    folder = tmp_path / "my pictures"
    draw(folder / "a cat.png")
    draw(folder / "Müller 猫.jpg", (200, 30, 9))
    (folder / "broken.png").write_text("no picture")
    (folder / "notes.txt").write_text("not to be sent")
    return folder


def test_a_folder_with_a_corrupt_picture_and_a_second_start(server, pictures, tmp_path):
    output = tmp_path / "videos"
    said = run(pictures, url=server.url, output=output, status=1)
    assert "[1 of 3] Müller 猫.jpg: ExVideo Sampler" in said
    assert "2 done, 1 failed, 0 not reached" in said
    made = [output / "my pictures" / name for name in ("a cat.mp4", "Müller 猫.mp4")]
    assert [frames(path) for path in made] == [2, 2]
    assert "cannot identify image file" in records(output)["my pictures/broken"]["error"]

    draw(pictures / "broken.png", (1, 2, 3))
    before, ran = made[0].stat().st_mtime_ns, len(executed(server))
    # An address as people write it.
    address = server.url.removeprefix("http://")
    assert "1 of 3 pictures are to be done" in run(pictures, url=address, output=output)
    assert made[0].stat().st_mtime_ns == before
    assert len(executed(server)) == ran + 1
    assert not list(output.rglob(".*"))

    draw(pictures / "a cat.png", (90, 90, 9))
    made[1].unlink()
    assert "2 of 3 pictures are to be done" in run(pictures, url=server.url, output=output)
    assert "0 of 3 pictures are to be done" in run(pictures, url=server.url, output=output)
    assert "3 of 3 pictures" in run(pictures, url=server.url, output=output, **{"3.num_frames": 3})
    assert frames(made[0]) == 3


def test_a_video_that_is_gone_everywhere_is_made_again(server, tmp_path):
    """The server takes it for made, and says so, without a look at its own folder."""
    picture, output = draw(tmp_path / "gone" / "a.png", (77, 3, 99)), tmp_path / "videos"
    prefix = {"ExVideoSave.filename_prefix": "gone/a"}
    run(picture, url=server.url, output=output, **prefix)
    (made,), (there,) = output.rglob("*.mp4"), (server.base / "output" / "gone").glob("*.mp4")
    made.unlink()
    there.unlink()
    run(picture, url=server.url, output=output, **prefix)
    assert frames(made) == 2


def test_pictures_of_one_name_keep_files_apart(server, tmp_path):
    one, two = draw(tmp_path / "one" / "cat.png"), draw(tmp_path / "two" / "cat.png", (1, 90, 3))
    run(tmp_path / "one", tmp_path / "two", url=server.url, output=tmp_path / "folders")
    assert sorted(records(tmp_path / "folders")) == ["one/cat", "two/cat"]
    run(two, url=server.url, output=tmp_path / "files")
    run(one, two, url=server.url, output=tmp_path / "files")
    kept = json.loads((tmp_path / "files" / MANIFEST).read_text())["pictures"]
    assert [kept[str(path)]["files"] for path in (two, one)] == [["cat.mp4"], ["cat_2.mp4"]]
    assert (tmp_path / "files" / "cat.mp4").read_bytes() != (tmp_path / "files" / "cat_2.mp4").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_batch_that_is_stopped_goes_on(server, tmp_path, number):
    """Ctrl-C stops the server's work too; after a kill, the server goes on, and its work is not done twice."""
    # Steps enough that the second picture is not done before it is stopped.
    settings = {**LONG, "ExVideoSampler.seed": int(number), "ExVideoSampler.steps": 4}
    folder, output = tmp_path / "pictures", tmp_path / "videos"
    for name in range(3):
        draw(folder / f"{name}.png", (10, 20, int(number) + name))
    before = set(executed(server))
    process = start(folder, url=server.url, output=output, **settings)
    until(lambda: (output / "pictures" / "0.mp4").exists() and server.get("/queue")["queue_running"], process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), said
    if number == signal.SIGINT:
        assert "the same command goes on" in said
        assert not any(server.get("/queue").values())
    assert "2 of 3 pictures are to be done" in run(folder, url=server.url, output=output, **settings)
    assert [frames(output / "pictures" / f"{name}.mp4") for name in range(3)] == [LONG["3.num_frames"]] * 3
    ran = set(executed(server)) - before
    assert len(ran) == (4 if number == signal.SIGINT else 3)  # one of which was interrupted


class StoppedWhenQueued(Client):
    """Ctrl-C comes when the server has the prompt, and its answer is on the way."""

    prompt_id = ""

    def _ask(self, method, path, **options):
        answer = super()._ask(method, path, **options)
        if path == "/prompt":
            self.prompt_id = answer["prompt_id"]
            raise KeyboardInterrupt
        return answer


def test_ctrl_c_before_the_server_has_answered_takes_the_prompt_back(server, image_to_video, tmp_path):
    graph, _ = image_to_video(ExVideoConditioning={"num_frames": 16}, ExVideoSampler={"seed": 41, "steps": 50})
    picture = next(node for node, what in graph.items() if what["class_type"] == "LoadImage")
    with StoppedWhenQueued(server.url) as client:
        maker = Maker(client, Recipe(graph, [picture], "image", {}, tmp_path))
        with pytest.raises(KeyboardInterrupt):
            maker.make(Item(draw(tmp_path / "a.png"), "a"), lambda kind, data: None)
        assert any(server.get("/queue").values())
        maker.stop()

    deadline = time.monotonic() + 60
    while any(server.get("/queue").values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Dropped before it ran, of which nothing is recorded, or stopped.
    ran = server.get(f"/history/{client.prompt_id}").get(client.prompt_id)
    assert ran is None or ran["status"]["messages"][-1][0] == "execution_interrupted"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set=ExVideoSampler.stepz=3"], "ExVideoSampler has no input stepz to set; it has seed, steps, "),
        (["--set=Samplr.steps=3"], "The workflow has no node Samplr; it has LoadImage (1, 'Load Image'), "),
        (["--set=ExVideoSampler.model=3"], "ExVideoSampler has no input model to set"),
        (["--set=ExVideoSampler.steps=many"], "ExVideoSampler.steps should be a whole number, got 'many'"),
        (["--set=ExVideoSampler.normalize=maybe"], "ExVideoSampler.normalize should be true or false, got 'maybe'"),
        (["--set=ExVideoSave.format=avi"], "ExVideoSave.format should be one of mp4-h264, "),
        (["--set=ExVideoSampler.contrast=nan"], "ExVideoSampler.contrast should be a number, got 'nan'"),
        (["--set=steps"], "A setting is written as node.input=value"),
        (["--set=ExVideoSampler.steps=-1"], "ComfyUI refused the prompt. Node 4 (ExVideoSampler): "),
        (["--picture=LoadImages.image"], "The workflow has no node LoadImages"),
        (["--workflow=workflows/image_to_video.json"], "save it by File → Export (API)"),
        (["--workflow=no_such.json"], "no_such.json should be a workflow in API form, but it cannot be read"),
        (["no_such_folder"], "no_such_folder should be a picture or a folder of pictures"),
        (["web"], "There should be pictures"),
        (["--server="], "--server is an address such as http://127.0.0.1:8188, got an empty text"),
    ],
)
def test_what_cannot_begin_is_told(server, pictures, tmp_path, arguments, told, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    ran = len(server.get("/history"))
    given = arguments if arguments == ["web"] else [pictures, *arguments]
    assert main(words(*given, url=server.url, output=tmp_path / "videos")) == 2
    assert told in "".join(capsys.readouterr())
    assert len(server.get("/history")) == ran
    assert not list(tmp_path.rglob("*.mp4"))


def test_a_server_that_does_not_answer(pictures, tmp_path, capsys):
    assert main(words(pictures, url="http://127.0.0.1:9", output=tmp_path / "videos")) == 2
    assert "No ComfyUI answers" in capsys.readouterr().err
    assert not (tmp_path / "videos").exists()


def test_a_second_batch_into_one_folder_is_refused(server, pictures, tmp_path, capsys):
    with locked(tmp_path / "videos", ""):
        assert main(words(pictures, url=server.url, output=tmp_path / "videos")) == 2
    assert "Another batch is writing to" in capsys.readouterr().err
    assert not (tmp_path / "videos" / MANIFEST).exists()


def test_an_output_folder_that_cannot_be(server, pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(words(pictures, url=server.url, output=tmp_path / "file" / "videos")) == 2
    assert "make it writable" in capsys.readouterr().err
    (tmp_path / MANIFEST).write_text("[]")
    assert main(words(pictures, url=server.url, output=tmp_path)) == 2
    assert "should be the record of a batch" in capsys.readouterr().err
    assert (tmp_path / MANIFEST).read_text() == "[]"


@pytest.mark.parametrize("made", [0, 1])
def test_a_server_that_dies(start_server, tmp_path, made):
    folder, output = tmp_path / "pictures", tmp_path / "videos"
    for name in range(3):
        draw(folder / f"{name}.png", (10, 20, name))

    def is_time():
        return len(list(output.rglob("*.mp4"))) == made and server.get("/queue")["queue_running"]

    with start_server() as server:
        process = start(folder, url=server.url, output=output, **LONG)
        until(is_time, process)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert said.count("cannot be reached") == 1
    assert f"{made} done, 0 failed, {3 - made} not reached" in said
    if made:
        assert list(records(output)["pictures/0"]) == ["name", "from", "files"]


def test_without_its_packages_it_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['requests'] = None; from exvideo_core.batch.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "x", f"--output={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("A batch needs requests and websocket-client: install both")


def test_a_prompt_dropped_while_others_are_talked_of_is_told(server, client, image_to_video, monkeypatch):
    """As when somebody clears the queue on the page of a server whose extensions tell everybody something all along."""
    monkeypatch.setattr(talk, "SILENCE", 1.0)
    prompt, quiet = image_to_video(ExVideoSampler={"steps": 50})[0], threading.Event()

    def chatter(other):
        for _ in range(100):
            if quiet.wait(0.2):
                return
            other.interrupt(other.queue(prompt))  # each time everybody is told how long the queue is
        quiet.set()

    with Client(server.url, server.alive) as first, Client(server.url, server.alive) as other:
        running, waiting = first.queue(prompt), client.queue(prompt)
        other.interrupt(waiting)
        chat = threading.Thread(target=chatter, args=(other,))
        chat.start()
        try:
            with pytest.raises(ClientError, match="no longer knows the prompt"):
                client.follow(waiting, lambda *_: None)
            assert not quiet.is_set()
        finally:
            quiet.set()
            chat.join()
            first.interrupt(running)
            with pytest.raises(ClientError):
                first.follow(running, lambda *_: None)


def test_a_queue_loses_nothing_and_keeps_its_order(server, client, image_to_video):
    """What `benchmarks.queued` measures, for a few."""
    size = {"num_frames": 2}
    prompts = [image_to_video(ExVideoConditioning=size, ExVideoSampler={"seed": 900 + n})[0] for n in range(8)]
    found = queued.run(server, client, prompts)
    assert found.queued == found.ended
    assert len(set(found.files) - {""}) == len(found.resident) == 8
    assert min(found.resident) > 100


def test_pictures_through_the_workflow_of_long_videos(server, tmp_path, capsys):
    """Which keeps its run under one name: each picture needs its own, and to change a setting is a new run."""
    pictures = [draw(tmp_path / "long" / f"{number}.png", (9, 80, number)) for number in range(2)]
    sampler = {"total_frames": 5, "segment_frames": 4, "overlap": 1, "width": 64, "height": 64, "steps": 1}
    loader = {f"ExVideoCheckpointLoader.{key}": value for key, value in TINY.items()}
    workflow = f"--workflow={ROOT / 'workflows' / 'api' / 'long_video.json'}"

    def made(seed):
        chosen = {**loader, **{f"ExVideoLongSampler.{key}": value for key, value in {**sampler, "seed": seed}.items()}}
        settings = [f"--set={name}={value}" for name, value in chosen.items()]
        common = [workflow, f"--output={tmp_path / 'made'}", f"--server={server.url}"]
        return main([*common, *settings, *map(str, pictures)])

    assert made(0) == 0
    assert "2 done, 0 failed" in capsys.readouterr().out
    assert [frames(tmp_path / "made" / f"{number}.mp4") for number in range(2)] == [5, 5]
    assert made(1) == 0
    runs = [path.name for path in (server.base / "output" / "exvideo" / "runs").glob("my_long_video *")]
    assert len(set(runs)) == 4
