"""The judges' training: targets in YuNet's coding, losses, and ONNX files that OpenCV's classes run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sefi.core.nouns import Face
from sefi.core.protocols import SilentProgress
from sefi.photo.detect import YuNetDetector
from sefi.world.animal import ANIMALS
from sefi.world.detector_training import (
    RANGES,
    STRIDES,
    Detector,
    DetectorRecipe,
    detector_loss,
    export_detector,
    face_table,
    targets,
    train_detector,
)
from sefi.world.drawing import UNITS, face_truth
from sefi.world.judge_scores import hits, overlap
from sefi.world.judging_data import HELD_OUT_SEED, JUDGE_SEED, face_crops, pictures
from sefi.world.onnx_export import write_onnx
from sefi.world.person import HAIR_STYLES, LOOKS, VECTOR_WIDTH, changed
from sefi.world.picture import ATTRIBUTES
from sefi.world.reader_training import (
    HEAD_LABELS,
    SCENE_LABELS,
    UNSEEN,
    head_labels,
    reader_loss,
    reading_accuracy,
    scene_labels,
)
from sefi.world.recogniser_training import (
    EMBEDDING,
    Recogniser,
    RecogniserRecipe,
    draw_pairs,
    pair_loss,
    train_recogniser,
    true_accept_rate,
    verification,
)
from sefi.world.sampling import PEOPLE_ONLY, Shares, random_picture


class Oracle(torch.nn.Module):
    """Answers what the targets say, whatever it is shown."""

    def __init__(self, faces, side):
        super().__init__()
        answers = {name: [] for name in ("cls", "obj", "bbox", "kps")}
        for level in range(len(STRIDES)):
            positive, values = targets(faces, side, level)
            answers["cls"].append(positive[..., None].float())
            answers["obj"].append(positive[..., None].float())
            answers["bbox"].append(values[..., :4])
            answers["kps"].append(values[..., 4:])
        self.answers = [torch.nn.Parameter(v) for part in answers.values() for v in part]
        for number, answer in enumerate(self.answers):
            self.register_parameter(f"answer{number}", answer)

    def forward(self, image):
        # What the network is shown must reach every output, or the exporter drops the input.
        nothing = image.mean() * 0
        return tuple(answer + nothing for answer in self.answers)


def test_opencv_decodes_the_targets_to_the_truth(tmp_path):
    side = 192
    for number, picture in enumerate(pictures(HELD_OUT_SEED, 0, 5)):
        path = tmp_path / f"oracle{number}.onnx"
        oracle = Oracle(face_table([picture]), side)
        names = [f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in STRIDES]
        write_onnx(oracle, side, path, "input", names)
        found = sorted(YuNetDetector(path)(np.zeros((side, side, 3), np.uint8)), key=lambda face: face.left)
        shown = sorted((face_truth(s) for s in picture.subjects), key=lambda told: told["box"][0])
        assert len(found) == len(shown)
        for face, told in zip(found, shown, strict=True):
            box = np.array([face.left, face.top, face.width, face.height])
            assert box == pytest.approx(np.array(told["box"]) * side / UNITS, abs=0.1)
            assert np.array(face.landmarks) == pytest.approx(np.array(told["landmarks"]) * side / UNITS, abs=0.1)


@pytest.mark.parametrize("size", [12, 30, 36, 47, 60, 96, 111, 200])
def test_every_face_has_a_stride_that_answers_for_it(size):
    table = np.zeros((1, 14), np.float32)
    table[0, :4] = (0.5, 0.5, size * 0.8 / 320, size / 320)
    answered = [bool(targets([table], 320, level)[0].any()) for level in range(len(STRIDES))]
    assert answered == [low <= size < high for low, high in RANGES]
    assert any(answered)


def test_a_detector_trains_exports_and_runs_at_any_size(tmp_path):
    model = train_detector(
        DetectorRecipe(pictures=9, steps=2, batch=2, sides=(64, 96)), 0, JUDGE_SEED, SilentProgress()
    )
    export_detector(model, tmp_path / "detector.onnx")
    found = YuNetDetector(tmp_path / "detector.onnx")
    for height, width in ((96, 96), (130, 211)):
        assert isinstance(found(np.zeros((height, width, 3), np.uint8)), list)


def test_detection_loss_falls_when_the_network_says_what_is_there():
    torch.manual_seed(0)
    shown, model = pictures(JUDGE_SEED, 0, 3), Detector()
    images = torch.zeros(3, 3, 96, 96)
    faces = face_table(shown)
    before = detector_loss(model, images, faces)
    with torch.no_grad():
        for head in (*model.heads["cls"], *model.heads["obj"]):
            head.bias.fill_(-4.0)  # "nowhere", which is right nearly everywhere
    assert detector_loss(model, images, faces) < before


def test_pair_loss_likes_one_person_together_and_people_apart():
    recipe, apart = RecogniserRecipe(), torch.eye(5, 7)
    mixed = apart[torch.tensor([1, 2, 3, 4, 0])]
    assert pair_loss(apart, 3 * apart, recipe) < 1e-4 + pair_loss(apart, mixed, recipe) / 100
    assert pair_loss(apart, apart, RecogniserRecipe(margin=0.9)) > pair_loss(apart, apart, recipe)


def test_true_accept_rate_by_hand():
    other = np.linspace(0, 1, 1001)
    assert true_accept_rate(np.array([0.5, 0.95, 0.97, 2.0]), other, 0.1) == 0.75


def test_verification_by_hand():
    # Two people at right angles, two crops each; one crop leans a little towards the other person.
    found = np.array([[1, 0], [0.8, 0.6], [0, 1], [0, 1]], np.float32)
    scores = verification(found, np.array([0, 0, 1, 1]))
    assert scores["same"] == pytest.approx((0.8 + 1) / 2)
    assert scores["other"] == pytest.approx((0 + 0 + 0.6 + 0.6) / 4)
    assert scores["tar"] == 1.0


def test_reading_accuracy_by_hand():
    questions = (*ATTRIBUTES, *LOOKS)
    options = {"attributes": np.zeros((3, len(questions))), "style": np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]])}
    labels = {"attributes": torch.zeros(3, len(questions)), "style": torch.tensor([0, 0, UNSEEN])}
    labels["attributes"][0, :] = 1
    labels["attributes"][2, :] = float("nan")
    options["attributes"][0, 0] = 0.8
    scores = reading_accuracy(options, labels)
    assert scores[ATTRIBUTES[0]] == 1.0
    assert scores[ATTRIBUTES[1]] == 0.5
    assert scores["attributes"] == pytest.approx((1 + 0.5 * (len(ATTRIBUTES) - 1)) / len(ATTRIBUTES))
    assert scores["looks"] == 0.5
    assert scores["style"] == 0.5


def test_what_a_head_hides_is_left_open():
    plain = random_picture(np.random.default_rng(3), shares=PEOPLE_ONLY)
    person = changed(plain.subjects[0].person, {"nose_width": 0.9, "eye_size": 0.5, "mole": 0.99, "jaw": 0.1})
    subject = replace(plain.subjects[0], person=person, attributes=("sunglasses", "purple hair"))
    labels = head_labels([replace(plain, subjects=(subject,), style="photo")])
    answer = dict(zip((*ATTRIBUTES, *LOOKS), labels["attributes"][0].tolist(), strict=True))
    assert answer["sunglasses"] == answer["purple hair"] == answer["a big nose"] == answer["a mole"] == 1
    assert answer["smiling"] == answer["a square jaw"] == 0
    assert np.isnan(answer["big eyes"])
    assert np.isnan(answer["glasses"])
    assert labels["eyes"] == labels["hair colour"] == UNSEEN
    assert HEAD_LABELS["hair style"][labels["hair style"]] == person.hair_style
    assert HEAD_LABELS["skin"][labels["skin"]] == person.skin_tone
    curly = replace(subject, person=changed(person, {"hair_style": 0.6}), attributes=())
    for attributes in ((), ("curly hair",)):
        seen = head_labels([replace(plain, subjects=(replace(curly, attributes=attributes),), style="photo")])
        assert seen["attributes"][0, ATTRIBUTES.index("curly hair")] == 1
    drawn = head_labels([replace(plain, subjects=(subject,), style="drawing")])
    assert drawn["skin"] == UNSEEN
    assert drawn["hair style"] == labels["hair style"]


@pytest.mark.parametrize("style", HAIR_STYLES)
def test_hair_that_is_curly_of_itself_counts_as_curly(style):
    plain = random_picture(np.random.default_rng(3), shares=PEOPLE_ONLY)
    person = changed(plain.subjects[0].person, {"hair_style": (HAIR_STYLES.index(style) + 0.5) / len(HAIR_STYLES)})
    for attributes in ((), ("curly hair",)):
        subject = replace(plain.subjects[0], person=person, attributes=attributes)
        labels = head_labels([replace(plain, subjects=(subject,))])["attributes"][0]
        assert labels[ATTRIBUTES.index("curly hair")] == (style == "curly" or bool(attributes))


def test_open_answers_do_not_count_in_the_loss():
    labels = {"attributes": torch.tensor([[1.0, float("nan")]]), "skin": torch.tensor([UNSEEN])}
    for other in (-9.0, 9.0):
        found = {"attributes": torch.tensor([[0.0, other]]), "skin": torch.tensor([[other, 1.0]])}
        assert reader_loss(found, labels) == pytest.approx(2 * np.log(2))


def test_who_is_there_is_read_off_the_picture():
    random = np.random.default_rng(1)
    shares = (PEOPLE_ONLY, replace(PEOPLE_ONLY, pair=1.0), Shares(pet=1.0), Shares(pet=0.0, companion=1.0))
    labels = scene_labels([random_picture(random, shares=s) for s in shares])
    assert [SCENE_LABELS["people"][n] for n in labels["people"]] == ["one", "two", "nobody", "one"]
    kinds = [SCENE_LABELS["pet"][n] for n in labels["pet"]]
    assert kinds[:2] == ["", ""]
    assert kinds[2] in ANIMALS
    assert kinds[3] == "dog"


def test_overlap_by_hand():
    face = Face(2.0, 0.0, 4.0, 4.0, ((0.0, 0.0),) * 5, 1.0)
    assert overlap(np.array([0.0, 0.0, 4.0, 4.0]), face) == pytest.approx(8 / 24)
    assert hits([face, face], [np.array([2.0, 0.0, 4.0, 4.0])]) == (1, 1, 1)


def test_a_recogniser_trains_reproducibly_on_pairs_of_the_same_person():
    crops = face_crops(3, 2, JUDGE_SEED)
    recipe = RecogniserRecipe(people=3, pictures=2, pairs=2, steps=2)
    images, vectors = draw_pairs(crops, recipe, 0, 0)
    assert images.shape == (4, 3, 112, 112)
    assert vectors.shape == (2, VECTOR_WIDTH)
    first, second = (train_recogniser(crops, recipe, 0, SilentProgress()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert Recogniser()(torch.zeros(1, 3, 112, 112)).shape == (1, EMBEDDING)
