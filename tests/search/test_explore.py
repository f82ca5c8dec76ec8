"""An explorer keeps the limits of trials, sets and time, resumes from a log, and survives a failure of Ax."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Final

import pytest

from sstool.search.clock import Clock
from sstool.search.drafts.space import Bits, Candidate, DraftSpace, sharing, skip_of, skips_some
from sstool.search.explore import _MOST_IDLE, Explorer, Limits
from sstool.search.log.records import AX, COMPLETED, FAILED, Trial
from sstool.search.settings import SearchSettings
from sstool.search.sources.ax import AxFailedError
from tests.search.fake_time import FakeTime

LAYERS: Final = 2
DRAFTS: Final = [bits for bits in itertools.product((0, 1), repeat=2 * LAYERS) if skips_some(bits)]
SETTINGS: Final = SearchSettings(batch=3, seed=7)


def trial(index: int, source: str, bits: Bits, *, status: str = COMPLETED, seconds: float = 0.0, suggest_seconds: float = 0.0) -> Trial:
    """Returns a trial whose speed depends on its skip set alone."""
    speed = None if status == FAILED else 1 + sum(n * bit for n, bit in enumerate(bits)) / 10
    return Trial(
        index=index,
        source=source,
        status=status,
        skip=skip_of(bits),
        tokens_per_second=None if speed is None else 100 * speed,
        speedup=speed,
        seconds=seconds,
        suggest_seconds=suggest_seconds,
    )


def drafts(sets: Sequence[Bits]) -> list[Candidate]:
    """Returns the candidates without own weights that skip these sets."""
    return [sharing(bits) for bits in sets]


class FakeEvaluator:
    """An evaluator that returns made-up trials.

    Its runs take the given seconds in order; the last value repeats.
    """

    def __init__(self, time: FakeTime, seconds: Sequence[float] = (0.0,), failing: Sequence[Bits] = ()) -> None:
        self.ran: list[tuple[int, str, Bits, bool]] = []
        self._time, self._seconds, self._failing = time, list(seconds), failing

    def run(self, index: int, source: str, candidate: Candidate, *, suggest_seconds: float = 0.0, whole: bool = False) -> Trial:
        """Returns a trial."""
        bits = candidate.skipped
        self.ran.append((index, source, bits, whole))
        seconds = self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0]
        self._time.passes(seconds)
        status = FAILED if bits in self._failing else COMPLETED
        return trial(index, source, bits, status=status, seconds=seconds, suggest_seconds=suggest_seconds)


class FakeAx:
    """An Ax driver that suggests what a function returns, and records the results it is given."""

    def __init__(self, suggest: Callable[[int], list[Bits]]) -> None:
        self.attached: list[tuple[Bits, float | None]] = []
        self.asked: list[int] = []
        self.made_with: tuple[int, int] | None = None
        self._suggest = suggest

    def made(self, num_sublayers: int, *, has_own_weights: bool, seed: int) -> FakeAx:
        """Takes the place of the class `AxDriver`."""
        assert not has_own_weights
        self.made_with = (num_sublayers, seed)
        return self

    def attach(self, bits: Bits, speedup: float | None, error: float = 0.0) -> None:
        """Records a result."""
        assert error == 0.0
        self.attached.append((bits, speedup))

    def suggest(self, count: int) -> list[Bits]:
        """Returns the next batch."""
        self.asked.append(count)
        return self._suggest(count)


class Search:
    """An explorer with fake dependencies, which record what it does."""

    def __init__(self, time: FakeTime, evaluator: FakeEvaluator | None = None, **options: Any) -> None:
        self.evaluator = FakeEvaluator(time) if evaluator is None else evaluator
        self.written: list[Trial] = []
        self.progress: list[tuple[int, int, float | None]] = []
        self.clock = Clock(options.get("budget", math.inf))
        earlier = options.get("earlier")
        writer = SimpleNamespace(write=self.written.append, earlier=None if earlier is None else SimpleNamespace(trials=tuple(earlier)))
        limits = Limits(trials=options.get("trials", 100), reserve=options.get("reserve", 0.0))
        self.explorer = Explorer(
            self.evaluator,  # type: ignore[arg-type] # a fake
            writer,  # type: ignore[arg-type] # likewise
            self.clock,
            limits,
            DraftSpace(num_layers=options.get("num_layers", LAYERS)),
            lambda *progress: self.progress.append(progress),
        )

    @property
    def tried(self) -> list[Bits]:
        """The skip sets that were run as trials, in order."""
        return [bits for _, _, bits, whole in self.evaluator.ran if not whole]


@pytest.fixture
def follow_ax(monkeypatch: pytest.MonkeyPatch) -> Callable[[Search, Callable[[int], list[Bits]]], FakeAx]:
    """Returns a function that runs `follow_ax` with a fake Ax and returns the fake.

    Its arguments are the search, and the function that suggests skip sets.
    """

    def follow(search: Search, suggest: Callable[[int], list[Bits]]) -> FakeAx:
        ax = FakeAx(suggest)
        monkeypatch.setattr("sstool.search.explore.AxDriver", ax.made)
        search.explorer.follow_ax(SETTINGS)
        return ax

    return follow


FollowAx = Callable[[Search, Callable[[int], list[Bits]]], FakeAx]


def in_batches(sets: Sequence[Bits]) -> Callable[[int], list[Bits]]:
    """Returns a function that suggests the skip sets in their order, and then nothing."""
    rest = iter(sets)
    return lambda count: list(itertools.islice(rest, count))


# Warm starts


def test_each_trial_is_written_and_reported_when_it_ends(time: FakeTime) -> None:
    search = Search(time, trials=8)
    found = search.explorer.consider("block", drafts([DRAFTS[0], DRAFTS[3]]))
    assert found == search.written == search.explorer.trials
    assert [(t.index, t.source, t.skip) for t in found] == [(0, "block", skip_of(DRAFTS[0])), (1, "block", skip_of(DRAFTS[3]))]
    best = [trial(0, "", DRAFTS[0]).speedup, max(trial(0, "", bits).speedup or 0 for bits in (DRAFTS[0], DRAFTS[3]))]
    assert search.progress == [(1, 8, best[0]), (2, 8, best[1])]


def test_a_skip_set_is_tried_once(time: FakeTime) -> None:
    search = Search(time)
    first = search.explorer.consider("recipe", drafts(DRAFTS[:2]))
    again = search.explorer.consider("block", drafts([DRAFTS[1], DRAFTS[2], DRAFTS[1]]))
    assert again == [first[1], search.explorer.trials[2], first[1]]
    assert search.tried == DRAFTS[:3]


def test_sets_that_skip_nothing_or_everything_are_not_tried(time: FakeTime) -> None:
    search = Search(time)
    assert search.explorer.consider("block", drafts([(0,) * 4, (1,) * 4])) == []
    assert search.tried == []


def test_the_limit_of_trials_ends_the_search(time: FakeTime) -> None:
    search = Search(time, trials=3)
    assert len(search.explorer.consider("block", drafts(DRAFTS))) == 3
    assert search.tried == DRAFTS[:3]
    assert search.explorer.is_over()


# Time


def test_the_reserve_is_not_used_for_trials(time: FakeTime) -> None:
    search = Search(time, FakeEvaluator(time, [20]), budget=100, reserve=30)
    search.explorer.consider("block", drafts(DRAFTS))
    # After the third trial 10 s are left before the reserve, and a trial takes 20.
    assert len(search.tried) == 3
    assert search.clock.left() == 40


def test_the_next_trial_is_expected_to_take_the_longest_of_the_last_three(time: FakeTime) -> None:
    search = Search(time, FakeEvaluator(time, [50, 1, 1, 1]), budget=101.5)
    search.explorer.consider("block", drafts(DRAFTS[:3]))
    # 49.5 s are left, and one of the last three trials took 50.
    assert len(search.tried) == 3
    assert search.explorer.is_over()
    search = Search(time, FakeEvaluator(time, [50, 1, 1, 1]), budget=103)
    search.explorer.consider("block", drafts(DRAFTS[:4]))
    assert len(search.tried) == 4
    assert not search.explorer.is_over()  # the long trial is no longer among the last three


def test_nothing_is_tried_if_only_the_reserve_is_left(time: FakeTime) -> None:
    search = Search(time, budget=30, reserve=30)
    time.passes(0.001)
    assert search.explorer.consider("block", drafts(DRAFTS)) == []


def test_the_reserve_is_not_used_inside_a_batch_either(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time, FakeEvaluator(time, [10]), budget=100, reserve=60)
    search.explorer.consider("block", drafts(DRAFTS[:1]))
    follow_ax(search, lambda _: DRAFTS[1:11])
    assert search.clock.left() == 60


def test_ax_is_asked_for_no_more_sets_than_are_untried(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time)
    search.explorer.consider("block", drafts(DRAFTS[:-1]))
    ax = follow_ax(search, in_batches(DRAFTS[-1:]))
    assert ax.asked == [1]
    assert set(search.tried) == set(DRAFTS)


# The space


def test_the_search_ends_when_every_skip_set_was_tried(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time)
    search.explorer.consider("block", drafts(DRAFTS[:-1]))
    assert not search.explorer.is_over()
    search.explorer.consider("block", drafts(DRAFTS))
    assert search.explorer.is_over()
    assert follow_ax(search, in_batches(DRAFTS)).made_with is None


def test_ax_is_asked_until_every_skip_set_was_tried(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time)
    search.explorer.consider("block", drafts(DRAFTS[:1]))
    suggestions = itertools.cycle(DRAFTS)
    ax = follow_ax(search, lambda count: list(itertools.islice(suggestions, count)))
    assert sorted(search.tried) == sorted(DRAFTS)
    assert len(ax.asked) == math.ceil(len(DRAFTS) / 3)


# Ax


def test_ax_gets_the_result_of_every_trial(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time, FakeEvaluator(time, failing=[DRAFTS[1], DRAFTS[3]]))
    search.explorer.consider("block", drafts(DRAFTS[:2]))
    ax = follow_ax(search, in_batches(DRAFTS[2:5]))
    assert ax.made_with == (2 * LAYERS, 7)
    speeds = [None if n in (1, 3) else trial(0, "", bits).speedup for n, bits in enumerate(DRAFTS[:5])]
    assert ax.attached == list(zip(DRAFTS[:5], speeds, strict=True))
    assert [t.source for t in search.explorer.trials] == ["block", "block", AX, AX, AX]


def test_ax_is_asked_for_no_more_sets_than_trials_are_left(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time, trials=6)
    search.explorer.consider("block", drafts(DRAFTS[:1]))
    ax = follow_ax(search, in_batches(DRAFTS[1:]))
    assert ax.asked == [3, 2]
    assert len(search.explorer.trials) == 6


def test_the_time_to_suggest_a_batch_is_divided_among_its_trials(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time)
    search.explorer.consider("block", drafts(DRAFTS[:1]))
    batches = in_batches(DRAFTS[1:4])

    def slow(count: int) -> list[Bits]:
        time.passes(6)
        return batches(count)

    follow_ax(search, slow)
    assert [t.suggest_seconds for t in search.explorer.trials] == [0, 2, 2, 2]
    assert search.clock.parts()["ax"] == 12  # the last answer was empty


def test_batches_without_a_new_set_end_the_search(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time)
    search.explorer.consider("block", drafts(DRAFTS[:2]))
    answers = iter([*[DRAFTS[:2]] * (_MOST_IDLE - 1), [DRAFTS[0], DRAFTS[2]], *[DRAFTS[:3]] * (2 * _MOST_IDLE)])
    ax = follow_ax(search, lambda _: list(next(answers)))
    # A batch with a new set starts the count again.
    assert len(ax.asked) == 2 * _MOST_IDLE
    assert search.tried == DRAFTS[:3]


def test_a_set_suggested_twice_in_a_batch_is_tried_once(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time)
    search.explorer.consider("block", drafts(DRAFTS[:1]))
    follow_ax(search, in_batches([DRAFTS[5], DRAFTS[5], DRAFTS[6]]))
    assert search.tried == [DRAFTS[0], DRAFTS[5], DRAFTS[6]]


@pytest.mark.parametrize("completed", [0, 1])
def test_ax_is_not_asked_if_no_trial_completed(completed: int, time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time, FakeEvaluator(time, failing=DRAFTS[completed:]))
    search.explorer.consider("block", drafts(DRAFTS[:3]))
    ax = follow_ax(search, in_batches(DRAFTS[3:4]))
    assert bool(ax.asked) == bool(completed)


def test_a_failure_of_ax_ends_only_ax(time: FakeTime, follow_ax: FollowAx, caplog: pytest.LogCaptureFixture) -> None:
    search = Search(time)
    search.explorer.consider("block", drafts(DRAFTS[:1]))
    batches = in_batches(DRAFTS[1:4])

    def breaks(count: int) -> list[Bits]:
        found = batches(count)
        if not found:
            raise AxFailedError("LinAlgError: " + "singular " * 100)
        return found

    follow_ax(search, breaks)
    assert search.tried == DRAFTS[:4]
    assert search.explorer.ax_error == ("LinAlgError: " + "singular " * 100)[:200]
    assert [m for m in caplog.messages if "after trial 3" in m and "LinAlgError" in m]
    assert search.explorer.consider("block", drafts(DRAFTS[4:5]))


def test_a_failure_outside_ax_is_not_hidden(time: FakeTime, follow_ax: FollowAx) -> None:
    search = Search(time)
    search.explorer.consider("block", drafts(DRAFTS[:1]))

    def full(_: int) -> list[Bits]:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        follow_ax(search, full)
    assert search.explorer.ax_error is None


# A resumed search


def test_a_resumed_search_counts_its_earlier_trials(time: FakeTime, follow_ax: FollowAx) -> None:
    earlier = [trial(n, "block", bits, status=FAILED if n == 0 else COMPLETED) for n, bits in enumerate(DRAFTS[:4])]
    search = Search(time, trials=6, earlier=earlier)
    best = max(range(1, 4), key=lambda n: earlier[n].speedup or 0)
    # The best one is run again, so that the evaluator can compare with it. That run is not a new trial.
    assert search.evaluator.ran == [(best, "block", DRAFTS[best], True)]
    assert search.written == []
    assert search.explorer.consider("recipe", drafts(DRAFTS[:5])) == [*earlier, trial(4, "recipe", DRAFTS[4])]
    assert [t.index for t in search.written] == [4]
    ax = follow_ax(search, in_batches(DRAFTS[5:]))
    assert [bits for bits, _ in ax.attached] == DRAFTS[:6]
    assert search.progress[-1][:2] == (6, 6)


def test_an_earlier_failure_is_not_run_again(time: FakeTime) -> None:
    search = Search(time, earlier=[trial(0, "block", DRAFTS[0], status=FAILED)])
    assert search.evaluator.ran == []
    assert search.explorer.best() is None


def test_the_best_warm_start_is_not_a_suggested_trial(time: FakeTime) -> None:
    slow, faster, fastest = (1, 0, 0, 0), (0, 1, 1, 0), (0, 1, 1, 1)
    search = Search(time, earlier=[trial(0, "block", slow), trial(1, AX, fastest), trial(2, "random", faster)])
    best, warm = search.explorer.best(), search.explorer.best(warm=True)
    assert best is not None
    assert warm is not None
    assert (best.index, warm.index) == (1, 0)


def test_a_generator_of_sets_is_accepted(time: FakeTime) -> None:
    search = Search(time)
    assert search.explorer.consider("block", drafts(iter(DRAFTS[:3]))) == search.written != []
