import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune import trace
from green_tune.errors import ConfigError
from green_tune.trace import HOUR_S, Trace

# As the data portal wrote it in 2025.
HEADER = (
    "Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),"
    "Carbon intensity gCO₂eq/kWh (Life cycle),Carbon-free energy percentage (CFE%),"
    "Renewable energy percentage (RE%),Data source,Data estimated,Data estimation method"
)
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def line(time: str, life_cycle: object = 30, *, zone: str = "FR", direct: object = 20) -> str:
    return f"{time},France,France,{zone},{direct},{life_cycle},95.1,25.3,ENTSOE,false,"


def written(*lines: str, header: str = HEADER, name: str = "fr.csv") -> Path:
    path = Path(name)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def hours(*figures: float | None, step_s: float = HOUR_S) -> Trace:
    rows = [(START + i * step_s, g) for i, g in enumerate(figures) if g is not None]
    return Trace(zone="FR", kind="direct", source="fr.csv", rows=rows, step_s=step_s)


def test_a_file_of_the_data_portal_is_read_with_where_it_is_from() -> None:
    read = trace.read(written(line("2026-01-01 01:00:00", 40.5), line("2026-01-01 00:00:00")))
    assert read == Trace(
        zone="FR",
        kind="life cycle",
        source="fr.csv (life cycle, 2026-01-01..2026-01-01)",
        rows=((START, 30.0), (START + 3600, 40.5)),
        step_s=3600.0,
    )


@pytest.mark.parametrize(
    ("columns", "kind", "figure"),
    [
        ("Carbon Intensity gCO₂eq/kWh (direct),Carbon Intensity gCO₂eq/kWh (LCA)", "life cycle", 2),
        ("Carbon intensity gCO2eq/kWh (Life cycle),x", "life cycle", 1),
        ("x, CARBON  Intensity gCO2eq/kWh (life  cycle assessment) ", "life cycle", 2),
        ("Carbon Intensity gCO₂eq/kWh (direct),x", "direct", 1),
        ("carbon_intensity_gCO2eq_per_kWh_direct,Carbon intensity lbs/MWh (Life cycle)",
         "direct", 1),
        ("carbon intensity kgCO2eq/kWh (LCA),carbon intensity gCO2eq/kWh (direct)", "direct", 2),
    ],
)  # fmt: skip
def test_every_years_spelling_is_understood_and_life_cycle_is_preferred(
    columns: str, kind: str, figure: float
) -> None:
    path = written("2026-01-01 00:00:00,FR,1,2", header=f"\ufeffDATETIME (utc),Zone Id,{columns}")
    read = trace.read(path)
    assert (read.kind, read.rows[0][1]) == (kind, figure)
    assert kind in read.source


@pytest.mark.parametrize(
    ("header", "zone"),
    [
        ("Country,Zone name,Zone id", "C"),
        ("Zone Id,Zone Name,Country", "A"),
        ("Country,Zone Name,x", "B"),
        ("Country,x,y", "A"),
        ("x,y,z", trace.UNNAMED),
    ],
)
def test_the_zones_id_comes_first_then_its_name(header: str, zone: str) -> None:
    header = f"Datetime (UTC),{header},Carbon intensity gCO₂eq/kWh (direct)"
    assert trace.read(written("2026-01-01 00:00:00,A,B,C,5", header=header)).zone == zone


@pytest.mark.parametrize(
    "time",
    ["2026-01-01 00:00:00", "2026-01-01T00:00:00Z", "2026-01-01T02:00:00+02:00",
     "2025-12-31 18:30:00-05:30", "2026-01-01"],
)  # fmt: skip
def test_a_time_with_an_offset_is_converted_and_one_without_is_utc(time: str) -> None:
    assert trace.read(written(line(time))).rows[0][0] == START


def test_empty_cells_and_empty_lines_are_gaps_and_zero_is_a_figure() -> None:
    times = [f"2026-01-01 {hour:02}:00:00" for hour in range(4)]
    read = trace.read(written(line(times[0], 0), "", line(times[1], ""), line(times[3], 2000), ","))
    assert read.rows == ((START, 0.0), (START + 3 * HOUR_S, 2000.0))
    assert read.step_s == HOUR_S


def test_a_trace_says_of_which_years_it_is() -> None:
    assert hours(1, 2).years == "2026"
    assert Trace(zone="", kind="", source="", rows=[(START - 1, 1.0), (START, 1.0)]).years == (
        "2025..2026"
    )


