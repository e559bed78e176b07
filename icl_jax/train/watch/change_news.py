"""The phase change of a run while it trains: what the detector of changes says to the live ICL score so far."""

from typing import Any, NamedTuple

import numpy as np

from icl_jax.maths.head_scores import InductionHead

ALERT_P = 0.0006
"""The run is looked at some fifty times, and yet at most three smooth scores in a hundred may have an alert."""
_LOOK_AGAIN = 1.04
"""The next look comes when there are so many times more probes: not a thousand looks at a thousand probes."""

MAX_POINTS = 2**16
"""Steps whose learning rate is kept, spread over the run: it may have a hundred million."""


def spread_out(values: np.ndarray) -> tuple[float, ...]:
    """All values, or about `MAX_POINTS` of more, evenly."""
    return tuple(values[:: -(-len(values) // MAX_POINTS) or 1].tolist())


class Seen(NamedTuple):
    """What the record of a resumed run holds already: nobody is told of it twice."""

    head: InductionHead | None = None
    tokens: tuple[float, ...] = ()
    """At the steps, or at some of very many..."""
    lr: tuple[float, ...] = ()
    """... their learning rate."""
    probe_tokens: tuple[float, ...] = ()
    probe_icl: tuple[float, ...] = ()
    """The windowed ICL score at each probe, nats."""


NOTHING_SEEN = Seen()


class ChangeNews:
    """The phase change in the run's summary, as far as it is known, and one alert when it is first found."""

    WORDS, START, END, SIZE = "phase_change", "phase_change_start", "phase_change_end", "phase_change_nats"

    def __init__(self, run: Any, seen: Seen) -> None:
        self._run = run
        self._tokens, self._lr = list(seen.tokens), list(seen.lr)
        self._probe_tokens, self._probe_icl = list(seen.probe_tokens), list(seen.probe_icl)
        self._gap = 0.0
        """Tokens from one step that is kept to the next; 0: every step is."""
        self._n_looked = 0
        self._sem = float("nan")
        """Of the last score."""
        # A run that a crash took back behind its change has it in the summary online.
        self._is_told = run.summary.get(self.START) is not None
        if self._probe_icl:
            self._look(is_news=False)

    def add_step(self, tokens: float, lr: float) -> None:
        """The learning rate of a step: a warm-up bends the curve."""
        if self._tokens and tokens <= self._tokens[-1] + self._gap:
            return
        self._tokens.append(tokens)
        self._lr.append(lr)
        if len(self._tokens) > 2 * MAX_POINTS:
            del self._tokens[1::2], self._lr[1::2]
            self._gap = 0.99 * (self._tokens[-1] - self._tokens[-2])

    def add_probe(self, tokens: float, icl: float, sem: float = float("nan")) -> None:
        """The windowed score and its standard error."""
        if self._probe_tokens and tokens <= self._probe_tokens[-1]:
            return
        self._probe_tokens.append(tokens)
        self._probe_icl.append(icl)
        self._sem = sem
        if len(self._probe_icl) >= self._n_looked * _LOOK_AGAIN:
            self._look(is_news=True)

    def finish(self) -> None:
        """Say what there is at the end."""
        if self._n_looked < len(self._probe_icl):
            self._look(is_news=True)

    def _look(self, *, is_news: bool) -> None:
        from icl_jax.maths.finding import find_changes  # with SciPy, which training does without

        self._n_looked = len(self._probe_icl)
        schedule = (np.array(self._tokens), np.array(self._lr)) if len(self._tokens) > 1 else None
        tokens, icl = np.array(self._probe_tokens), np.array(self._probe_icl)
        found = find_changes(tokens, icl, schedule=schedule, direction=-1)
        self._run.summary[self.WORDS] = found.words()
        if (change := found.largest) is None:
            return
        self._run.summary[self.START], self._run.summary[self.END] = change.start, change.end
        self._run.summary[self.SIZE] = change.size
        if found.p_value <= ALERT_P and not self._is_told:
            self._is_told = True
            if is_news:
                now = f"{icl[-1]:.2f}" if np.isnan(self._sem) else f"{icl[-1]:.2f} ± {self._sem:.2f}"
                text = f"So far: {found.words()}. The score is {now} nats now."
                self._run.alert("The in-context learning score changes abruptly", text)
