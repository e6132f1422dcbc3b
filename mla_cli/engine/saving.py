"""When a run saves: after every epoch, inside one as `train.checkpoint_every` says, and when a signal ends it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from mla_cli.engine.run import Run
from mla_cli.engine.session import Session
from mla_cli.signals import HeldBack


class Saver:
    """The checkpoint `last` of a run. What is saved when changes no number of the results."""

    def __init__(self, session: Session, run: Run):
        self.session, self.run = session, run
        every = session.recipe.train.checkpoint_every
        self.rounds = every if isinstance(every, int) else None
        self.seconds = session.recipe.train.checkpoint_seconds
        self.saved = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint; a loss or weight that is not finite is an error before it is."""
        if self.session.progress.round:  # else the epoch's end has looked
            self.session.check_losses()
            self.session.check_weights()
        if self.session.ranks.is_first:  # the others ignore signals, and end when it has left
            self.run.save_checkpoint("last", *self.session.state())
        self.saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether a checkpoint inside an epoch is; one at its end comes with validation."""
        if self.session.progress.round == self.session.rounds:
            return False
        if self.seconds is not None:
            return time.monotonic() - self.saved >= self.seconds
        return self.rounds is not None and self.session.progress.round % self.rounds == 0

    def train_rounds(self) -> dict[str, float]:
        """`Session.train_rounds` with its checkpoints. Ctrl-C or SIGTERM wait for the end of the round, then save."""
        with HeldBack(self.save) as stop:

            def after_round() -> None:
                if stop.asked is not None:
                    stop.answer()
                elif self.is_due():
                    self.save()

            return self.session.train_rounds(after_round)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """A block that changes nothing of the session's state, such as scoring: it can be left at any point."""
        try:
            yield
        except KeyboardInterrupt:
            self.save()
            raise
