"""Progress of a run's stages: bars on a terminal, plain lines elsewhere."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from training.commands import stages as module
from training.commands.stages import Stages, prepare_progress
from training.runtime.progress import Forecast


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=[False, True], ids=["piped", "terminal"])
def written(request, monkeypatch) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(module, "ERR", Console(file=out, force_terminal=request.param, width=200))
    return out


def lines(captured: pytest.CaptureFixture[str]) -> list[str]:
    return captured.readouterr().err.splitlines()


def test_without_a_terminal_lines_say_what_runs_how_far_and_how_long(capsys, clock) -> None:
    with Stages({"fit": 30.0, "report": 10.0}, clock_s=clock) as stages:
        with stages("fit", 100) as show:
            clock.now_s += 9
            show(10, "epoch 1")
            clock.now_s += 2
            show(50, "epoch 5")
            clock.now_s += 89
        with stages("report", 1) as show:
            clock.now_s += 15
            show(0)

    assert lines(capsys) == [
        "1 of 2 fit: begins",
        # 11 seconds for half of 30 expected: 11 for the other half, and a third of 22 for the report.
        "1 of 2 fit: 50% after 11 s; all 38%, about 18 s left; epoch 5",
        "1 of 2 fit: done in 1 min 40 s; epoch 5",
        "2 of 2 report: begins",
        "2 of 2 report: running for 15 s; all 86%, about 18 s left",
        "2 of 2 report: done in 15 s",
    ]


def test_a_stage_alone_has_its_own_time_left(capsys, clock) -> None:
    with Stages(clock_s=clock) as stages, stages("replaying", 40) as show:
        clock.now_s += 3700
        show(10)

    assert lines(capsys) == [
        "replaying: begins",
        "replaying: 25% after 1 h 1 min; about 3 h 5 min left",
        "replaying: done in 1 h 1 min",
    ]


def test_an_error_ends_a_stage_that_is_not_called_done(capsys, clock) -> None:
    with pytest.raises(ValueError, match="no"), Stages(clock_s=clock) as stages, stages("fit", 3):
        raise ValueError("no")

    assert lines(capsys) == ["fit: begins"]


def test_both_forms_show_every_stage_of_a_run(written) -> None:
    with Stages({"fit": 30.0, "report": 10.0}) as stages:
        with stages("fit", 100) as show:
            show(50, "epoch [5]")
        with stages("report", 1):
            pass

    text = written.getvalue()
    assert [name in text for name in ("fit", "report", "epoch [5]")] == [True] * 3


def test_a_terminal_has_one_bar_for_the_whole_run(monkeypatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(module, "ERR", Console(file=out, force_terminal=True, width=120))
    with Stages({"fit": 30.0, "report": 10.0}) as stages, stages("fit", 100) as show:
        show(50)

    last = [line for line in out.getvalue().splitlines() if "all" in line][-1]
    assert "100%" in last


def test_a_narrow_terminal_shows_every_figure_whole(monkeypatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(module, "ERR", Console(file=out, force_terminal=True, width=80))
    with Stages({"fit": 30.0, "resampling test sessions": 10.0}) as stages:
        with stages("fit", 100) as show:
            show(50, "epoch 6: train 0.4301, validation 0.4287 nats, a note as long as a line")
        with stages("resampling test sessions", 100) as show:
            show(50)

    screen = Text.from_ansi(out.getvalue()).plain.splitlines()
    assert max(map(len, screen)) <= 80
    for name in ("all", "fit", "resampling test sessions"):
        assert "100% 0:00:00" in [line for line in screen if line.startswith(name)][-1]


def test_preparing_a_log_has_two_stages(capsys) -> None:
    with prepare_progress() as show:
        show("reading", 10, 100)
        show("reading", 100, 100)
        show("sessions", 1, 2)

    told = lines(capsys)
    assert [line.partition(":")[0] for line in told] == ["reading the log"] * 2 + ["making sessions"] * 2


def test_time_left_follows_the_pace_of_the_machine() -> None:
    forecast = Forecast({"pre-training": 10.0, "fit": 20.0, "report": 10.0})
    assert forecast.look("pre-training", 0.0, 0.0) == (0.0, 40.0)

    # Everything takes three times as long as expected.
    share, left_s = forecast.look("pre-training", 0.5, 15.0)
    assert (share, left_s) == pytest.approx((15 / 120, 105.0))
    forecast.finish("pre-training", 30.0)
    share, left_s = forecast.look("fit", 0.25, 15.0)
    assert (share, left_s) == pytest.approx((45 / 120, 75.0))

    # It stopped early.
    forecast.finish("fit", 15.0)
    share, left_s = forecast.look("report", None, 0.0)
    assert left_s == pytest.approx(10 * 45 / 30)
    assert forecast.look("report", None, 1000.0)[1] == pytest.approx(50)


def test_a_stage_that_nobody_expected_counts_as_short() -> None:
    forecast = Forecast({"fit": 10.0})
    assert forecast.position("another") == ""
    assert forecast.look("another", 0.5, 1.0)[1] == pytest.approx(10)
    forecast.finish("another", 2.0)
    assert forecast.look("fit", 0.5, 5.0) == pytest.approx((0.5, 5.0))
