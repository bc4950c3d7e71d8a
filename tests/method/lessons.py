"""Our tokens as a lesson, and a run of it, in one call each."""

from sefi.identity.tokens import IdentityTokens
from sefi.learn.loop import LearningRun, learned
from sefi.learn.tokens import TokenLesson
from sefi.methods.base import class_row


def lesson(backbone, views, config, seed):
    tokens = IdentityTokens(class_row(backbone, config), config.learn, seed)
    return TokenLesson(backbone, views, config, seed, tokens)


def learning_run(backbone, views, config, seed):
    return LearningRun(lesson(backbone, views, config, seed), config)


def learn_tokens(backbone, views, config, seed, progress, checkpoint=None, probe=None):
    kept, numbers = learned(lesson(backbone, views, config, seed), config, progress, checkpoint, probe)
    return kept["tokens"], numbers
