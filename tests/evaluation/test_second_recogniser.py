"""The second face recogniser: what is loaded is what was trained, and the image may be learned through it."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from sefi.core.errors import BackboneError, FaceError
from sefi.evaluation.encoders import FACE_LANDMARKS, align_face, compute_alignment
from sefi.evaluation.second_recogniser import (
    SecondEncoder,
    SecondRecogniser,
    align_faces,
    embed_faces,
    load_second_recogniser,
)
from sefi.photo.detect import Face
from tiny_portraits.drawing.image import UNITS, describe_face, draw
from tiny_portraits.drawing.sampling import make_portrait, make_test_person
from tiny_portraits.training.drawings import convert_to_tensor
from tiny_portraits.training.recognisers import export_second_recogniser


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """An untrained network and its file."""
    torch.manual_seed(11)
    network, path = SecondRecogniser().eval(), tmp_path_factory.mktemp("second") / "second.safetensors"
    export_second_recogniser(network, path)
    return network, path


def face_at(points):
    left, top = np.min(points, axis=0)
    width, height = np.ptp(points, axis=0)
    return Face(left, top, width, height, tuple((float(x), float(y)) for x, y in points), 0.9)


def draw_person(number, side):
    """A drawn portrait and its landmarks in pixels, a little wrong, as a detector's are."""
    content = make_portrait(make_test_person(number), number)
    points = np.array(describe_face(content.subjects[0])["landmarks"]) * side / UNITS
    return draw(content, side), points + np.random.default_rng(number).normal(0, 0.008 * side, points.shape)


def test_the_file_has_half_the_size_and_nearly_the_same_network(stored):
    network, path = stored
    assert path.stat().st_size < 3.2e6
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    faces = torch.rand(3, 3, 112, 112) * 255
    loaded = load_second_recogniser(path)
    with torch.no_grad():
        assert F.cosine_similarity(loaded(faces), network(faces)).min() > 0.999
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path, tensors: path.unlink(), "No such file"),
        (lambda path, tensors: path.write_bytes(path.read_bytes()[:-7]), "bytes of tensors"),
        (lambda path, tensors: save_file({"weight": torch.ones(2)}, path), "weights are not those expected"),
        (lambda path, tensors: save_file(tensors | {"embed.bias": torch.ones(127)}, path), "a wrong shape"),
        (lambda path, tensors: save_file(tensors | {"embed.bias": torch.full((128,), torch.nan)}, path), "not finite"),
        (lambda path, tensors: save_file(tensors | {"embed.bias": torch.ones(128).double()}, path), "dtype F64"),
    ],
    ids=["missing", "cut", "foreign", "shape", "nan", "double"],
)
def test_what_is_no_such_network_is_refused(stored, tmp_path, damage, reason):
    path = tmp_path / "second.safetensors"
    path.write_bytes(stored[1].read_bytes())
    damage(path, load_file(path))
    with pytest.raises(BackboneError, match=f"(?s){reason}.*Install the package again"):
        load_second_recogniser(path)


def test_the_shipped_network_sees_the_same_person_in_an_image_and_in_its_tensor():
    encoder, network = SecondEncoder(), load_second_recogniser()
    drawn = [draw_person(number, 192) for number in (2, 3, 5)]
    wanted = np.stack([encoder(rgb, face_at(points)) for rgb, points in drawn])
    images, landmarks = (np.stack(values) for values in zip(*drawn, strict=True))
    likeness = embed_faces(network, convert_to_tensor(images), torch.from_numpy(landmarks)).numpy() @ wanted.T
    assert np.diag(likeness).min() > 0.99
    assert (likeness - np.eye(3)).max() < 0.5


@pytest.mark.parametrize("side", [97, 192, 251])
def test_crops_of_tensors_are_those_of_images(side):
    """OpenCV rounds places to 1/32 of a pixel and colours to whole values."""
    rgb, points = draw_person(3, side)
    wanted = align_face(rgb, points, FACE_LANDMARKS)
    found = align_faces(convert_to_tensor(rgb[None]), torch.from_numpy(points)[None])[0]
    gap = np.abs((found.permute(1, 2, 0).numpy() + 1) * 127.5 - wanted)
    assert gap.mean() < 0.6
    assert np.quantile(gap, 0.99) < 4


def test_a_face_that_leaves_the_image_goes_on_with_its_edge():
    rgb = np.random.default_rng(2).integers(0, 256, (61, 53, 3), np.uint8)
    rgb = cv2.GaussianBlur(rgb, (0, 0), 3)
    points = FACE_LANDMARKS * 0.9 - np.float32(30)
    wanted = align_face(rgb, points, FACE_LANDMARKS)
    found = align_faces(convert_to_tensor(rgb[None]), torch.from_numpy(points)[None])[0]
    assert np.abs((found.permute(1, 2, 0).numpy() + 1) * 127.5 - wanted).max() < 3


def test_faces_of_tensors_have_the_encoders_embeddings(stored):
    encoder, network = SecondEncoder(stored[1]), load_second_recogniser(stored[1])
    drawn = [draw_person(number, 192) for number in range(5)]
    wanted = np.stack([encoder(rgb, face_at(points)) for rgb, points in drawn])
    images = convert_to_tensor(np.stack([rgb for rgb, _ in drawn]))
    found = embed_faces(network, images, torch.from_numpy(np.stack([points for _, points in drawn]))).numpy()
    assert np.linalg.norm(wanted, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert (found * wanted).sum(1).min() > 0.999


def test_the_image_is_learned_through_the_network(stored):
    """In double precision, moving a pixel changes the likeness by its gradient."""
    network = load_second_recogniser(stored[1]).double()
    rgb, points = draw_person(7, 97)
    image = convert_to_tensor(rgb[None]).double()
    landmarks, toward = torch.from_numpy(points)[None], F.normalize(torch.randn(128, dtype=torch.float64), dim=0)
    x, y = (int(value) for value in points[2])
    patch = image[:, :, y : y + 2, x : x + 2].clone().requires_grad_()

    def measure_likeness(pixels):
        changed = image.clone()
        changed[:, :, y : y + 2, x : x + 2] = pixels
        return embed_faces(network, changed, landmarks)[0] @ toward

    assert torch.autograd.gradcheck(measure_likeness, (patch,), eps=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(measure_likeness(patch), patch)
    assert gradient.abs().max() > 0


def test_landmarks_in_one_point_are_refused(stored):
    same = np.full((5, 2), 31.0)
    with pytest.raises(FaceError, match="lie in one point"):
        compute_alignment(same, FACE_LANDMARKS)
    with pytest.raises(FaceError, match="lie in one point"):
        embed_faces(stored[0], torch.zeros(1, 3, 97, 97), torch.from_numpy(same)[None])
