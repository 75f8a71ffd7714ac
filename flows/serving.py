"""Which version serves, by decision of a person: recorded as the automatic ones are."""

import getpass
from datetime import UTC, datetime
from pathlib import Path

from flows.configuration import ConfigurationError
from models.registry import Promotion, Registry, UnknownVersionError


def promote(mlruns: Path, name: str, number: int, reason: str) -> Promotion:
    """Let a version serve from the instant on from which the present one does, or from its own training if later.

    Raises ConfigurationError where there is no such store, model or version, or no reason.
    """
    if not reason.strip():
        raise ConfigurationError("--reason: is empty; say why, for whoever asks later")
    registry = _open(mlruns)
    before = registry.promotions(name)
    try:
        trained_at = registry.trained_at(name, number)
    except UnknownVersionError as error:
        raise ConfigurationError(str(error)) from error
    if before and before[-1].number == number:
        raise ConfigurationError(f"{name} version {number} serves already")
    as_of = max(trained_at, before[-1].as_of) if before else trained_at
    return _record(registry, name, Promotion(number, as_of, datetime.now(UTC)), reason)


def rollback(mlruns: Path, name: str, reason: str) -> Promotion:
    """Let the version serve that did before the present one; what was rolled back once is passed over.

    Raises ConfigurationError where there is no such store or model, or no version before.
    """
    registry = _open(mlruns)
    before = registry.promotions(name)
    if not before:
        raise ConfigurationError(f"no version of {name} serves in {mlruns}")
    present = before[-1]
    passed_over = {present.number, *(one.undone for one in before)}
    earlier = [one for one in before if one.number not in passed_over]
    if not earlier:
        raise ConfigurationError(f"{name} version {present.number} has none before it to roll back to")
    promotion = Promotion(earlier[-1].number, present.as_of, datetime.now(UTC), undone=present.number)
    return _record(registry, name, promotion, reason)


def _open(mlruns: Path) -> Registry:
    if not mlruns.is_dir():
        raise ConfigurationError(f"{mlruns} holds no models: train some, or name another configuration with --config")
    return Registry(mlruns)


def _record(registry: Registry, name: str, promotion: Promotion, reason: str) -> Promotion:
    decision = {
        "promoted": True,
        "model": name,
        "version": promotion.number,
        "serves_from": promotion.as_of.isoformat(),
        "decided_at": promotion.decided_at.isoformat(),
        "decided_by": getpass.getuser(),
        "undone": promotion.undone,
        "reason": reason,
    }
    registry.promote(name, promotion, decision)
    return promotion
