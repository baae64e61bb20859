"""The command `lightning-attngrad audit`: saved checkpoints are evaluated again and compared."""

from lightning_attngrad.audit.options import AuditError, AuditOptions

# Not run_audit: with it come torch and Lightning, and `--help` would take seconds.
__all__ = ["AuditError", "AuditOptions"]
