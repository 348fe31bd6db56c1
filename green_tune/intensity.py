"""Carbon intensity: how many grams of CO2e a kilowatt-hour cost where the power was made.

Yearly averages of CodeCarbon's bundled table (Our World in Data and Ember, life cycle). The
table is read as a file: nothing is looked up over the network, and CodeCarbon's own fallbacks
(Québec when it is offline, 475 g when a code is misspelt) can never be met.
"""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pycountry

from green_tune.errors import ConfigError

# IEA, Global Energy & CO2 Status Report 2019: the world's average; also CodeCarbon's fallback.
WORLD_G_PER_KWH = 475.0
HIGHEST_G_PER_KWH = 2000.0  # above every grid and every diesel generator: a typing error
ALPHA_2, ALPHA_3 = 2, 3
COMMON = {"UK": ["GBR"], "EL": ["GRC"]}  # in common use, but not ISO 3166


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Grams of CO2e per kWh, and how we know."""

    g_per_kwh: float
    zone: str
    source: str
    year: str  # empty where it is not known
    assumed: bool

    @property
    def note(self) -> str:
        """In a few words, for every place that shows a kilogram."""
        label = "assumed: " if self.assumed else ""
        return f"{label}{self.zone} at {self.g_per_kwh:g} g/kWh"

    def to_tags(self) -> dict[str, str]:
        """The figure and how we know it, as MLflow tags."""
        return {
            "intensity_g_per_kwh": repr(self.g_per_kwh),
            "intensity_zone": self.zone,
            "intensity_source": self.source,
            "intensity_year": self.year or "not stated",
            "intensity_assumed": str(self.assumed).lower(),
        }


def resolve(country: str) -> Intensity:
    """The intensity of an ISO 3166 code (FRA or FR), of a number of g/kWh, or of the world.

    Raises:
        ConfigError: the code is unknown, the number is out of range, or the table has no entry.
    """
    if country.lower() == "world":
        return Intensity(
            g_per_kwh=WORLD_G_PER_KWH,
            zone="world average",
            source="IEA 2019",
            year="2018",
            assumed=True,
        )
    try:
        return _given(float(country))
    except ValueError:
        return _of_country(country.upper())


def _given(g_per_kwh: float) -> Intensity:
    if not 0 < g_per_kwh <= HIGHEST_G_PER_KWH:
        raise ConfigError(
            f"country={g_per_kwh:g} is no intensity in g CO2e per kWh; "
            f"above 0, at most {HIGHEST_G_PER_KWH:g}"
        )
    return Intensity(
        g_per_kwh=g_per_kwh, zone="given", source="given by user", year="", assumed=False
    )


def _of_country(code: str) -> Intensity:
    code = _alpha_3(code)
    table = _table()
    row = table.get(code)
    if row is None or not row["carbon_intensity"] > 0:  # a gap of the source: no grid emits nothing
        raise ConfigError(f"country={code} has no figure in CodeCarbon's table; give g/kWh instead")
    return Intensity(
        g_per_kwh=float(row["carbon_intensity"]),
        zone=str(row["country_name"]),
        source=f"CodeCarbon's table, {row['year']}",
        year=str(row["year"]),
        assumed=False,
    )


def _alpha_3(code: str) -> str:
    known = {c.alpha_3: c for c in pycountry.countries}
    if len(code) == ALPHA_2 and (country := pycountry.countries.get(alpha_2=code)):
        return str(country.alpha_3)
    if code in known:
        return code
    names = {c.name.upper(): c.alpha_3 for c in pycountry.countries}
    near = [names[n] for n in get_close_matches(code, names, n=1)]
    near += COMMON.get(code) or get_close_matches(code, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    raise ConfigError(
        f"country={code} is neither an ISO code (FRA, FR), nor a number of g/kWh, nor world{hint}"
    )


def _table() -> dict[str, dict[str, Any]]:
    """CodeCarbon's yearly averages by alpha-3 code, without importing CodeCarbon."""
    spec = find_spec("codecarbon")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "private_infra" / "global_energy_mix.json"
    return json.loads(path.read_text())  # type: ignore[no-any-return]
