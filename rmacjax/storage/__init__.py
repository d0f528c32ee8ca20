"""Tables of described images on disk: the only door to Lance.

A table holds one row per image: its path and sizes, the signature of its file, its descriptor
(float16) and its activation map, quantised to levels 0..8 and packed (`pack_levels`); where the
table was made so, also the vectors of its regions (float16, `Table.read_regions`). Every change is
one commit that either happens or does not:

* the files of new rows are written and flushed to the disk first, then comes the commit, then the
  commit's own file and folder are flushed: what `Table.append` has acknowledged survives a power
  cut (Lance alone flushes nothing);
* replacing a row takes the old one out and puts the new one in by the same commit;
* any number of processes may write at once: a commit that another one has overtaken is prepared
  again from the newer version;
* a reader stays on one version (`Snapshot`) while others write.

What is computed from all rows (`derived`) is kept beside them, and is no part of the table.

Flushing and recovery concern local folders; object stores (``s3://``, ``gs://``, ``az://``) keep
what they have acknowledged. This package knows NumPy, not JAX.
"""

from rmacjax.storage.computed import derived, derived_key
from rmacjax.storage.levels import PackedLevels, pack_levels
from rmacjax.storage.regions import StoredRegions
from rmacjax.storage.rows import Snapshot, StoredImage
from rmacjax.storage.table import FORMAT_VERSION, Table

__all__ = [
    "FORMAT_VERSION",
    "PackedLevels",
    "Snapshot",
    "StoredImage",
    "StoredRegions",
    "Table",
    "derived",
    "derived_key",
    "pack_levels",
]
