"""A synthetic archive in BigEarthNet-v2 layout, whose true 2.5 m image is known."""

from infra.archives.synthetic.writer import write_synthetic_archive

__all__ = ["write_synthetic_archive"]
