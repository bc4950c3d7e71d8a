"""The curve of ID(Prompt) starts at ID, ends at nothing, and meets the table's figure at the run's tau."""

import numpy as np
import pytest

from sefi.benchmark.tables import POINTS, compute_tau_curves, make_table


def test_curves_fall_from_id_to_nothing(synthetic):
    run, samples = synthetic.make_run(), synthetic.make_samples()
    curves, found = compute_tau_curves(samples, run), make_table(samples, run)
    for variant in ("ours", "one token"):
        means = [point.mean for point in curves[variant].points]
        assert len(means) == POINTS
        assert means[0] == pytest.approx(found.values[variant, "id"].mean)
        assert means[-1] == 0
        assert np.all(np.diff(means) <= 1e-12)


def test_the_curve_at_the_runs_tau_is_the_tables_figure(synthetic):
    run, samples = synthetic.make_run(), synthetic.make_samples()
    curves = compute_tau_curves(samples, run)
    at = int(np.argmin(np.abs(curves["ours"].taus - 0.27)))
    tau = float(curves["ours"].taus[at])
    found = make_table(samples, run.model_copy(update={"tau": tau}))
    for variant, curve in curves.items():
        assert curve.points[at].mean == pytest.approx(found.values[variant, "id_prompt"].mean)
        assert curve.points[at].n == 3


def test_all_curves_share_thresholds_and_reference_rows_come_last(synthetic):
    curves = compute_tau_curves(synthetic.make_samples(), synthetic.make_run())
    assert list(curves) == ["ours", "one token", "class word", "photo", "same", "other"]
    assert all(np.array_equal(curve.taus, curves["ours"].taus) for curve in curves.values())


def test_the_thresholds_exceed_the_scores_of_the_variants_under_test(synthetic):
    samples = synthetic.make_samples()
    scores = [sample.prompt_score for sample in samples if sample.variant in ("ours", "one token")]
    taus = compute_tau_curves(samples, synthetic.make_run())["photo"].taus
    assert taus[0] < min(scores) < max(scores) < taus[-1]
    assert taus[-1] - taus[0] < 1.2 * (max(scores) - min(scores))


def test_the_thresholds_reach_the_runs_tau_wherever_it_lies(synthetic):
    taus = compute_tau_curves(synthetic.make_samples(), synthetic.make_run(tau=0.5))["ours"].taus
    assert taus[0] < 0.2 < 0.5 < taus[-1] < 0.6


@pytest.mark.parametrize("key", ["id", "prompt_score"])
def test_without_scores_there_is_no_curve(synthetic, key):
    samples = synthetic.change_all(synthetic.make_samples(), **{key: None})
    assert compute_tau_curves(samples, synthetic.make_run()) == {}
