"""Our tokens as a lesson, and a run of it, in one call each."""

from sefi.identity.tokens import IdentityTokens
from sefi.learn.loop import Trainer, train
from sefi.learn.tokens import TokenTraining
from sefi.methods.base import get_class_row


def lesson(backbone, views, config, seed):
    tokens = IdentityTokens(get_class_row(backbone, config), config.learn, seed)
    return TokenTraining(backbone, views, config, seed, tokens)


def learning_run(backbone, views, config, seed):
    return Trainer(lesson(backbone, views, config, seed), config)


def learn_tokens(backbone, views, config, seed, progress, checkpoint=None, probe=None):
    kept, numbers = train(lesson(backbone, views, config, seed), config, progress, checkpoint, probe)
    return kept["tokens"], numbers
