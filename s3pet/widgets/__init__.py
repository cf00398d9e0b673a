"""Controls around the figures."""

from s3pet.widgets.live import watch

__all__ = ["watch"]
