"""What a training keeps from step to step: its own copies of the model, latents of views, numbers read at the end."""

import pytest
import torch
from tests.training.token_training import make_task, make_trainer

from sefi.core.config import Config, override
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.identity.tokens import FreeVectors, IdentityTokens
from sefi.methods.celeb_basis import BasisTokens
from sefi.photo.augment import PhotoViews
from sefi.training import token_inversion
from sefi.training.token_inversion import ViewLatents, compute_losses, draw_batch

CONFIG = override(
    Config(),
    ["learn.steps=3", "learn.batch=3", "learn.expansion=direct", "learn.residual_init=true", "views.latent_pool=5"],
)


def views(backbone, config=CONFIG):
    crop = torch.rand(3, backbone.resolution, backbone.resolution, generator=create_generator(1, "crop")) * 2 - 1
    return PhotoViews(crop, config.views)


def test_reused_copies_give_what_fresh_ones_give(backbone):
    task = make_task(backbone, views(backbone), CONFIG, 1)
    for step in range(3):
        batch = draw_batch(backbone, task.latent_source, CONFIG.learn, 1, step)
        tokens = task.tokens()
        kept = compute_losses(backbone, task.texts, tokens, batch, CONFIG.learn, model=task.model)
        fresh = compute_losses(backbone, task.texts, tokens, batch, CONFIG.learn)
        assert torch.equal(kept.total, fresh.total)
        (one,) = torch.autograd.grad(kept.total, list(task.weights.parameters()))
        (other,) = torch.autograd.grad(fresh.total, list(task.weights.parameters()))
        assert torch.equal(one, other)


def test_the_model_is_copied_once_for_all_steps(backbone, monkeypatch):
    copies = []
    whole = token_inversion.copy_with_key_value_attention
    monkeypatch.setattr(
        token_inversion, "copy_with_key_value_attention", lambda *some, **more: copies.append(1) or whole(*some, **more)
    )
    make_trainer(backbone, views(backbone), CONFIG, 1).run(SilentProgress(), None)
    assert len(copies) == 1


def test_a_failed_pass_leaves_nothing_in_the_reused_copies(backbone, monkeypatch):
    task = make_task(backbone, views(backbone), CONFIG, 1)

    def fail(_losses):
        raise MemoryError

    monkeypatch.setattr(type(task.model.recorder), "pop_mean_loss", fail)
    with pytest.raises(MemoryError):
        task.compute_loss(0)
    assert not task.model.recorder.losses
    assert task.model.recorder.loss_options is None
    assert task.model.backbone.replaced_rows.mask is None


def test_a_view_with_own_text_encoders_shares_their_weights(backbone):
    own = backbone.copy_text_encoders()
    assert own.text_encoder is not backbone.text_encoder
    assert [p.data_ptr() for p in own.text_encoder.parameters()] == [
        p.data_ptr() for p in backbone.text_encoder.parameters()
    ]
    ids = torch.zeros(2, len(own.text_encoders), own.text_length, dtype=torch.long)
    rows = torch.randn(2, own.text_length, own.token_width, generator=create_generator(1, "rows"))
    mask = torch.zeros(2, own.text_length, dtype=torch.bool)
    mask[0, 3] = True
    assert torch.equal(own.encode_text(ids, rows, mask).states, backbone.encode_text(ids, rows, mask).states)
    plain = backbone.encode_text(ids).states
    assert not torch.equal(own.encode_text(ids, rows, mask).states[0], plain[0])
    assert torch.equal(own.encode_text(ids).states, plain)


def test_numbers_stay_on_the_device_until_the_backward_pass_is_through(backbone, monkeypatch):
    """On a GPU a number that is read waits for everything that is queued: none is before the backward pass."""
    trainer, events = make_trainer(backbone, views(backbone), CONFIG, 1), []
    backward = torch.Tensor.backward
    trainer.compute_step(0)  # the first step measures, which needs numbers
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", lambda self: events.append("backward") or backward(self))
        for name in ("__float__", "__bool__", "item", "tolist"):
            original = getattr(torch.Tensor, name)

            def read(self, original=original):
                if self.requires_grad or self.grad_fn is not None or self.is_floating_point():
                    events.append("read")
                return original(self)

            patch.setattr(torch.Tensor, name, read)
        trainer.compute_step(1)
    assert events == ["backward", "read"]


def test_a_pool_with_fresh_noise_is_the_posterior_of_its_views(backbone):
    """Independent: the autoencoder's own distribution of the views that the pool's generator draws."""
    config = override(CONFIG, ["views.pool_noise=fresh", "views.latent_pool=3"])
    source = ViewLatents(backbone, views(backbone, config), config.views, 7)
    random = create_generator(7, "pool", 0)
    pixels = torch.stack([views(backbone, config).draw_view(random) for _ in range(3)])
    with torch.no_grad():
        posterior = backbone.vae.encode(pixels.to(backbone.dtype)).latent_dist
    scale = backbone.vae.config["scaling_factor"]
    drawn = torch.stack([source(1, step)[0] for step in range(400)])
    picks = [int(torch.randint(3, (1,), generator=create_generator(7, "pick", step))) for step in range(400)]
    for view in range(3):
        of_view = drawn[torch.tensor(picks) == view]
        standard = (of_view - posterior.mean[view] * scale) / (posterior.std[view] * scale)
        assert abs(float(standard.mean())) < 0.05
        assert float(standard.std()) == pytest.approx(1, abs=0.05)


def test_fresh_noise_differs_from_step_to_step_and_not_from_run_to_run(backbone):
    config = override(CONFIG, ["views.pool_noise=fresh", "views.latent_pool=1"])
    first, again = (ViewLatents(backbone, views(backbone, config), config.views, 7) for _ in range(2))
    assert not torch.equal(first(1, 0), first(1, 1))
    assert torch.equal(first(1, 1), again(1, 1))
    fixed = ViewLatents(backbone, views(backbone), override(CONFIG, ["views.latent_pool=1"]).views, 7)
    assert torch.equal(fixed(1, 0), fixed(1, 1))


def make_token_modules():
    """Return a module of tokens of every kind and option that needs a tensor of its own."""
    row = torch.randn(24, generator=create_generator(1, "row"))
    learn = Config().learn
    held = ["learn.expansion=direct", "learn.hold_norm=true", "learn.change_limit=0.5", "learn.token_average=0.9"]
    return {
        "module": IdentityTokens(row, learn, 1),
        "direct": IdentityTokens(row, override(Config(), held).learn, 1),
        "free": FreeVectors(row, torch.randn(2, 24), then_class=True),
        "basis": BasisTokens(row, torch.randn(2, 8, 24), torch.randn(1, 5), 1, 0.99),
    }


@pytest.mark.parametrize("name", ["module", "direct", "free", "basis"])
def test_everything_of_a_module_of_tokens_moves_with_it(name):
    """What stayed behind on the CPU would stop the first step on a GPU: no arithmetic takes two devices."""
    module = make_token_modules()[name].to("meta")
    module.train()
    if name != "basis":  # its forward pass reads a number
        assert module(create_generator(1, "dropout")).device.type == "meta"
    if name == "direct":
        assert module.limit_change(module.compute_tokens()).device.type == "meta"
    for part in module.modules():
        own = {**part._parameters, **part._buffers}
        assert {one.device.type for one in own.values() if one is not None} <= {"meta"}
        assert not [key for key, value in vars(part).items() if isinstance(value, torch.Tensor)]
