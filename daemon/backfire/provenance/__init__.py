"""C2PA manifests: what was done to a picture, signed, in the published file itself.

`signing.sign` puts a manifest into a file that is otherwise finished. It states that a perturbation was
added, where and with which parameters, and names the original as its parent; it claims no effect. Nothing is
asked of the network unless a timestamp authority is set.

The C2PA library is an optional extra and is loaded by the first signature, never by the daemon's own process.
"""

from backfire.provenance.original import Original, Policy
from backfire.provenance.statement import Area, Statement, Work

__all__ = ["Area", "Original", "Policy", "Statement", "Work"]
