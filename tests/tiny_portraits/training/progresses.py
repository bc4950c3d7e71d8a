"""A progress that keeps the losses of a training and may end it at a step, as a kill would."""


class Killed(Exception):
    """What a progress raises that does not live to see the end."""


class Losses:
    """Keep the losses, None of a step without one; die at the step `last`, whose weights are not saved."""

    def __init__(self, last=None):
        self.seen, self.last, self.total = [], last, None

    def start(self, total, label):
        self.total = total

    def advance(self, **numbers):
        if len(self.seen) == self.last:
            raise Killed
        self.seen.append(numbers.get("loss"))

    def finish(self):
        pass
