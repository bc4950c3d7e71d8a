"""The networks behind the metrics: what OpenCV runs is what was trained."""

import json

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from sefi.core.errors import BackboneError
from sefi.evaluation.encoders import FACE_LANDMARKS, DinoEncoder, ImageReader, LabelledNetwork, SFaceEncoder
from sefi.photo.detect import Face
from tiny_portraits.training.readers import HEAD_LABELS, SCENE_LABELS, Reader as ReaderNetwork, export_reader
from tiny_portraits.training.recognisers import Recogniser, export_recogniser


def face_at(points):
    left, top = np.min(points, axis=0)
    width, height = np.ptp(points, axis=0)
    return Face(left, top, width, height, tuple((float(x), float(y)) for x, y in points), 0.9)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    torch.manual_seed(5)
    model, path = Recogniser().eval(), tmp_path_factory.mktemp("judges") / "face_recognition.onnx"
    export_recogniser(model, path)
    return model, path


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("readers")
    scene, head = ReaderNetwork(SCENE_LABELS, 96).eval(), ReaderNetwork(HEAD_LABELS, 112).eval()
    export_reader(scene, folder / "scene.onnx", 96)
    export_reader(head, folder / "head.onnx", 112)
    return scene, head, folder


def noise(side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_an_aligned_face_reaches_the_network_as_rgb_and_comes_back_with_length_one(recogniser):
    model, path = recogniser
    rgb = noise(112)
    found = SFaceEncoder(path)(rgb, face_at(FACE_LANDMARKS))
    with torch.no_grad():
        wanted = F.normalize(model(torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1)[None]))[0]
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    assert found == pytest.approx(wanted.numpy(), abs=2e-3)


def test_a_moved_and_turned_face_gives_the_same_embedding(recogniser):
    encoder = SFaceEncoder(recogniser[1])
    rgb = cv2.GaussianBlur(noise(112, 1), (0, 0), 6)
    matrix = cv2.getRotationMatrix2D((56, 56), 12, 1.4) + np.array([[0, 0, 40], [0, 0, 31]])
    moved = cv2.warpAffine(rgb, matrix, (211, 199), flags=cv2.INTER_CUBIC)
    points = FACE_LANDMARKS @ matrix[:, :2].T + matrix[:, 2]
    assert float(encoder(rgb, face_at(FACE_LANDMARKS)) @ encoder(moved, face_at(points))) > 0.99


def test_readings_are_the_networks_probabilities_under_their_names(readers):
    scene, _, folder = readers
    rgb = noise(96, 2)
    groups = LabelledNetwork(folder / "scene.onnx")(rgb)
    with torch.no_grad():
        wanted = scene(torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1)[None])[0].numpy()
    assert {name: tuple(group) for name, group in groups.items()} == SCENE_LABELS
    assert [p for group in groups.values() for p in group.values()] == pytest.approx(list(wanted), abs=1e-4)
    assert all(sum(group.values()) == pytest.approx(1, abs=1e-4) for group in groups.values())


def test_without_a_face_no_attribute_is_read(readers):
    read = ImageReader(readers[2] / "scene.onnx", readers[2] / "head.onnx")
    rgb = noise(131, 3)
    assert set(read(rgb, None).attributes.values()) == {0.0}
    seen = read(rgb, face_at(FACE_LANDMARKS))
    assert tuple(seen.attributes) == HEAD_LABELS["attributes"]
    assert all(0 < p < 1 for p in seen.attributes.values())
    heads = HEAD_LABELS.keys() - {"attributes"}
    assert seen.choices.keys() == SCENE_LABELS.keys() | heads
    # Without a face neither a trait of it is shown, nor that the trait is missing.
    blind = read(rgb, None)
    assert blind.choices.keys() == SCENE_LABELS.keys()
    assert not any(blind.shows(kind, "freckles") for kind in ("attribute", "without"))
    assert seen.shows("attribute", "freckles") != seen.shows("without", "freckles")
    assert not blind.shows("skin", "tan")
    assert seen.shows("skin", seen.find_best("skin"))
    assert blind.choices == {kind: found for kind, found in seen.choices.items() if kind in SCENE_LABELS}


def test_labels_lie_beside_the_network(readers):
    for name in ("scene", "head"):
        assert json.loads((readers[2] / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def dino(tmp_path):
    """A tiny DINOv2 of the real classes, as transformers saves it."""
    torch.manual_seed(13)
    sizes = {"hidden_size": 15, "num_attention_heads": 3, "num_hidden_layers": 2, "image_size": 21, "patch_size": 7}
    model, folder = Dinov2Model(Dinov2Config(**sizes, use_mask_token=False)).eval(), tmp_path / "dino"
    model.save_pretrained(folder)
    square = {"height": 21, "width": 21}
    BitImageProcessorPil(size={"shortest_edge": 23}, crop_size=square).save_pretrained(folder)
    return folder


def test_dino_gives_the_class_token_of_transformers_own(dino):
    encoder, rgb = DinoEncoder(dino), noise(47, 4)
    found = encoder(rgb)
    processor = BitImageProcessorPil.from_pretrained(dino)
    with torch.no_grad():
        pixels = processor(rgb, return_tensors="pt")["pixel_values"]
        wanted = Dinov2Model.from_pretrained(dino).eval()(pixels).last_hidden_state[0, 0].numpy()
    assert found == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-5)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    assert np.abs(encoder(noise(47, 5)) - found).max() > 1e-4


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "vit"}, "not dinov2"),
        ("config.json", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ("config.json", {"num_attention_heads": 4}, "does not divide"),
        ("config.json", {"hidden_size": 18}, "weights"),
        ("preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "not DINOv2's"),
        ("preprocessor_config.json", {"crop_size": {"height": 10**9, "width": 1}}, "crop_size"),
    ],
)
def test_what_is_no_dino_is_refused(dino, file, changes, message):
    path = dino / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BackboneError, match=message):
        DinoEncoder(dino)


def test_a_missing_dino_is_named(tmp_path):
    with pytest.raises(BackboneError, match=r"no DINOv2 at .*nothing"):
        DinoEncoder(tmp_path / "nothing")
