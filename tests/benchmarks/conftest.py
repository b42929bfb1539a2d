"""Fixtures of the trainers' tests."""

from trainer_fixtures import *  # noqa: F403
