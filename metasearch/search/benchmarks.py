"""What devices have measured of networks, kept with a study, and the latency model that is fitted to it.

`metasearch bench BUNDLE... --into STUDY` brings the measurements of a device back; a search with `--latency-from STUDY`
predicts the `latency_ms` of its trials from them. A network's later measurement takes the place of its earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metasearch.errors import InputError
from metasearch.latency.measured import Measured, measured_of
from metasearch.latency.model import FEWEST, Fit, LatencyModel, fit
from metasearch.search.names import MEASURED
from metasearch.search.store import StudyDescription, load_study, study_exists

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study

PLACE = "--latency-from"


@dataclass(frozen=True)
class KnownLatency:
    """What predicts latencies: fitted to what a device measured, as a study had it when the search was made."""

    study: str
    device: str
    fit: Fit

    @property
    def model(self) -> LatencyModel:
        """The fitted model."""
        return self.fit.model

    def __str__(self) -> str:
        return f"latency_ms: predicted for {self.device}, {self.fit}"


def latency_of(description: StudyDescription) -> KnownLatency | None:
    """Return what predicts the latencies of a study's trials, None where nothing does."""
    kept = description.latency
    if kept is None:
        return None
    fitted = kept["fit"]
    return KnownLatency(kept["study"], kept["device"], Fit(**fitted | {"model": LatencyModel(**fitted["model"])}))


def bring_back(study: Study, device: str, networks: list[dict[str, Any]]) -> tuple[list[Measured], Fit | None]:
    """Keep what a device measured, as `bench` gives it; return all that the study has of the device, and its fit.

    The fit is None of fewer than FEWEST networks. Raises InputError, and keeps nothing, where there is none to be had.
    """
    # an attribute for each network: two devices, or two reports of one, may be brought back at the same time
    new = {f"{MEASURED}{network['digest']} {device}": network for network in networks}
    try:
        known = _by_device(study.user_attrs | new)[device]
        fitted = fit(known) if len(known) >= FEWEST else None
    except (RuntimeError, ValueError) as error:  # scipy's, where the least squares do not converge
        raise InputError("--into", f"no latency model can be fitted to what was measured ({error})") from error
    for name, network in new.items():
        study.set_user_attr(name, network)
    return known, fitted


def known_latency(storage: RDBStorage, text: str) -> KnownLatency:
    """Return the latency model of a STUDY or, where several devices measured its networks, a STUDY:DEVICE.

    Raises NotFoundError for a study that is not there, InputError where its measurements are not enough.
    """
    name, device = _study_and_device(storage, text)
    found = _by_device(load_study(storage, name).user_attrs)
    if not found:
        raise InputError(
            PLACE, f"no device has measured networks for it: metasearch bench BUNDLE... --into {name}", text
        )
    if device is None and len(found) > 1:
        raise InputError(PLACE, f"must name a device: {', '.join(f'{name}:{each}' for each in sorted(found))}", text)
    device = next(iter(found)) if device is None else device
    if device not in found:
        raise InputError(PLACE, f"must name a device that measured: {', '.join(sorted(found))}", device)
    networks = found[device]
    if len(networks) < FEWEST:
        rule = f"needs the measurements of {FEWEST} networks on {device}: metasearch bench BUNDLE... --into {name}"
        raise InputError(PLACE, rule, len(networks))
    return KnownLatency(name, device, fit(networks))


def _by_device(attributes: Mapping[str, Any]) -> dict[str, list[Measured]]:
    """Return what a study's attributes hold of each device's measurements."""
    found: dict[str, list[Measured]] = {}
    for name in sorted(attributes):  # a database keeps no order, and folds of a fit go by it
        if name.startswith(MEASURED):
            device = name.removeprefix(MEASURED).partition(" ")[2]
            found.setdefault(device, []).append(measured_of(attributes[name]))
    return found


def _study_and_device(storage: RDBStorage, text: str) -> tuple[str, str | None]:
    """Return a study's name, which may hold colons, and what follows after another one."""
    if study_exists(storage, text):
        return text, None
    for position, character in enumerate(text):
        if character == ":" and study_exists(storage, text[:position]):
            return text[:position], text[position + 1 :]
    return text.partition(":")[0], None
