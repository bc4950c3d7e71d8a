"""The evaluators' training: targets in YuNet's coding, losses, and ONNX files that OpenCV's classes run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sefi.core.progress import SilentProgress
from sefi.photo.detect import Face, YuNetDetector
from tiny_portraits.drawing.content import ATTRIBUTES
from tiny_portraits.drawing.image import UNITS, describe_face
from tiny_portraits.drawing.sampling import PEOPLE_ONLY, Shares, sample_content
from tiny_portraits.drawing.traits import ANIMALS, HAIR_STYLES, LOOKS, VECTOR_WIDTH, change_person
from tiny_portraits.evaluation.evaluator_scores import count_hits, measure_overlap
from tiny_portraits.training.detector import (
    RANGES,
    STRIDES,
    Detector,
    DetectorRecipe,
    compute_detector_loss,
    export_detector,
    make_face_tables,
    make_targets,
    train_detector,
)
from tiny_portraits.training.drawings import EVALUATOR_SEED, HELD_OUT_SEED, draw_face_crops, list_contents
from tiny_portraits.training.networks import write_onnx
from tiny_portraits.training.readers import (
    HEAD_LABELS,
    SCENE_LABELS,
    UNSEEN,
    compute_reader_loss,
    label_heads,
    label_scenes,
    measure_accuracy,
)
from tiny_portraits.training.recognisers import (
    EMBEDDING,
    Recogniser,
    RecogniserRecipe,
    compute_pair_loss,
    compute_true_accept_rate,
    draw_pairs,
    measure_verification,
    train_recogniser,
)


class Oracle(torch.nn.Module):
    """Answers what the targets say, whatever it is shown."""

    def __init__(self, faces, side):
        super().__init__()
        answers = {name: [] for name in ("cls", "obj", "bbox", "kps")}
        for level in range(len(STRIDES)):
            positive, values = make_targets(faces, side, level)
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
    for number, picture in enumerate(list_contents(HELD_OUT_SEED, 0, 5)):
        path = tmp_path / f"oracle{number}.onnx"
        oracle = Oracle(make_face_tables([picture]), side)
        names = [f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in STRIDES]
        write_onnx(oracle, side, path, "input", names)
        found = sorted(YuNetDetector(path)(np.zeros((side, side, 3), np.uint8)), key=lambda face: face.left)
        shown = sorted((describe_face(s) for s in picture.subjects), key=lambda told: told["box"][0])
        assert len(found) == len(shown)
        for face, told in zip(found, shown, strict=True):
            box = np.array([face.left, face.top, face.width, face.height])
            assert box == pytest.approx(np.array(told["box"]) * side / UNITS, abs=0.1)
            assert np.array(face.landmarks) == pytest.approx(np.array(told["landmarks"]) * side / UNITS, abs=0.1)


@pytest.mark.parametrize("size", [12, 30, 36, 47, 60, 96, 111, 200])
def test_every_face_has_a_stride_that_answers_for_it(size):
    table = np.zeros((1, 14), np.float32)
    table[0, :4] = (0.5, 0.5, size * 0.8 / 320, size / 320)
    answered = [bool(make_targets([table], 320, level)[0].any()) for level in range(len(STRIDES))]
    assert answered == [low <= size < high for low, high in RANGES]
    assert any(answered)


def test_a_detector_trains_exports_and_runs_at_any_size(tmp_path):
    model = train_detector(
        DetectorRecipe(drawings=9, steps=2, batch=2, sides=(64, 96)), 0, EVALUATOR_SEED, SilentProgress()
    )
    export_detector(model, tmp_path / "detector.onnx")
    found = YuNetDetector(tmp_path / "detector.onnx")
    for height, width in ((96, 96), (130, 211)):
        assert isinstance(found(np.zeros((height, width, 3), np.uint8)), list)


def test_detection_loss_falls_when_the_network_says_what_is_there():
    torch.manual_seed(0)
    shown, model = list_contents(EVALUATOR_SEED, 0, 3), Detector()
    images = torch.zeros(3, 3, 96, 96)
    faces = make_face_tables(shown)
    before = compute_detector_loss(model, images, faces)
    with torch.no_grad():
        for head in (*model.heads["cls"], *model.heads["obj"]):
            head.bias.fill_(-4.0)  # "nowhere", which is right nearly everywhere
    assert compute_detector_loss(model, images, faces) < before


def test_pair_loss_likes_one_person_together_and_people_apart():
    recipe, apart = RecogniserRecipe(), torch.eye(5, 7)
    mixed = apart[torch.tensor([1, 2, 3, 4, 0])]
    assert compute_pair_loss(apart, 3 * apart, recipe) < 1e-4 + compute_pair_loss(apart, mixed, recipe) / 100
    assert compute_pair_loss(apart, apart, RecogniserRecipe(margin=0.9)) > compute_pair_loss(apart, apart, recipe)


def test_true_accept_rate_by_hand():
    other = np.linspace(0, 1, 1001)
    assert compute_true_accept_rate(np.array([0.5, 0.95, 0.97, 2.0]), other, 0.1) == 0.75


def test_verification_by_hand():
    # Two people at right angles, two crops each; one crop leans a little towards the other person.
    found = np.array([[1, 0], [0.8, 0.6], [0, 1], [0, 1]], np.float32)
    scores = measure_verification(found, np.array([0, 0, 1, 1]))
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
    scores = measure_accuracy(options, labels)
    assert scores[ATTRIBUTES[0]] == 1.0
    assert scores[ATTRIBUTES[1]] == 0.5
    assert scores["attributes"] == pytest.approx((1 + 0.5 * (len(ATTRIBUTES) - 1)) / len(ATTRIBUTES))
    assert scores["looks"] == 0.5
    assert scores["style"] == 0.5


def test_what_a_head_hides_is_left_open():
    plain = sample_content(np.random.default_rng(3), shares=PEOPLE_ONLY)
    person = change_person(plain.subjects[0].person, {"nose_width": 0.9, "eye_size": 0.5, "mole": 0.99, "jaw": 0.1})
    subject = replace(plain.subjects[0], person=person, attributes=("sunglasses", "purple hair"))
    labels = label_heads([replace(plain, subjects=(subject,), style="photo")])
    answer = dict(zip((*ATTRIBUTES, *LOOKS), labels["attributes"][0].tolist(), strict=True))
    assert answer["sunglasses"] == answer["purple hair"] == answer["a big nose"] == answer["a mole"] == 1
    assert answer["smiling"] == answer["a square jaw"] == 0
    assert np.isnan(answer["big eyes"])
    assert np.isnan(answer["glasses"])
    assert labels["eyes"] == labels["hair colour"] == UNSEEN
    assert HEAD_LABELS["hair style"][labels["hair style"]] == person.hair_style
    assert HEAD_LABELS["skin"][labels["skin"]] == person.skin_tone
    curly = replace(subject, person=change_person(person, {"hair_style": 0.6}), attributes=())
    for attributes in ((), ("curly hair",)):
        seen = label_heads([replace(plain, subjects=(replace(curly, attributes=attributes),), style="photo")])
        assert seen["attributes"][0, ATTRIBUTES.index("curly hair")] == 1
    drawn = label_heads([replace(plain, subjects=(subject,), style="drawing")])
    assert drawn["skin"] == UNSEEN
    assert drawn["hair style"] == labels["hair style"]


@pytest.mark.parametrize("style", HAIR_STYLES)
def test_hair_that_is_curly_of_itself_counts_as_curly(style):
    plain = sample_content(np.random.default_rng(3), shares=PEOPLE_ONLY)
    person = change_person(
        plain.subjects[0].person, {"hair_style": (HAIR_STYLES.index(style) + 0.5) / len(HAIR_STYLES)}
    )
    for attributes in ((), ("curly hair",)):
        subject = replace(plain.subjects[0], person=person, attributes=attributes)
        labels = label_heads([replace(plain, subjects=(subject,))])["attributes"][0]
        assert labels[ATTRIBUTES.index("curly hair")] == (style == "curly" or bool(attributes))


def test_open_answers_do_not_count_in_the_loss():
    labels = {"attributes": torch.tensor([[1.0, float("nan")]]), "skin": torch.tensor([UNSEEN])}
    for other in (-9.0, 9.0):
        found = {"attributes": torch.tensor([[0.0, other]]), "skin": torch.tensor([[other, 1.0]])}
        assert compute_reader_loss(found, labels) == pytest.approx(2 * np.log(2))


def test_who_is_there_is_read_from_the_image():
    random = np.random.default_rng(1)
    shares = (PEOPLE_ONLY, replace(PEOPLE_ONLY, pair=1.0), Shares(pet=1.0), Shares(pet=0.0, companion=1.0))
    labels = label_scenes([sample_content(random, shares=s) for s in shares])
    assert [SCENE_LABELS["people"][n] for n in labels["people"]] == ["one", "two", "nobody", "one"]
    kinds = [SCENE_LABELS["pet"][n] for n in labels["pet"]]
    assert kinds[:2] == ["", ""]
    assert kinds[2] in ANIMALS
    assert kinds[3] == "dog"


def test_overlap_by_hand():
    face = Face(2.0, 0.0, 4.0, 4.0, ((0.0, 0.0),) * 5, 1.0)
    assert measure_overlap(np.array([0.0, 0.0, 4.0, 4.0]), face) == pytest.approx(8 / 24)
    assert count_hits([face, face], [np.array([2.0, 0.0, 4.0, 4.0])]) == (1, 1, 1)


def test_a_recogniser_trains_reproducibly_on_pairs_of_the_same_person():
    crops = draw_face_crops(3, 2, EVALUATOR_SEED)
    recipe = RecogniserRecipe(people=3, drawings=2, pairs=2, steps=2)
    images, vectors = draw_pairs(crops, recipe, 0, 0)
    assert images.shape == (4, 3, 112, 112)
    assert vectors.shape == (2, VECTOR_WIDTH)
    first, second = (train_recogniser(crops, recipe, 0, SilentProgress()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert Recogniser()(torch.zeros(1, 3, 112, 112)).shape == (1, EMBEDDING)