def test_the_same_row_twice_counts_once() -> None:
    again = [line("2026-01-01 00:00:00"), line("2026-01-01T01:00:00+01:00", "30.0")]
    assert trace.read(written(*again)).rows == ((START, 30.0),)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "header, but no rows"),
        (["", ","], "header, but no rows"),
        ([line("01/13/2026 10:00")], "line 2: '01/13/2026 10:00' is no time"),
        (["", line("")], "line 3: '' is no time"),
        ([line("2026-01-01", "n/a")], "line 2: 'n/a' is no intensity"),
        ([line("2026-01-01", "nan")], "line 2: 'nan' is no intensity"),
        ([line("2026-01-01", "inf")], "line 2: 'inf' is no intensity"),
        ([line("2026-01-01"), line("2026-01-02", -3)], "line 3: '-3' is no intensity"),
        ([line("2026-01-01", 2000.1)], "0 to 2000"),
        ([line("2026-01-01", "")], "no intensity in any of its 1 rows"),
        ([line("2026-01-01", 1), line("2026-01-01", 2)],
         "line 3: 2026-01-01 00:00 UTC has 1 and 2 g/kWh"),
        ([line("2026-01-01"), line("2026-01-01", zone="DE")], "2 zones (FR, DE); keep one"),
        ([line("2026-01-01"), line("2026-01-01", zone="")], "2 zones (FR, (empty)); keep one"),
        ([line("2026-01-01", zone=f"DK-{i}") for i in range(9)], "9 zones (DK-0, DK-1, DK-2, DK-3"),
        ([line("2026-01-01"), line("2026-01-02")], "one row in 24 h"),
        (["2026-01-01 00:00:00,France,France,FR,20,3"], "line 2: 6 cells under 11 columns"),
        ([line("2026-01-01", "1,5")], "line 2: 12 cells under 11 columns"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_one_line_that_names_it(lines: Sequence[str], said: str) -> None:
    assert said in refused(written(*lines))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (HEADER.replace("Datetime (UTC)", "Datetime (local)"), "no column of times in UTC"),
        (HEADER.replace("Datetime (UTC)", "Datetime"), "its columns: Datetime, Country"),
        (HEADER.replace("kWh", "MWh"), "no column such as Carbon intensity gCO₂eq/kWh"),
        (HEADER.replace("(direct)", "").replace("(Life cycle)", ""), "no column such as"),
        (HEADER.replace(",", ";"), "commas"),
    ],
)
def test_a_header_without_what_is_needed_is_one_line(header: str, said: str) -> None:
    assert said in refused(written(line("2026-01-01"), header=header))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"\n\n", "is empty"), (b"\xff\xfe\x00D", "not text in UTF-8"),
     (b'a,b\n"' + b"x" * 200_000, "line 2 is not CSV")],
)  # fmt: skip
def test_what_is_no_csv_is_one_line(content: bytes, said: str) -> None:
    Path("fr.csv").write_bytes(content)
    assert said in refused(Path("fr.csv"))


@pytest.mark.parametrize(
    ("path", "said"),
    [("no.csv", "does not exist"), (".", "is a folder"), ("~nobody-here/fr.csv", "does not exist"),
     ("x" * 300 + ".csv", "cannot be read: File name too long")],
)  # fmt: skip
def test_a_file_that_cannot_be_had_is_one_line(path: str, said: str) -> None:
    assert said in refused(Path(path))


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        trace.read(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("start_h", "length_h", "mean"),
    [
        (0, 1, 100),
        (0, 2, 150),
        (0.5, 1, 150),
        (0.75, 0.5, 150),
        (0.25, 0.5, 100),
        (1, 0, 200),
        (0.999, 0, 100),
        (0, 4, (100 + 3 * 200) / 4 + 25),
        (2, 1, 200),
        (4, 1, 300),  # carried forward behind the last row
        (0, 5, (100 + 200 + 200 + 300 + 300) / 5),
        (-0.001, 0.5, None),
        (4, 1.001, None),
        (5.5, 0, None),
        (-2, 9, None),
    ],
)
def test_the_mean_is_weighted_by_time_and_a_row_is_carried_forward_one_hour_at_most(
    start_h: float, length_h: float, mean: float | None
) -> None:
    given = hours(100, 200, None, 300)
    got = given.mean_g_per_kwh(START + start_h * HOUR_S, length_h * HOUR_S)
    assert got == (None if mean is None else pytest.approx(mean, rel=1e-9))


def test_a_gap_of_two_hours_has_no_figure_after_its_first_hour() -> None:
    given = hours(100, None, None, 300)
    assert given.mean_g_per_kwh(START, 2 * HOUR_S) == 100
    assert given.mean_g_per_kwh(START, 2 * HOUR_S + 1) is None
    assert given.mean_g_per_kwh(START + 2.5 * HOUR_S, 60) is None
    assert given.mean_g_per_kwh(START, 4 * HOUR_S) is None
    assert given.gap(START, 4 * HOUR_S) == START + 2 * HOUR_S
    assert given.gap(START + 2.5 * HOUR_S, 60) == START + 2.5 * HOUR_S
    assert given.gap(START + 3 * HOUR_S, 60) is None
    assert given.gap(START - 60, 120) == START - 60


def test_rows_of_a_quarter_hold_for_a_quarter_and_one_hour_more() -> None:
    given = hours(100, 200, step_s=900)
    assert given.mean_g_per_kwh(START, 1800) == 150
    assert given.mean_g_per_kwh(START + 900, 4500) == 200
    assert given.mean_g_per_kwh(START + 900, 4501) is None
    read = trace.read(written(line("2026-01-01 00:00:00"), line("2026-01-01 00:15:00")))
    assert read.step_s == 900


def test_a_moment_that_is_not_a_number_has_no_figure() -> None:
    assert hours(100).mean_g_per_kwh(math.nan, 1.0) is None


@settings(max_examples=60, deadline=None)
@given(
    figures=st.lists(st.none() | st.floats(0, 2000), min_size=1, max_size=8),
    step_s=st.sampled_from([900, 3600]),
    start=st.integers(-100, 9 * 3600),
    seconds=st.integers(1, 9000),
)
def test_the_mean_is_that_of_every_second(
    figures: list[float | None], step_s: int, start: int, seconds: int
) -> None:
    trace = hours(*figures, step_s=step_s)
    known: dict[int, float] = {}
    for row, figure in enumerate(figures):
        if figure is not None:  # a later row overwrites what was carried forward
            known |= dict.fromkeys(range(row * step_s, (row + 1) * step_s + 3600), figure)
    every = [known.get(second) for second in range(start, start + seconds)]
    mean = trace.mean_g_per_kwh(START + start, seconds)
    if None in every:
        assert mean is None
        assert trace.gap(START + start, seconds) == START + start + every.index(None)
    else:
        assert mean == pytest.approx(math.fsum(g or 0 for g in every) / seconds, rel=1e-12)
