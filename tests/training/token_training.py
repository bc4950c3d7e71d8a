"""Train tokens of SeFi-IDE in one call."""

from sefi.identity.tokens import IdentityTokens
from sefi.methods.base import get_class_row
from sefi.training.loop import IdentityTrainer, train
from sefi.training.token_inversion import TokenTask


def make_task(backbone, views, config, seed):
    tokens = IdentityTokens(get_class_row(backbone, config), config.learn, seed)
    return TokenTask(backbone, views, config, seed, tokens)


def make_trainer(backbone, views, config, seed):
    return IdentityTrainer(make_task(backbone, views, config, seed), config)


def learn_tokens(backbone, views, config, seed, progress, checkpoint=None, probe=None):
    tensors, numbers = train(make_task(backbone, views, config, seed), config, progress, checkpoint, probe)
    return tensors["tokens"], numbers
