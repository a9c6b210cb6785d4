"""The public Hasher: one code for a file and its pixels, in PyTorch and exported, saved, published and loaded again."""

import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import distilhash
from distilhash.data.decode import UnreadableImage
from distilhash.data.folders import FolderSource
from distilhash.data.sources import GivenSource
from distilhash.data.transforms import Preprocess
from distilhash.errors import DistilhashError
from distilhash.hasher import FILES
from distilhash.models import new_hasher
from distilhash.training.hash import train_hasher
from distilhash.training.run import RunDirectory
from tiny import HASH, distil_tiny, tiny_images


@pytest.fixture(scope="module", params=["hasher", "exported"])
def opened(request, built):
    return distilhash.Hasher.from_pretrained(built[0] / request.param), built


@pytest.fixture(scope="module")
def files(built):
    return sorted((built[0] / "photos").rglob("*.png"))[:7]


def test_codes_are_the_signs_of_the_network(opened, files):
    hasher, (_, network, *_) = opened
    with torch.no_grad():
        outputs_NK = network(Preprocess(network.input)([Image.open(file) for file in files])).numpy()
    sure = np.abs(outputs_NK) > 1e-3 * np.abs(outputs_NK).max()  # sums in another order
    found = np.unpackbits(hasher.encode(files), axis=1)
    assert (found == (outputs_NK > 0))[sure].all() and sure.mean() > 0.9
    assert hasher.num_bits == 24 and found.shape == (7, 24)


def test_a_file_and_its_pixels_have_one_code(opened, files):
    hasher = opened[0]
    codes = hasher.encode(files)
    images = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in images]
    batch = np.stack(arrays)
    colours_first = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    mixed = [str(files[0]), images[1], arrays[2], *files[3:]]
    for given in (list(map(str, files)), images, arrays, mixed, batch, colours_first, torch.from_numpy(colours_first)):
        assert np.array_equal(hasher.encode(given), codes)
    assert hasher.encode([]).shape == (0, 3)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_neither_order_nor_codes(opened, files, batch_size):
    hasher = opened[0]
    assert np.array_equal(hasher.encode(files[::-1], batch_size=batch_size), hasher.encode(files)[::-1])


def test_what_is_no_image_is_refused(opened, files, tmp_path):
    hasher = opened[0]
    for given in (
        "a.jpg",
        [3],
        [np.zeros((8, 8))],
        np.zeros((2, 8, 8, 3)),
        torch.zeros(2, 3, 8, 8),
        np.zeros((8, 8, 3)),
    ):
        with pytest.raises(DistilhashError):
            hasher.encode(given)
    with pytest.raises(DistilhashError, match="0"):
        hasher.encode(files, batch_size=0)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match=r"bad\.jpg"):
        hasher.encode([files[0], tmp_path / "bad.jpg"])


def test_images_in_memory_are_known_by_their_content(files):
    folder = FolderSource(files[0].parent)
    given = GivenSource([folder.paths[0], Image.open(folder.paths[1]), np.asarray(Image.open(folder.paths[1]))])
    assert given.digests[0].tobytes() == folder.digests[0].tobytes()
    assert given.digests[1].tobytes() == given.digests[2].tobytes() != folder.digests[1].tobytes()
    assert given.names == [folder.paths[0], "00001", "00002"]


def test_a_saved_hasher_gives_the_same_codes(opened, files, tmp_path):
    hasher = opened[0]
    hasher.save_pretrained(tmp_path / "saved")
    again = distilhash.Hasher.from_pretrained(tmp_path / "saved")
    assert np.array_equal(again.encode(files), hasher.encode(files)) and again.fingerprint == hasher.fingerprint
    assert {file.name for file in (tmp_path / "saved").iterdir()} <= set(FILES)
    with pytest.raises(DistilhashError, match="saved"):
        hasher.save_pretrained(tmp_path / "saved")


def test_the_hub_gives_and_takes_what_a_directory_does(opened, files, tmp_path, monkeypatch):
    """A stand-in for huggingface_hub whose repositories are folders."""
    hasher, repositories = opened[0], tmp_path / "hub"
    hub = types.ModuleType("huggingface_hub")

    class HfApi:
        def create_repo(self, name, private, exist_ok):
            (repositories / name).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, repo_id, folder_path):
            for file in folder_path.iterdir():
                (repositories / repo_id / file.name).write_bytes(file.read_bytes())
            return f"https://hub/{repo_id}"

    def snapshot_download(name, allow_patterns):
        if not (repositories / name).is_dir():
            raise RuntimeError("404")
        assert set(allow_patterns) == set(FILES)
        return str(repositories / name)

    hub.HfApi, hub.snapshot_download = HfApi, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert hasher.push_to_hub("me/mine") == "https://hub/me/mine"
    again = distilhash.Hasher.from_pretrained("me/mine")
    assert np.array_equal(again.encode(files), hasher.encode(files))
    with pytest.raises(DistilhashError, match="me/another"):
        distilhash.Hasher.from_pretrained("me/another")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: hasher.push_to_hub("me/mine"), lambda: distilhash.Hasher.from_pretrained("me/mine")):
        with pytest.raises(DistilhashError, match="huggingface_hub"):
            call()


def test_an_exported_hasher_needs_no_torch(built, files):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import distilhash\n"
        "print(distilhash.Hasher.from_pretrained(sys.argv[1]).encode(sys.argv[2:]).tobytes().hex())"
    )
    words = [sys.executable, "-c", code, str(built[0] / "exported"), *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == distilhash.Hasher.from_pretrained(built[0] / "exported").encode(files).tobytes().hex()


def test_search_takes_images_from_memory(built, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    distilhash.index([built[0] / "photos"], "photos.index", built[0] / "exported")
    image = Image.open(files[3])
    by_path, by_image, by_array = distilhash.search("photos.index", [files[3], image, np.asarray(image)], top=3)
    assert by_image["hits"] == by_array["hits"] and by_image["hits"][0]["distance"] == 0
    assert by_image["hits"][0]["path"] == str(files[3]) and by_path["hits"][:2] == by_image["hits"][1:]
    assert (by_image["query"], by_array["query"]) == ("image 1", "image 2")


def test_a_model_card_states_what_it_was_made_from(opened, built, tmp_path):
    hasher = opened[0]
    hasher.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: distilhash\n") and "| code | 24 bits |" in card and "32 pixels" in card
    assert "| teacher |" not in card  # nobody has said so
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (image,) = sorted((built[0] / "photos").rglob("00.png"))
    found: dict[str, object] = {}
    exec(code.replace("DIRECTORY", str(tmp_path / "saved")).replace("photo.jpg", str(image)), found)
    assert np.array_equal(found["codes"], hasher.encode([image]))


def test_a_hasher_tells_the_teacher_of_its_student(tmp_path):
    student = distil_tiny(tmp_path / "student")
    hasher = new_hasher(student, HASH)
    train_hasher(tiny_images(), np.arange(120), hasher, HASH, RunDirectory(tmp_path / "hasher", {"stage": "hash"}))
    card = (tmp_path / "hasher" / "model" / "README.md").read_text()
    for row in ("| teacher | tiny |", "| code | 16 bits |", "| images without labels | 120 |", "| framework | csq |"):
        assert row in card
