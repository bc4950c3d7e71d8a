"""Finding and choosing faces, with a YuNet-type network built here."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sefi.core.errors import FaceError
from sefi.photo.detect import Face, YuNetDetector, choose_face, describe_small_face


def bright_spot_network(path: Path) -> Path:
    """YuNet's twelve outputs, where a cell is a face of 40 x 40 pixels if it is all white.

    Score: brightness of the darkest pixel of the 32 x 32 cell, sharpened; the strides of 8 and
    16 always score 0. Boxes are centred on the cell: `exp(log(40 / 32)) * 32`.
    """
    nodes, outputs, constants = [], [], []

    def constant(name: str, values: np.ndarray) -> str:
        constants.append(onnx.numpy_helper.from_array(values, name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    mean = constant("mean", np.full((1, 3, 1, 1), 1 / 765, np.float32))
    grey = add("Conv", ["input", mean], "grey")
    for stride in (8, 16, 32):
        pooled = add(
            "AveragePool", [grey], f"pooled{stride}",
            kernel_shape=[stride, stride], strides=[stride, stride],
        )  # fmt: skip
        steep = constant(f"steep{stride}", np.full((1, 1, 1, 1), 20, np.float32))
        offset = constant(f"offset{stride}", np.full((1,), -18 if stride == 32 else -90, np.float32))
        score = add("Sigmoid", [add("Conv", [pooled, steep, offset], f"logit{stride}")], f"s{stride}")
        flat = constant(f"flat{stride}", np.array([1, -1, 1], np.int64))
        size = float(np.log(40 / 32))
        for name, values in (
            ("cls", None), ("obj", None), ("bbox", [0.5, 0.5, size, size]),
            ("kps", [0.3, 0.4, 0.7, 0.4, 0.5, 0.5, 0.4, 0.7, 0.6, 0.7]),
        ):  # fmt: skip
            output = f"{name}_{stride}"
            if values is None:
                add("Reshape", [score, flat], output)
            else:
                cells = add("Reshape", [score, flat], f"cells_{output}")
                zero = constant(f"zero_{output}", np.zeros((1, 1, 1), np.float32))
                row = constant(f"row_{output}", np.array(values, np.float32).reshape(1, 1, -1))
                add("Add", [add("Mul", [cells, zero], f"none_{output}"), row], output)
            shape = [1, f"cells{stride}", len(values or [1])]
            outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
    order = [f"{name}_{s}" for name in ("cls", "obj", "bbox", "kps") for s in (8, 16, 32)]
    outputs.sort(key=lambda value: order.index(value.name))
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "spots", [picture], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> YuNetDetector:
    return YuNetDetector(bright_spot_network(tmp_path_factory.mktemp("onnx") / "spots.onnx"))


def picture(height: int, width: int, *spots: tuple[int, int], side: int = 32) -> np.ndarray:
    rgb = np.zeros((height, width, 3), np.uint8)
    for left, top in spots:
        rgb[top : top + side, left : left + side] = 255
    return rgb


def test_nothing_is_found_in_the_dark(detector: YuNetDetector) -> None:
    assert detector(picture(96, 160)) == []


def test_a_face_is_given_in_photo_pixels(detector: YuNetDetector) -> None:
    (face,) = detector(picture(100, 211, (64, 32)))
    assert (face.left, face.top) == pytest.approx((60, 28), abs=0.5)
    assert (face.width, face.height) == pytest.approx((40, 40), abs=0.5)
    assert len(face.landmarks) == 5
    assert face.landmarks[0] == pytest.approx((64 + 0.3 * 32, 32 + 0.4 * 32), abs=0.5)
    assert 0.6 < face.score <= 1


def test_large_photos_are_shrunk_and_faces_scaled_back(detector: YuNetDetector) -> None:
    (face,) = detector(picture(800, 1280, (512, 256), side=128))
    assert (face.left, face.top) == pytest.approx((496, 240), abs=2)
    assert face.width == pytest.approx(160, abs=2)


def test_small_faces_are_found_in_a_larger_copy(detector: YuNetDetector) -> None:
    (face,) = detector(picture(480, 640, (320, 96)))
    assert face.left == pytest.approx(316, abs=1)


def test_small_images_are_enlarged(detector: YuNetDetector) -> None:
    (face,) = detector(picture(96, 96, (32, 16), side=16))
    assert (face.left, face.top) == pytest.approx((30, 14), abs=1)
    assert face.width == pytest.approx(20, abs=1)


def test_the_surest_face_comes_first(detector: YuNetDetector) -> None:
    rgb = picture(160, 320, (224, 0), (32, 96), (128, 64))
    rgb[0:32, 224:256] = 245
    rgb[96:128, 32:64] = 250
    assert [round(face.left) for face in detector(rgb)] == [124, 28, 220]


def test_sizes_that_fit_no_grid(detector: YuNetDetector) -> None:
    for height, width in ((33, 47), (101, 307), (2000, 35)):
        assert detector(picture(height, width)) == []


def test_missing_and_foreign_networks(tmp_path: Path) -> None:
    with pytest.raises(FaceError, match="no face detector"):
        YuNetDetector(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(FaceError, match="not a YuNet"):
        YuNetDetector(tmp_path / "text.onnx")(picture(64, 64))


def test_a_network_with_other_outputs(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["input"], ["output"])
    shape = [1, 3, 64, 64]
    values = [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape) for x in ("input", "output")]
    graph = helper.make_graph([node], "other", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(FaceError, match="not a YuNet"):
        YuNetDetector(tmp_path / "other.onnx")(picture(64, 64))


def test_a_lack_of_memory_is_no_fault_of_the_network(detector):
    with pytest.raises(FaceError, match="not enough memory to look for faces in 192000000 x 192000000 pixels") as error:
        detector._detect(picture(64, 64), 3e6)
    assert error.value.lacks_memory


def face_at(left: float, side: float = 80) -> Face:
    return Face(left=left, top=0, width=side, height=side, landmarks=((0.0, 0.0),) * 5, score=0.9)


def test_the_only_face_is_chosen() -> None:
    assert choose_face([face_at(3)]) == face_at(3)


def test_faces_are_counted_from_the_left() -> None:
    faces = [face_at(200), face_at(5), face_at(90)]
    assert [choose_face(faces, number).left for number in (1, 2, 3)] == [5, 90, 200]


def test_no_face() -> None:
    with pytest.raises(FaceError, match="No face"):
        choose_face([])


def test_several_faces_are_listed() -> None:
    with pytest.raises(FaceError, match=r"3 faces: 1 at x = 45 .*1 to 3 from the left: --face"):
        choose_face([face_at(200), face_at(5), face_at(90)])


@pytest.mark.parametrize("number", [-1, 0, 3, 10**9])
def test_a_number_out_of_range(number: int) -> None:
    with pytest.raises(FaceError, match=f"no face {number}"):
        choose_face([face_at(1), face_at(99)], number)


def test_small_faces_are_taken_with_a_remark() -> None:
    assert choose_face([face_at(0, 16)]).width == 16
    assert "63 x 63 pixels" in (describe_small_face(face_at(0, 63)) or "")
    assert describe_small_face(face_at(0, 64)) is None


def test_opening_a_network_prints_nothing(detector: YuNetDetector, capfd: pytest.CaptureFixture[str]) -> None:
    level = cv2.utils.logging.getLogLevel()
    YuNetDetector(detector._path)
    assert capfd.readouterr() == ("", "")
    assert cv2.utils.logging.getLogLevel() == level
